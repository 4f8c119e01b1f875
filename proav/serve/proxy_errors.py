"""What Ray Serve's proxy itself answers, in the form of every other error.

The proxy stands before the application. While that starts, or if the process that was to answer is lost, it
says "Path not found" or "Internal Server Error" in plain text.

Ray Serve finds `middlewares` by the environment variable CALLBACK_VARIABLE. Light to import: each proxy does.
"""

import json
import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "proav.serve.proxy_errors.middlewares"
BROWSER_HEADERS = [
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]
"""Of every answer: no other site may show it in a frame, and no browser may take it for a script."""
RAYS_OWN = "/-/"
"""Ray Serve's health and routes lie below this path."""
RETRY_SECONDS = 5
MAX_TEXT_BYTES = 500
CODES = {404: "not_found", 408: "timeout", 429: "queue_full", 503: "no_server"}

logger = logging.getLogger(__name__)


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts around its own application."""
    return [Middleware(JsonErrors)]


class JsonErrors:
    """Answers in JSON where the application behind it gives an error in plain text, or no answer at all."""

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
            await _answer(send, 500 if held is None else held["status"], text.decode(errors="replace"))


def _is_plain_error(start: Message) -> bool:
    types = [value for name, value in start.get("headers", []) if name.lower() == b"content-type"]
    return start["status"] >= 400 and (not types or types[0].startswith(b"text/plain"))


async def _answer(send: Send, status: int, text: str) -> None:
    said = {
        404: "no server is at this address: it is starting, or has been stopped",
        500: "the server lost this request; look whether it was carried out, then send it again",
    }
    message = said.get(status) or next(iter(text.strip().splitlines()), "the server did not answer")
    client_error = "rate_limit_error" if status == 429 else "invalid_request_error"
    kind = "server_error" if status >= 500 else client_error
    error = {"message": message, "type": kind, "param": None, "code": CODES.get(status, "server_error")}
    body = json.dumps({"error": error}).encode("ascii")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"cache-control", b"no-store"))
    if status in (429, 503):
        headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *BROWSER_HEADERS]})
    await send({"type": "http.response.body", "body": body})
