"""Joins or starts the Ray of one process, and keeps the process to that Ray.

A machine may run several Rays, of other jobs and of other people, and hold files of Rays that are gone. A
job's processes never ask which one is "the" Ray of the machine: they use their own Ray's address. A Ray that
is started here uses only folders that this machine allows.
Importing this module does not import Ray: Ray reads environment variables at import, and this module must set
them first. The resources of a cluster are in `resources.py`.
"""

import atexit
import contextlib
import getpass
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

import psutil

from proav.errors import UserError

ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Parts of Ray look for a cluster in these variables. The second, meant for `ray job submit`, has priority.
"""
SETUP_HOOK = "proav.on_ray.start.keep_to_own_cluster"
"""The function for ray.init's runtime_env that every worker process calls when it starts."""
ROOM_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_MetricsHead")
"""Longest path of a temporary folder: 107 bytes for a socket's path (unix(7)), less the most that Ray adds.
"""
FOLDERS = ("/tmp", "/var/tmp")
"""Used for temporary files if the environment names no folder that can be used."""
MIN_FREE_BYTES = 64 * 2**20
"""Room for a short job's logs; without it Ray fails in odd ways."""
SHARED_MEMORY = "/dev/shm"
MAX_STARTS = 3
"""How often Ray is started here before it is given up."""
_SLOW_START = ("timed out during startup", "Timed out waiting for file")
"""Parts of Ray's messages if the 30 s that it waits for its processes were too short. Its errors have no type
of their own."""


def connect(
    address: str,
    *,
    named: str | None = None,
    namespace: str | None = None,
    runtime_env: dict | None = None,
    shielded: bool = False,
) -> None:
    """Joins the cluster at `address`, or starts a Ray here.

    address: as in `check_address` of `resources.py`; "local" always starts a Ray here, even if another runs
    or has left files.
    named: what gave the address, for messages; RAY_ADDRESS=<address> by default.
    namespace, runtime_env: as ray.init takes them.
    shielded: a Ray that is started here ignores SIGTERM.
    Raises UserError if nothing answers, if the cluster refuses, if Ray can use no folder here, or if it is
    not ready after MAX_STARTS attempts.
    """
    named = named or f"RAY_ADDRESS={address}"
    _prepare_user()
    here = prepare_machine() if address == "local" else {}
    if "RAY_AUTH_MODE" not in os.environ and _has_token() and "ray" not in sys.modules:
        # A cluster asks for a token by default. Ray sends one by itself only to a cluster that it found
        # itself.
        os.environ["RAY_AUTH_MODE"] = "token"
    import ray

    from proav.on_ray.resources import check_address

    check_address(address, named=named)
    options = {"logging_level": "warning", "namespace": namespace, "runtime_env": runtime_env, **here}
    try:
        if address == "local":
            _start(lambda: ray.init(address=address, **options), shielded=shielded)
        else:
            ray.init(address=address, **options)
    except ConnectionError as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{named} does not let this process in ({why}); if the cluster has another token than this "
            "machine, copy the head's ~/.ray/auth_token here or set RAY_AUTH_TOKEN; otherwise check that a "
            "Ray of this version runs there"
        ) from error


def _start(init: Callable[[], object], *, shielded: bool) -> None:
    """Calls `init`, which starts a Ray here, and calls it again if that Ray was not ready in time.

    First it ends the processes of the Ray that was not ready. A SIGTERM is taken between two attempts.

    shielded: what is started ignores SIGTERM.
    Raises UserError after MAX_STARTS attempts.
    """
    before = set(psutil.Process().children())
    for attempt in range(1, MAX_STARTS + 1):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if shielded else set())
        try:
            init()  # what it starts inherits the mask
            return
        except Exception as error:
            why = " ".join(str(error).split())
            if not any(message in why for message in _SLOW_START):
                raise
            _end([child for child in psutil.Process().children() if child not in before and _is_rays(child)])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if attempt < MAX_STARTS:
            _say(f"Ray was not ready after 30 s; starting it again ({attempt + 1} of {MAX_STARTS})")
    raise UserError(
        f"the Ray that was started here was not ready after {MAX_STARTS} times 30 s ({why}); the machine is "
        "probably too busy: run the same command again when it is less busy. "
        f"Ray's own logs are in {os.environ['RAY_TMPDIR']}/ray/session_latest/logs"
    )


