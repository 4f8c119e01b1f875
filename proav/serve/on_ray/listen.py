"""Where `serve run proav.serve:app host=... port=...` listens.

Ray Serve's command has no option for that, and it reports a taken port with a page of tracebacks. On a
cluster (`serve deploy`, RayService) none of this is used: http_options of the config file decide there.
"""

import errno
import os
import signal
import socket

import click
import ray
from ray import serve

from proav.errors import UserError
from proav.on_ray.resources import check_address, running_here
from proav.on_ray.start import connect, keep_to_own_cluster, prepare_machine
from proav.serve.front.proxy import CALLBACK, CALLBACK_VARIABLE

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
OF_RAY_SERVE = {
    CALLBACK_VARIABLE: CALLBACK,
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # a replica that does not answer would also ignore it
}
"""Environment of Ray Serve's own processes."""


def start_listening(host: str | None, port: int | None) -> bool:
    """Connects to Ray before `serve run` does, and starts Serve's HTTP there, unless Serve runs already.

    Without `serve run`, or with Ray connected already, it does nothing, and refuses host and port.
    host: address to listen on; None: 127.0.0.1. port: port to listen on; None: 8000.
    Returns True if it started Serve's HTTP: then no older replica of this application can be alive. Raises
    UserError if the port is taken, or if host and port cannot be chosen here.
    """
    command = click.get_current_context(silent=True)
    options = command.params if command is not None and command.info_name == "run" else {}
    if "address" not in options or ray.is_initialized():
        if host or port:
            raise UserError(
                "host=... and port=... are for `serve run proav.serve:app`; "
                "in a Serve config file write them under http_options"
            )
        return False
    # With one of these, `serve run` itself must connect.
    if any(options.get(name) for name in ("runtime_env", "runtime_env_json", "working_dir")):
        if host or port:
            raise UserError(
                "host=... and port=... cannot be had together with a runtime environment; "
                "first type: serve start --http-port PORT"
            )
        _prepare(options["address"])
        return False
    _tell_of_another(options["address"])
    here = host or DEFAULT_HOST, port or DEFAULT_PORT
    if (options["address"] or "local") == "local":
        _check_free(*here)  # before a Ray is started for nothing
    _connect(options["address"])
    if serve.status().proxies:
        if host or port:
            raise UserError(
                "Serve runs on this cluster already, at the address it was started with; "
                "leave out host=... and port=..., or: serve shutdown"
            )
        return False
    _check_free(*here)
    host, port = here
    serve.start(http_options={"host": host, "port": port}, proxy_location="EveryNode")
    return True


def _connect(address: str | None) -> None:
    """Connects as a job does: to the cluster that is named, else to a new Ray on this machine."""
    for name, value in OF_RAY_SERVE.items():  # for the processes of a Ray that is started here
        os.environ.setdefault(name, value)
    connect(address or "local", named=_named(address), namespace="serve")
    keep_to_own_cluster()
    # SIGTERM acts as Ctrl-C: `serve run` then shuts down cleanly. Ray's own handler would dump its stack.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _prepare(address: str | None) -> None:
    """Prepares a connection that `serve run` itself makes."""
    if address is None:
        os.environ["RAY_ADDRESS"] = "local"
        prepare_machine()
    check_address(address or "local", named=_named(address))


def _named(address: str | None) -> str:
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def _tell_of_another(address: str | None) -> None:
    """Tells the user if another Ray runs on this machine, because this server does not join it.

    Ray by itself would join any Ray whose address is in a file on this machine.
    """
    another = running_here() if address is None else None
    if another:
        joins = f"RAY_ADDRESS={another} joins the one that runs here"
        click.echo(f"this starts a Ray of its own; {joins}", err=True)


def _check_free(host: str, port: int) -> None:
    """Raises UserError if nothing can listen there.

    Only this machine is asked, since a server started by hand listens here.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host, such as a..b
        why = getattr(error, "strerror", None) or str(error)
        another = f"host={DEFAULT_HOST} (this machine only) or host=0.0.0.0 (all interfaces)"
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            # the ports below 1024 are the system's
            another = f"port={port + 1 if 1024 <= port < 65535 else DEFAULT_PORT}"
        raise UserError(
            f"cannot listen on {host}:{port} ({why[:1].lower()}{why[1:]}); "
            f"choose another: serve run proav.serve:app {another}"
        ) from error
