"""Where `serve run proav.serve:app host=... port=...` listens: Ray Serve's command has no option for that, and tells a taken port in a page of tracebacks.

Inside a cluster (`serve deploy`, RayService) none of this happens: there the file's http_options decide.
"""

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
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # what does not answer would not end when it is asked to
}
"""Environment of Ray Serve's own processes."""


def start_listening(host: str | None, port: int | None) -> bool:
    """Connects to Ray as `serve run` is about to, and starts Serve's HTTP there, unless Serve runs already.

    True if it was started here: then no older replica of this application can be about. Nothing is done where
    no `serve run` builds the application. Raises UserError for a taken port.
    """
    command = click.get_current_context(silent=True)
    options = command.params if command is not None and command.info_name == "run" else {}
    if "address" not in options or ray.is_initialized():
        if host or port:
            raise UserError(
                "host=... and port=... are for `serve run proav.serve:app`; in a Serve config file write them under http_options"
            )
        return False
    if any(
        options.get(name) for name in ("runtime_env", "runtime_env_json", "working_dir")
    ):  # `serve run` must connect, with these
        if host or port:
            raise UserError(
                "host=... and port=... cannot be had together with a runtime environment; first type: serve start --http-port PORT"
            )
        _prepare(options["address"])
        return False
    _tell_of_another(options["address"])
    _connect(options["address"])
    if serve.status().proxies:
        if host or port:
            raise UserError(
                "Serve runs on this cluster already, at the address it was started with; leave out host=... and port=..., or: serve shutdown"
            )
        return False
    host, port = host or DEFAULT_HOST, port or DEFAULT_PORT
    _check_free(host, port)
    serve.start(http_options={"host": host, "port": port}, proxy_location="EveryNode")
    return True


def _connect(address: str | None) -> None:
    """As a job does: the cluster that is named, else a Ray of this machine's own."""
    for name, value in OF_RAY_SERVE.items():  # for the processes of a Ray that is started here
        os.environ.setdefault(name, value)
    connect(address or "local", named=_named(address), namespace="serve")
    keep_to_own_cluster()
    # As Ctrl-C, which `serve run` takes for the end; Ray would end with a stack dump.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _prepare(address: str | None) -> None:
    """For a connection that `serve run` makes itself."""
    if address is None:
        os.environ["RAY_ADDRESS"] = "local"
        prepare_machine()
    check_address(address or "local", named=_named(address))


def _named(address: str | None) -> str:
    return f"RAY_ADDRESS={address}" if os.environ.get("RAY_ADDRESS") == address else f"--address {address}"


def _tell_of_another(address: str | None) -> None:
    """Ray itself would join a Ray that its files on this machine name, whoever started it."""
    another = running_here() if address is None else None
    if another:
        joins = f"RAY_ADDRESS={another} joins the one that runs here"
        click.echo(f"this starts a Ray of its own; {joins}", err=True)


def _check_free(host: str, port: int) -> None:
    """Only this machine can be asked, which is where a server that is started by hand listens."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"cannot listen on {host}:{port} ({why[:1].lower()}{why[1:]}); choose another: serve run proav.serve:app port={port + 1}"
        ) from error
