"""What every job script shares: the command line, Ray, exit statuses. It knows no model and no stage.

Exit status: 0 done; 2 a mistake of the user's, reported in one or two lines on stderr; 1 anything else, with
a traceback unless it was a stop or storage that failed.
"""

import argparse
import contextlib
import errno
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    from proav import storage
    from proav.config import Config
    from proav.config.reading import config_to_yaml, describe_settings, load_config
    from proav.errors import StorageUnavailable, UserError
    from proav.runs.layout import RunFolder
    from proav.stopping import HOW_TO_GO_ON, StopRequest
    from proav.storage.paths import explain_paths, with_absolute_paths
    from proav.storage.patience import DEFAULT_SECONDS, retry_seconds
    from proav.storage.patience import VARIABLE as RETRY_VARIABLE
except (
    ModuleNotFoundError
) as missing:  # `ray job submit -- python ...` takes the first python on the head's PATH
    print(
        f"error: {sys.executable} has no package {missing.name}; activate the environment that proav is "
        "installed in, before `ray start` too",
        file=sys.stderr,
    )
    sys.exit(2)

DEFAULT_CONFIG = "configs/demo.yaml"
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
}


def run_job(
    work: Callable[[Config], None],
    *,
    description: str,
    records: bool = False,
    trains: bool = False,
    plan: Callable[[Config], str | None] | None = None,
    instead: dict[str, tuple[Callable[[Config], None], str]] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Reads the command line, connects to Ray and calls `work(config)`.

    If an error or a stop ends the work, the process ends with the exit status above.

    work: what the job does.
    description: text for --help.
    records: whether the job is one that makes the run. If so, its configuration becomes <run_dir>/config.yaml
        when the work is done, and
    already at the start if there is none yet.
    trains: a Ray that the job starts outlives a SIGTERM to the whole process group, so that workers can write
    a checkpoint.
    plan: looks at the configuration before anything starts. It raises UserError, or returns what would be
    done, which --dry-run prints; or None.
    instead: {option: (other work, help)}, such as {"--verify": (verify_run, "...")}. If the option is given,
    its work is done instead, and nothing is recorded.
    argv: the words of the command line; None: those of this process.
    """
    given = None
    try:
        options = instead or {}
        arguments = _parser(
            description, {option: help_text for option, (_, help_text) in options.items()}
        ).parse_intermixed_args(argv)
        given = load_config(arguments.config, arguments.overrides)
        _check_tasks(given)
        config = with_absolute_paths(given, runs=runs_folder())
        os.environ[RETRY_VARIABLE] = f"{config.job.retry_seconds:g}"
        planned = plan(config) if plan else None
        if arguments.dry_run:
            print("\n".join(filter(None, (dry_run_text(config), planned))))
            return
        chosen = arguments.instead
        if is_submitted():
            _tell_stop_time(config.job.stop_seconds)
            print(
                f"run_dir={config.run_folder}"
                + ("" if storage.is_remote(config.run_folder) else " (a folder that all nodes must reach)")
            )
        record = RunFolder(config).config_file
        records = records and not chosen
        if records and not storage.exists(record):
            storage.write_text(record, config_to_yaml(config))
        with StopRequest(config.job.stop_seconds) as stop:
            with ray_session(shielded=trains):
                stop.listen()  # ray.init has taken the signals
                (options[chosen][0] if chosen else work)(config)
            if records:
                storage.write_text(record, config_to_yaml(config))
    except UserError as error:
        if given is not None:
            error = explain_paths(str(error), given, runs=runs_folder(), config_file=arguments.config)
        _end(error, 2)
    except StorageUnavailable as error:
        _end(error, 1)
    except SystemExit as ended:  # ray.init answers a signal in this way until it is done
        if ended.code != signal.SIGTERM:
            raise
        _end(f"stopped by SIGTERM; {HOW_TO_GO_ON}", 1)
    except KeyboardInterrupt as stopped:  # Ray's traceback of it is a page long
        _end(str(stopped) or f"stopped; {HOW_TO_GO_ON}", 1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _end(
            f"{DISK_ERRORS[error.errno]}: {error.filename or error}; what was finished is kept: "
            "make room or choose another run_dir=DIR, then run the same command again",
            2,
        )


def _check_tasks(config: Config) -> None:
    """Refuses names of tasks that are not in the table of tasks. The configuration alone takes any word."""
    from proav.diffusion.tasks import check_tasks

    check_tasks(config)


def dry_run_text(config: Config) -> str:
    """What `--dry-run` prints: the resolved configuration, then parameters, FLOPs per clip and memory."""
    from proav.costs import costs, format_costs

    num_labels = len(config.data.labels) if config.stdit.labels else 0
    return config_to_yaml(config) + "\n" + format_costs(costs(config, num_labels))


def is_submitted() -> bool:
    """Whether `ray job submit` started this process."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _tell_stop_time(seconds: float) -> None:
    """Prints a warning if `ray job stop` would kill this job sooner than job.stop_seconds allows it."""
    given = float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or 3)
    if given < seconds:
        print(
            f"ray job stop gives this job {given:g} s, job.stop_seconds is {seconds:g}: start the head with "
            f"RAY_JOB_STOP_WAIT_TIME_S={seconds + 30:g}, as the files in cluster/ do"
        )