def _is_rays(process: psutil.Process) -> bool:
    """Whether a process runs a program of the installed Ray."""
    import ray

    folder = os.path.join(os.path.dirname(ray.__file__), "")
    try:
        return any(part.startswith(folder) for part in process.cmdline())
    except psutil.Error:  # it has ended, or another user's
        return False


def _end(processes: list[psutil.Process]) -> None:
    """Kills processes and all that they have started."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [process, *process.children(recursive=True)]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=10)


def keep_to_own_cluster() -> None:
    """Puts the address of this process's cluster into the environment.

    The State API looks for a cluster there, otherwise on the machine. Ray Train's cleaner asks the State API,
    and ends a run if it does not find its controller. Ray Data's watch over hanging tasks asks it too.
    """
    import ray

    if ray.util.client.ray.is_connected():  # ray://: the cluster is another machine's
        return
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)


@contextlib.contextmanager
def addresses_kept() -> Iterator[None]:
    """Restores the address variables of this process at the end of the block."""
    before = {name: os.environ.get(name) for name in ADDRESS_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def prepare_machine() -> dict[str, str]:
    """Makes this process's environment fit for starting a Ray; returns further arguments for ray.init.

    If it chooses another folder than the environment names, it says so on stderr. Raises UserError if no
    folder can be used.
    """
    temporary = _choose_temporary_folder()
    if not _has_token() and not _is_writable(os.path.expanduser("~")):  # Ray would write one there
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # If /dev/shm is small, as in containers, Ray would warn on a small machine and fail on a large one.
    os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
    # No cloud takes this machine away. Ray Train has a process in each training that watches for that.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if _is_writable(SHARED_MEMORY):
        return {}
    _say(f"{SHARED_MEMORY} cannot be written: Ray's objects go to {temporary}, which is slower")
    return {"_plasma_directory": temporary}


def _prepare_user() -> None:
    """Gives a home folder and a name to a user who has none, as under `docker run --user`.

    Without them many libraries cannot be imported.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = tempfile.mkdtemp(prefix="proav-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
        _say("this user has no home folder; an empty one is used: set HOME=DIR for another")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def _choose_temporary_folder() -> str:
    """The folder that RAY_TMPDIR or TMPDIR names, else /tmp or /var/tmp.

    TMPDIR is set to it as well, if TMPDIR is not set or cannot be used.
    """
    given = {name: os.environ[name] for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)}
    unfit = {name: reason for name, folder in given.items() if (reason := _unfit(folder))}
    fit = [os.path.abspath(folder) for name, folder in given.items() if name not in unfit]
    fit += [folder for folder in FOLDERS if not _unfit(folder)]
    if not fit:
        reasons = [f"{name}={given[name]} {reason}" for name, reason in unfit.items()]
        reasons += [f"{folder} {_unfit(folder)}" for folder in FOLDERS]
        raise UserError(
            f"no folder for temporary files: {', '.join(reasons)}; set RAY_TMPDIR=DIR, a folder that can be "
            f"written, of at most {ROOM_BYTES} characters"
        )
    for name, reason in unfit.items():
        _say(f"{name}={given[name]} {reason}: temporary files go to {fit[0]}; set RAY_TMPDIR=DIR for another")
    os.environ["RAY_TMPDIR"] = fit[0]
    if "TMPDIR" in unfit or not given.get("TMPDIR"):
        os.environ["TMPDIR"] = fit[0]  # also for the sockets of Python's own worker processes
        tempfile.tempdir = None  # Python may have cached the old folder
    return fit[0]


def _unfit(folder: str) -> str | None:
    """Why Ray cannot be started with this temporary folder; None if it can."""
    folder = os.path.abspath(folder)
    if not os.path.isdir(folder):
        return "is no folder"
    if not _is_writable(folder):
        return "cannot be written"
    if os.path.exists(os.path.join(folder, "ray")) and not _is_writable(os.path.join(folder, "ray")):
        return "has a folder ray that cannot be written"
    if (length := len(os.fsencode(folder))) > ROOM_BYTES:
        return f"is {length} characters long, but Ray's sockets leave room for {ROOM_BYTES}"
    if (free := shutil.disk_usage(folder).free) < MIN_FREE_BYTES:
        return f"has only {free / 2**20:.0f} MiB free"
    return None


def _is_writable(folder: str) -> bool:
    """Whether files can be made in a folder. It makes one: permissions do not show read-only file systems."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _has_token() -> bool:
    """Whether Ray would find a token for its clusters."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "RAY_AUTH_TOKEN" in os.environ or os.path.isfile(named or os.path.expanduser("~/.ray/auth_token"))
