"""What every job script shares: the command line, Ray, exit statuses. It knows no model and no stage.

Exit status: 0 done; 2 a mistake of the user's, told in one or two lines on stderr; 1 anything else, with its traceback.
"""

import argparse
import errno
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from proav import storage
from proav.config import Config
from proav.errors import UserError
from proav.settings import config_to_yaml, describe_settings, load_config

DEFAULT_CONFIG = "configs/demo.yaml"
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
}


def run_job(work: Callable[[Config], None], *, description: str, records: bool = False, argv: list[str] | None = None) -> None:
    """Reads the command line, connects to Ray, calls `work(config)` and ends the process with the contract's exit status.

    records: the job makes the run, so its configuration becomes <run_dir>/config.yaml once the work is done (at the start where there is none yet).
    """
    try:
        arguments = _parser(description).parse_intermixed_args(argv)
        config = with_absolute_paths(load_config(arguments.config, arguments.overrides))
        if arguments.dry_run:
            print(dry_run_text(config))
            return
        _tell_if_temporary(config.run_folder)
        record = storage.join(config.run_folder, "config.yaml")
        if records and not storage.exists(record):
            storage.write_text(record, config_to_yaml(config))
        with ray_session():
            work(config)
        if records:
            storage.write_text(record, config_to_yaml(config))
    except UserError as error:
        _end(error, 2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _end(
            f"{DISK_ERRORS[error.errno]}: {error.filename or error}; what was finished is kept: make room or choose another run_dir=DIR, then run the same command again",
            2,
        )


def dry_run_text(config: Config) -> str:
    """What `--dry-run` prints: the resolved configuration, then parameters, FLOPs per clip and memory."""
    from proav.costs import costs, format_costs

    num_labels = len(config.data.labels)
    return config_to_yaml(config) + "\n" + format_costs(costs(config, num_labels))


def with_absolute_paths(config: Config) -> Config:
    """The same configuration with local paths made absolute: Ray's workers need not stand in this folder."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or storage.is_remote(path) else os.path.abspath(path.removeprefix("file://"))

    data = config.data.model_copy(update={"sources": tuple(map(absolute, config.data.sources)), "listing": absolute(config.data.listing)})
    loss = config.mdsa.loss.model_copy(update={"perceptual_weights": absolute(config.mdsa.loss.perceptual_weights)})
    updates = {
        "run_dir": absolute(config.run_folder),
        "data": data,
        "mdsa": config.mdsa.model_copy(update={"loss": loss}),
        "generate": config.generate.model_copy(update={"checkpoint": absolute(config.generate.checkpoint)}),
        "evaluate": config.evaluate.model_copy(update={"real": absolute(config.evaluate.real), "fake": absolute(config.evaluate.fake)}),
    }
    return config.model_copy(update=updates)


class ray_session:
    """Ray for one job: the cluster that RAY_ADDRESS (or `ray job submit`) names, else a Ray of this machine's own, stopped at the end."""

    def __enter__(self) -> None:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # our own progress lines say what Ray Data's would
        import ray

        # An empty address variable means none; "local" also ignores the address file that an older cluster left behind.
        address = os.environ.get("RAY_ADDRESS") or "local"
        try:
            ray.init(address=address, logging_level="warning")
        except ConnectionError as error:
            why = " ".join(str(error).split())
            raise UserError(f"no Ray answers at RAY_ADDRESS={address} ({why}); start it, or unset RAY_ADDRESS to use this machine alone") from error

    def __exit__(self, *_) -> None:
        import ray

        ray.shutdown()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help shows what can be given")


def _parser(description: str) -> argparse.ArgumentParser:
    settings = "\n".join(
        textwrap.fill(f"{key}={default}  {text}", width=118, initial_indent="  ", subsequent_indent="      ")
        for key, default, text in describe_settings()
    )
    parser = _Parser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=f"settings, with the library's defaults:\n{settings}"
    )
    default = DEFAULT_CONFIG if Path(DEFAULT_CONFIG).is_file() else None
    parser.add_argument("--config", metavar="FILE", default=default, help=f"YAML file of settings (default: {DEFAULT_CONFIG})")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration, parameters, FLOPs per clip and memory, then stop")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings laid over the file's")
    return parser


def _tell_if_temporary(run_folder: str) -> None:
    """`ray job submit --working-dir` runs a job in a copy of the folder, which Ray removes some time after."""
    if "/runtime_resources/working_dir_files/" in run_folder:
        print(
            f"WARNING: {run_folder} is in Ray's temporary copy of the working directory and goes with it; "
            "write run_dir=DIR with a folder or URI that all nodes reach",
            file=sys.stderr,
        )


def _end(message: object, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
