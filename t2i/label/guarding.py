"""What a server on one's own machine must refuse: other sites that a browser on it has open.

Such a site may send requests here (cross-site request forgery), and may have its own name point here to read the
answers (DNS rebinding). The first shows in `Origin` and `Sec-Fetch-Site`, the second in `Host`.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_NAMES = frozenset({"127.0.0.1", "localhost"})
MAX_BODY_BYTES = 4096
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def refusal(method: str, headers: Headers) -> tuple[int, str] | None:
    """(status, reason) for a request that does not come from our own page; None for one that may."""
    host = headers.get("host", "")
    # Any port: it may be forwarded from another machine, whose browser then names that machine's port.
    if host.rpartition(":")[0] not in OWN_NAMES and host not in OWN_NAMES:
        return 421, "this server answers to 127.0.0.1 and localhost only"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "another site sent this request"
    if headers.get("origin") not in (None, f"http://{host}"):
        return 403, "another site sent this request"
    if method in ("GET", "HEAD"):
        return None
    if "origin" not in headers:
        return 403, "a request that changes something must name its origin"
    # A form cannot send this type, a script of another site only after asking, and nothing here answers to that.
    if headers.get("content-type") != "application/json":
        return 415, "expected application/json"
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        return 413, f"expected a content-length of at most {MAX_BODY_BYTES}"
    return None


class OwnPageOnly:
    """ASGI middleware: refuses what `refusal` refuses, and tells the browser to keep every answer to our own page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Start and end of the server are for the application; there are no web sockets here.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = refusal(scope["method"], Headers(scope=scope))
        app = self.app if refused is None else PlainTextResponse(refused[1] + "\n", refused[0])
        await app(scope, receive, send_guarded)