def runs_folder() -> str:
    """Base folder for relative run_dir paths: $PROAV_RUNS, else the current folder.

    Without $PROAV_RUNS, a submitted job takes the folder proav in the home folder: its current folder is a
    copy that Ray deletes. Raises UserError if there is no home folder.
    """
    named = os.environ.get("PROAV_RUNS")
    if named or not is_submitted():
        return named or "."
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise UserError(
            "the user of this submitted job has no home folder for what runs leave; "
            "set PROAV_RUNS, a folder or a bucket that all nodes reach"
        )
    return os.path.join(home, "proav")


@contextlib.contextmanager
def ray_session(*, shielded: bool = False) -> Iterator[None]:
    """Ray for one job: the cluster that RAY_ADDRESS or `ray job submit` names, else a Ray of the job's own.

    The job's own Ray ends with the job.

    shielded: the processes of the job's own Ray ignore SIGTERM, which batch systems send to whole groups.
        Ray's end then takes three seconds longer, since Ray asks with SIGTERM before it kills.
    """
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # our progress lines replace those of Ray Data
    import proav
    from proav.on_ray.start import SETUP_HOOK, addresses_kept, connect, keep_to_own_cluster

    address = os.environ.get("RAY_ADDRESS") or "local"  # an empty address variable means none
    runtime_env = {"worker_process_setup_hook": SETUP_HOOK}
    if address != "local" and not is_submitted():
        # A submitted job's folder is on all nodes. Otherwise all nodes get the code that this process runs.
        runtime_env["py_modules"] = [os.path.dirname(proav.__file__)]
    if address != "local" and retry_seconds() != DEFAULT_SECONDS:  # a Ray of this process inherits it
        runtime_env["env_vars"] = {RETRY_VARIABLE: os.environ[RETRY_VARIABLE]}
    with addresses_kept():
        connect(address, runtime_env=runtime_env, shielded=shielded)
        import ray  # not before: see `on_ray/start.py`

        try:
            keep_to_own_cluster()
            yield
        finally:
            ray.shutdown()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help shows what can be given")


def _parser(description: str, options: dict[str, str]) -> argparse.ArgumentParser:
    settings = "\n".join(
        textwrap.fill(f"{key}={default}  {text}", width=118, initial_indent="  ", subsequent_indent="      ")
        for key, default, text in describe_settings()
    )
    parser = _Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"settings, with the library's defaults:\n{settings}",
    )
    default = DEFAULT_CONFIG if Path(DEFAULT_CONFIG).is_file() else None
    parser.add_argument(
        "--config", metavar="FILE", default=default, help=f"YAML file of settings (default: {DEFAULT_CONFIG})"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, parameters, FLOPs per clip and memory, then stop",
    )
    parser.set_defaults(instead=None)
    for option, help_text in options.items():
        parser.add_argument(option, dest="instead", action="store_const", const=option, help=help_text)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings laid over the file's"
    )
    return parser


def _end(message: object, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
