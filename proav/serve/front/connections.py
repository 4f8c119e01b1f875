"""Limits for connections: their number, the time for a head to arrive, and for an answer to be read.

This is uvicorn's protocol with these limits. Ray Serve offers no way to give its uvicorn a protocol, so
`middlewares` in `proxy.py` enters this one in uvicorn's own table. This module imports little, because
each proxy imports it. Not here: bodies of requests (`arrival.py`).
"""

import asyncio
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proav.serve.front.arrival import LINGER_SECONDS, PROXY_LIMITS
from proav.serve.front.raw_answers import error_bytes

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of a request's head, and most bytes of framing between two chunks of its body."""
LOOK_SECONDS = 1.0
"""Time between two checks of a connection."""


class Connection(HttpToolsProtocol):
    """One connection. It is ended if its client does not go on.

    An incomplete head is answered 408, a head that is too long 431, a connection beyond the limit 503.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # The start of waiting for a head, and of the time in which the client has read nothing.
        self._since = self._unread_since = time.monotonic()
        self._began = False  # whether a byte of that head has arrived
        self._loose_bytes = self._unread_bytes = 0
        self._refused_at: float | None = None
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
        if len(self.connections) > PROXY_LIMITS.max_connections:
            said = f"the server has {PROXY_LIMITS.max_connections} connections already, its limit"
            self._end(503, f"{said}; try again later", "too_busy")

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._refused_at is not None:
            return
        if self._waits_for_head and not self._began:
            self._since, self._began = time.monotonic(), True
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > MAX_HEAD_BYTES and self._refused_at is None:
            self._end(431, f"the head of the request is longer than {MAX_HEAD_BYTES} bytes", "head_too_large")

    def on_headers_complete(self) -> None:
        self._loose_bytes, self._began = 0, False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._loose_bytes = 0
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP, in the same form as every other error."""
        self._end(400, "this is no valid HTTP request", "invalid_request")

    @property
    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        """Ends the connection if its client does not go on; called once a second while it is open."""
        if self.transport.get_protocol() is not self:  # it has become a WebSocket
            return
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
        now, unread_bytes = time.monotonic(), self.transport.get_write_buffer_size()
        if unread_bytes == 0 or unread_bytes != self._unread_bytes:
            self._unread_since, self._unread_bytes = now, unread_bytes
        elif now - self._unread_since > PROXY_LIMITS.pause_seconds:
            self._give_up()
            self.transport.abort()
        if self._refused_at is not None and now - self._refused_at > LINGER_SECONDS:
            self.transport.close()
        if self.transport.is_closing() or self._refused_at is not None or not self._waits_for_head:
            return
        idle = self.timeout_keep_alive_task is not None  # between two requests, which uvicorn bounds
        if not idle and now - self._since > PROXY_LIMITS.head_seconds:
            said = f"the head of the request had not arrived within {PROXY_LIMITS.head_seconds:g} s"
            self._end(408, said, "timeout")

    def _give_up(self) -> None:
        """Tells a request that is being answered that its client has gone."""
        if not self._waits_for_head:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()

    def _end(self, status: int, message: str, code: str) -> None:
        """Answers and closes.

        Nothing is sent if another answer is being sent. A 408 is sent only if a head has begun.
        Beside another answer and after a 408 the connection is closed at once. Otherwise bytes are read and
        dropped for LINGER_SECONDS first: closing with unread bytes would reset the connection, and the client
        would lose the answer.
        """
        self._refused_at = time.monotonic()
        answered = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not answered and (self._began or status != 408):
            self.transport.write(error_bytes(status, message, code=code))
        self._give_up()
        if answered or status == 408 or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
