"""Who may use the page: a guard around the whole server that asks for a token, and for the right name of the machine."""

import hmac
import http.cookies
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

App = Callable[..., Awaitable[None]]  # ASGI
_COOKIE = "noisytwins_jax_token"
_HEADERS = [
    # Browsers ask no other machine for anything, whatever a page may hold.
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


def is_loopback(host: str) -> bool:
    """Return whether an address reaches this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application that lets requests through to another one.

    With a token every request, of whatever kind, needs it: as ``?token=`` in the address, which a cookie then replaces, or as
    the header ``Authorization: Bearer``. Otherwise the answer is 401.

    Args:
      app: the application.
      token: None to ask for none.
      local: answer only requests to this machine's loopback names, so that no other site's name can be made to lead here.
    """

    def __init__(self, app: App, token: str | None, local: bool):
        self._app, self._token, self._local = app, token, local

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._local and not is_loopback(_host_name(headers.get(b"host", ""))):
            return await _refuse(scope, send, 403, "This page is served to this machine alone, as 127.0.0.1.")
        if self._token is not None:
            query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
            given = dict(query).get("token")
            if scope["type"] == "http" and given is not None and self._matches(given):
                rest = urlencode([pair for pair in query if pair[0] != "token"])
                return await _redirect(send, scope["path"] + ("?" + rest if rest else ""), self._token)
            if not self._matches(_cookie(headers)) and not self._matches(_bearer(headers)):
                message = "This page needs its token: open the address that the command printed, with its ?token=."
                return await _refuse(scope, send, 401, message)

        async def send_with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _host_name(host: str) -> str:
    """Return the name or address in a header ``Host``, without the port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _cookie(headers: dict[bytes, str]) -> str:
    try:
        morsel = http.cookies.SimpleCookie(headers.get(b"cookie", "")).get(_COOKIE)
    except http.cookies.CookieError:
        return ""
    return morsel.value if morsel else ""


def _bearer(headers: dict[bytes, str]) -> str:
    kind, _, value = headers.get(b"authorization", "").partition(" ")
    return value if kind.lower() == "bearer" else ""


async def _redirect(send: Any, location: str, token: str) -> None:
    """Redirect to the address without the token, which the browser keeps as a cookie."""
    location = "/" + location.lstrip("/")  # never to another machine
    cookie = f"{_COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
    headers = [(b"location", location.encode("latin-1", "ignore")), (b"set-cookie", cookie.encode())]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: dict[str, Any], send: Any, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{message}\n".encode()})
