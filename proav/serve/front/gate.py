"""Who may ask, and what browsers are told.

Every request that the application gets passes here, and so does its answer. There are no users here. The
rules keep pages of other sites from acting through a visitor's browser. Not here: how much may come
(`arrival.py`), and what a valid order is (`orders/requests.py`).
"""

import logging
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proav.serve.front.answers import error_answer
from proav.serve.front.api_error import ApiError, shown
from proav.serve.front.raw_answers import BROWSER_HEADERS

DEFAULT_PORTS = {"http": 80, "https": 443}

logger = logging.getLogger(__name__)


class Gate:
    """Refuses requests that must not reach the application, and turns exceptions of it into JSON errors.

    A request gets 403 if it is sent to a name that is not the server's, or if it is no GET or HEAD and comes
    from a page of another site.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: tuple[str, ...] = ()) -> None:
        """app: the application behind it. allowed_hosts: names without port, in lower case; empty: any."""
        self.app, self.allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *BROWSER_HEADERS]}
            await send(message)

        if refusal := self._refusal(scope):
            await error_answer(refusal)(scope, receive, guarded)
            return
        try:
            await self.app(scope, receive, guarded)
        except Exception as error:  # a defect: only the log says which
            if started:
                raise
            logger.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            said = "the server failed on this request; its log says more"
            await error_answer(ApiError(500, said, code="server_error"))(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = scope["headers"]
        host = b"".join(value for name, value in headers if name == b"host").decode("latin-1")
        if self.allowed_hosts and host_name(host) not in self.allowed_hosts:
            said = f"this server does not answer to the name {shown(host)}"
            hint = "its setting allowed_hosts lists the names that it answers to"
            return ApiError(403, f"{said}; {hint}", param="host", code="wrong_host")
        if scope["method"] not in ("GET", "HEAD") and _is_foreign(headers, host):
            return ApiError(403, "pages of other sites may not make or delete clips here", code="cross_site")
        return None


def host_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without port, brackets and final dot; None if it has none."""
    address = _address(host, 0)
    return address and address[0]


def _is_foreign(headers: list[tuple[bytes, bytes]], host: str) -> bool:
    """Whether a browser says that a page of another site sends this.

    Browsers name the page's site in Origin. Over plain http they do so too, but leave out Sec-Fetch-Site.
    Other clients send neither.
    """
    if any(name == b"sec-fetch-site" and value == b"cross-site" for name, value in headers):
        return True
    return any(name == b"origin" and not _is_own(value.decode("latin-1"), host) for name, value in headers)


def _is_own(origin: str, host: str) -> bool:
    """Whether an Origin is the address that was asked.

    Behind a proxy with TLS its scheme is https, although this server speaks http.
    """
    match = re.fullmatch(r"(https?)://(.+)", origin, re.IGNORECASE)
    if not match:  # "null": the page is a local file, or a sandboxed frame
        return False
    port = DEFAULT_PORTS[match[1].lower()]
    address = _address(match[2], port)
    return address is not None and address == _address(host, port)


def _address(text: str, default_port: int) -> tuple[str, int] | None:
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/?#@\s]+))(?::([0-9]{1,5}))?", text.lower())
    return match and ((match[1] or match[2]).removesuffix("."), int(match[3] or default_port))
