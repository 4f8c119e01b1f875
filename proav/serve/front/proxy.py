"""Middleware for Ray Serve's proxy: limits for what arrives, and JSON for the proxy's own errors.

Requests reach the application through the proxy. The proxy answers by itself while the application starts, or
if the process that should answer is lost: "Path not found" or "Internal Server Error", in plain text. Not
here: the limits themselves (`arrival.py`, `connections.py`).

Ray Serve finds `middlewares` by the environment variable CALLBACK_VARIABLE. This module imports little,
because each proxy imports it.
"""

import logging
from http import HTTPStatus

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proav.serve.front.arrival import PROXY_LIMITS, WholeRequests
from proav.serve.front.raw_answers import send_error

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "proav.serve.front.proxy.middlewares"
RAYS_OWN = "/-/"
"""Ray Serve's health and routes lie below this path."""
MAX_TEXT_BYTES = 500
CODES = {404: "not_found", 408: "timeout", 429: "queue_full", 503: "no_server"}
PHRASES = {status.value: status.phrase for status in HTTPStatus}

logger = logging.getLogger(__name__)


def middlewares() -> list[Middleware]:
    """The layers that Ray Serve's proxy puts around its own application, the outermost last.

    It also sets the protocol of `connections.py` for the proxy's uvicorn, which starts after this call.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "proav.serve.front.connections:Connection"
    return [Middleware(JsonErrors), Middleware(WholeRequests, limits=PROXY_LIMITS, in_proxy=True)]


class JsonErrors:
    """Answers in JSON if the proxy gives an error in plain text, or no answer at all."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(RAYS_OWN):
            await self.app(scope, receive, send)
            return
        started, held, text = False, None, b""

        async def told(message: Message) -> None:
            nonlocal started, held, text
            if held is not None:
                text += message.get("body", b"")[: MAX_TEXT_BYTES - len(text)]
                return
            if message["type"] == "http.response.start" and _is_plain_error(message):
                held = message
                return
            started = True
            await send(message)

        try:
            await self.app(scope, receive, told)
        except Exception as error:
            if started:
                raise
            logger.error("%s %s failed in the proxy", scope["method"], scope["path"], exc_info=error)
        if not started:
            await _answer(send, held or {"status": 500}, text.decode(errors="replace"))


def _is_plain_error(start: Message) -> bool:
    types = [value for name, value in start.get("headers", []) if name.lower() == b"content-type"]
    return start["status"] >= 400 and (not types or types[0].startswith(b"text/plain"))


async def _answer(send: Send, start: Message, text: str) -> None:
    """Sends the error in JSON. start, text: of the plain answer. Its Content-Range is kept."""
    status = start["status"]
    said = {
        404: "no server is at this address: it is starting, or has been stopped",
        500: "the server lost this request; look whether it was carried out, then send it again",
    }
    default, code = "the server did not answer", "server_error"
    if status < 500:
        default, code = PHRASES.get(status, "the request was refused"), "invalid_request"
    message = said.get(status) or next(iter(text.strip().splitlines()), default)
    kept = [(name, value) for name, value in start.get("headers", []) if name.lower() == b"content-range"]

    async def told(answer: Message) -> None:
        if answer["type"] == "http.response.start":
            answer = {**answer, "headers": [*answer["headers"], *kept]}
        await send(answer)

    await send_error(told, status, message, code=CODES.get(status, code))
