"""Checks every request before it reaches a protocol, and adds headers to every answer.

Web pages of others can make a browser send requests to this machine. So the Host must be one of the
server's names (a foreign name that was bound to this address is refused), an Origin must be the
server's own, and every request needs the token: as ``Authorization: Bearer TOKEN``, in the path
behind ``/token/TOKEN`` for clients that send no header, or in the cookie that the printed address
sets. Bodies are counted while they arrive, and a client that sends too slowly is cut off.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.responses import JSONResponse, RedirectResponse

from samadapt.serving.limits import ServingLimits
from samadapt.serving.refused import RefusedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "samadapt_token"
PREFIX = "/token/"
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob: data:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Wraps an application; see the module.

    Args:
        app: the application.
        token: what every request must know.
        hosts: names by which the server may be addressed, without a port. Where it listens on all
            addresses, addresses of numbers are accepted as well: no name can be bound to them.
        limits: of bodies.
        any_address: the server listens on all addresses.
    """

    def __init__(
        self,
        app: App,
        token: str,
        hosts: Collection[str],
        limits: ServingLimits,
        *,
        any_address: bool = False,
    ) -> None:
        self._app, self._token, self._limits = app, token, limits
        self._hosts, self._any_address = {host.lower() for host in hosts}, any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return
        send = _with_headers(send)
        headers = _headers(scope)
        try:
            self._check_origin(headers, scope)
            entered = self._check_token(headers, scope)
            self._check_length(headers)
        except RefusedError as error:
            refusal = JSONResponse({"detail": error.detail}, error.status, headers=error.headers)
            await refusal(scope, receive, send)
            return
        if entered is not None:
            await entered(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _check_origin(self, headers: dict[str, str], scope: Scope) -> None:
        host = headers.get("host", "")
        name = _name_of(host)
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            raise RefusedError(403, "this server is not reached under such a name (Host)")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise RefusedError(403, "requests of other origins are refused (Origin)")
        # A link in another page may open the server's page, but carries out nothing.
        foreign = headers.get("sec-fetch-site", "none") in ("cross-site", "same-site")
        if foreign and not (scope["method"] == "GET" and scope["path"] == "/"):
            raise RefusedError(403, "requests of other origins are refused (Sec-Fetch-Site)")

    def _check_token(self, headers: dict[str, str], scope: Scope) -> RedirectResponse | None:
        """Check the token; return the answer that sets the cookie, if the address has the token."""
        path: str = scope["path"]
        if path.startswith(PREFIX):
            given, _, rest = path.removeprefix(PREFIX).partition("/")
            self._compare(given)
            scope["path"] = "/" + rest
            scope["raw_path"] = scope["path"].encode("utf-8", "surrogateescape")
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            self._compare(given.strip())
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100)
        if path == "/" and "token" in query:
            self._compare(query["token"][0])
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        self._compare(_cookie(headers.get("cookie", "")))
        return None

    def _compare(self, given: str) -> None:
        # Bytes, because text outside of ASCII cannot be compared in constant time.
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
            raise RefusedError(
                401,
                "the token is missing or wrong; send Authorization: Bearer TOKEN with the token "
                "that samadapt serve printed",
                {"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            raise RefusedError(400, "Content-Length is not a number")
        if len(length) > 18 or int(length) > self._limits.upload_bytes:
            raise self._too_large()

    def _counted(self, receive: Receive) -> Receive:
        """Return ``receive``, which stops at the limits."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            try:
                message = await asyncio.wait_for(receive(), self._limits.chunk_seconds)
            except TimeoutError:
                raise RefusedError(
                    408, "the body arrives too slowly", {"Connection": "close"}
                ) from None
            received += len(message.get("body", b""))
            if received > self._limits.upload_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413,
            f"a request may have at most {self._limits.upload_bytes:,} bytes",
            {"Connection": "close"},
        )


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            known = {name for name, _ in message.get("headers", ())}
            message["headers"] = [
                *message.get("headers", ()),
                *(pair for pair in own if pair[0] not in known),
            ]
        await send(message)

    return sent


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _name_of(host: str) -> str:
    """Return a Host header without its port, in lower case; an IPv6 address without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(text: str) -> str:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
