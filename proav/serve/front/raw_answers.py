"""The form of every error, and two functions that send one without a web framework.

`send_error` speaks ASGI, for Ray Serve's proxy and for middleware. `error_bytes` is for a connection whose
request never reaches ASGI. Each proxy imports this module, so it imports little. Not here: answers of the
application (`answers.py`).
"""

import json
from http import HTTPStatus
from typing import Any

from starlette.types import Send

BROWSER_HEADERS = [
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]
"""Headers of every answer: no other site may frame it, and no browser may take it for a script."""
RETRY_SECONDS = 5
RETRIED = 429, 503
"""Statuses of answers that say when to ask again."""


def error_object(status: int, message: str, *, param: str | None = None, code: str) -> dict[str, Any]:
    """{"error": {message, type, param, code}}, as in OpenAI's interface.

    status: HTTP status, from which the type follows.
    message, param, code: as in `ApiError` (`api_error.py`).
    """
    client_error = "rate_limit_error" if status == 429 else "invalid_request_error"
    kind = "server_error" if status >= 500 else client_error
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def send_error(
    send: Send, status: int, message: str, *, code: str, close: bool = False, more: bool = False
) -> None:
    """Sends an error by ASGI.

    send: ASGI's function that sends to the client.
    status, message, code: as in `error_object`.
    close: whether the connection ends after the answer, because more of the request may still arrive.
    more: whether the caller sends the last, empty part of the body.
    """
    headers, body = _parts(status, message, code, close)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


def error_bytes(status: int, message: str, *, code: str) -> bytes:
    """The bytes of a whole answer, for a connection that ends with it."""
    headers, body = _parts(status, message, code, close=True)
    start = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
    return b"\r\n".join([start, *map(b": ".join, headers), b"", body])


def _parts(status: int, message: str, code: str, close: bool) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """(headers, body) of an error; arguments as in `send_error`."""
    body = json.dumps(error_object(status, message, code=code)).encode("ascii")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"cache-control", b"no-store"), *BROWSER_HEADERS]
    if status in RETRIED:
        headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
    if close:
        headers.append((b"connection", b"close"))
    return headers, body
