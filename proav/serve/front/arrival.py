"""Lets each request arrive whole, in bounded time and memory, before anything behind this sees it.

It runs in Ray Serve's proxy, where the bytes arrive (`middlewares` in `proxy.py`). So clients that never
finish take no place in the application. It runs in the application too, because a proxy may run without it.
This module imports little, because each proxy imports it. Not here: heads of requests (`connections.py`).
"""

import asyncio
import contextlib
import json
import time
from dataclasses import asdict, dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proav.serve.front.raw_answers import send_error

LIMITS_HEADER = b"x-proav-limits"
"""With this header the proxy asks for the application's limits, and takes them from the answer."""
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending."""
SMALL_BYTES = 64 * 1024
"""These first bytes of each body are not counted: small requests pass while large ones fill the memory."""


@dataclass
class Limits:
    """Limits for connections. All are settings of the server; `proav/serve/settings.py` describes them."""

    max_connections: int = 4096
    head_seconds: float = 10.0
    pause_seconds: float = 20.0
    arrival_seconds: float = 300.0
    max_upload_bytes: int = 64 * 2**20
    max_arriving_bytes: int = 256 * 2**20

    def to_header(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode("ascii")

    def take(self, header: bytes) -> None:
        """Takes over the values that the application has sent in its header."""
        for name, value in json.loads(header).items():
            setattr(self, name, value)


PROXY_LIMITS = Limits()
"""Limits of this process, if it is a proxy: the defaults until the application has answered once."""


class Refused(Exception):
    """A request that the server does not wait for any longer; `is_silent` if its client sends nothing."""

    def __init__(self, status: int, code: str, message: str, *, is_silent: bool = False) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.is_silent = status, code, message, is_silent


class WholeRequests:
    """Hands a request on when the last byte of its body has arrived.

    Otherwise it answers 408, 413 or 503, and closes the connection.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, in_proxy: bool) -> None:
        """app: the application behind it.

        limits: the limits for bodies.
        in_proxy: whether it runs in the proxy. If so, the application's answers replace `limits`.
        """
        self.app, self.limits, self.in_proxy = app, limits, in_proxy
        self.held_bytes = 0
        """Counted bytes of bodies that are arriving, or whose requests are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Arriving(self)
        try:
            whole = await request.read(scope, receive)
            if whole is not None:  # else the client has gone
                await self.app(scope, _first(whole, receive), self._telling(scope, send))
        except Refused as refused:
            request.release()
            await self._refuse(refused, receive, send)
        finally:
            request.release()

    async def _refuse(self, refused: Refused, receive: Receive, send: Send) -> None:
        """Answers, then reads and drops what still comes, for LINGER_SECONDS.

        If a connection is closed before all bytes are read, it is reset, and the client loses the answer.
        """
        await send_error(send, refused.status, refused.message, code=refused.code, close=True, more=True)
        with contextlib.suppress(TimeoutError):
            if not refused.is_silent:
                async with asyncio.timeout(LINGER_SECONDS):
                    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                        pass
        await send({"type": "http.response.body", "body": b""})

    def _telling(self, scope: Scope, send: Send) -> Send:
        """`send`, with the limits in a header: the application adds them to its answer, the proxy reads and
        removes them."""
        if self.in_proxy:
            scope["headers"] = [*scope["headers"], (LIMITS_HEADER, b"?")]
        elif not any(name == LIMITS_HEADER for name, _ in scope["headers"]):
            return send

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                if self.in_proxy:
                    for _, value in (pair for pair in headers if pair[0] == LIMITS_HEADER):
                        self.limits.take(value)
                    headers = [pair for pair in headers if pair[0] != LIMITS_HEADER]
                else:
                    headers.append((LIMITS_HEADER, self.limits.to_header()))
                message = {**message, "headers": headers}
            await send(message)

        return told


class _Arriving:
    """One body while it arrives."""

    def __init__(self, requests: WholeRequests) -> None:
        self._requests, self._limits = requests, requests.limits
        self._body, self._counted = bytearray(), 0

    async def read(self, scope: Scope, receive: Receive) -> list[Message] | None:
        """[the body as one message]; None if the client leaves before the body is whole. Raises Refused."""
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not (declared.isdigit() and len(declared) < 19 and int(declared) <= self._limits.max_upload_bytes):
            raise self._too_large()
        ends = time.monotonic() + self._limits.arrival_seconds
        while True:
            left = ends - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, self._limits.pause_seconds))):
                    message = await receive()
            except TimeoutError:
                raise self._late(left <= self._limits.pause_seconds) from None
            if message["type"] != "http.request":
                return None
            self._body += message.get("body", b"")
            self._count(len(self._body))
            if not message.get("more_body", False):
                body, self._body = bytes(self._body), bytearray()
                return [{"type": "http.request", "body": body, "more_body": False}]

    def release(self) -> None:
        """Gives the memory back."""
        self._requests.held_bytes -= self._counted
        self._body, self._counted = bytearray(), 0

    def _count(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_upload_bytes:
            raise self._too_large()
        newly = max(0, num_bytes - SMALL_BYTES) - self._counted
        if newly and self._requests.held_bytes + newly > self._limits.max_arriving_bytes:
            said = f"the bodies of all requests together fill the {self._limits.max_arriving_bytes} bytes"
            raise Refused(503, "too_busy", f"{said} that this server has for them; try again later")
        self._requests.held_bytes += newly
        self._counted += newly

    def _late(self, whole: bool) -> Refused:
        said = f"the request had not arrived within {self._limits.arrival_seconds:g} s"
        if not whole:
            said = f"no further byte of the body came within {self._limits.pause_seconds:g} s"
        return Refused(408, "timeout", said, is_silent=not whole)

    def _too_large(self) -> Refused:
        said = f"the body is larger than the {self._limits.max_upload_bytes} bytes that this server takes"
        return Refused(413, "too_large", said)


def _first(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that first gives these messages, dropping each from memory, and then what the client sends
    next."""

    async def given() -> Message:
        return messages.pop() if messages else await receive()

    return given
