"""Listen at an address until a signal comes."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samadapt.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import uvicorn

    from samadapt.serving.server_state import ServerState

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def new_token() -> str:
    """Return a token that nobody can guess, of letters that an address can hold."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Listener:
    """Where a server listens, and what it must be told.

    Attributes:
        host: an address of this machine.
        port: 0: any that is free.
        token: what every request must know.
        others: further names by which clients address it, such as that of a proxy.
    """

    host: str = LOOPBACK[0]
    port: int = 0
    token: str = field(default_factory=new_token)
    others: tuple[str, ...] = ()

    def listen(self) -> socket.socket:
        """Return a socket that listens.

        Raises:
            ConfigError: the address is not of this machine, or the port is taken.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            opened = socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"host={self.host} port={self.port}: cannot listen there ({reason}); choose "
                "another port, or an address of this machine"
            ) from None
        # Without it each answer waits 40 ms for the client's acknowledgement of its header. asyncio
        # sets it for sockets of its own alone; connections inherit it from this one.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    @property
    def is_any(self) -> bool:
        """Whether it listens on all addresses of this machine."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def names(self) -> set[str]:
        """The names by which it may be addressed."""
        own = {self.host, *self.others}
        if self.is_any or self.host in LOOPBACK:
            own |= set(LOOPBACK)
        if self.is_any:
            own.add(socket.gethostname())
        return own

    def url(self, port: int) -> str:
        """Return the address of the server at a port."""
        name = socket.gethostname() if self.is_any else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def make_server(state: ServerState, listener: Listener) -> uvicorn.Server:
    """Return a server, whose ``run`` takes a socket of ``listener.listen``.

    Args:
        state: what is served.
        listener: where.

    Raises:
        MissingExtraError: the extra ``serve`` is not installed.
    """
    try:
        import uvicorn

        from samadapt.serving.app import make_app
    except ImportError as error:
        raise MissingExtraError(str(error.name), "serve") from None
    app = make_app(state, listener.token, listener.names, any_address=listener.is_any)
    # No log of requests: their paths may hold the token.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def serve(state: ServerState, listener: Listener, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        state: what is served.
        listener: where.
        announce: called with the address when it listens.

    Raises:
        ConfigError: it cannot listen there.
        MissingExtraError: the extra ``serve`` is not installed.
        KeyboardInterrupt: the signal came.
    """
    server = make_server(state, listener)
    with listener.listen() as opened:
        announce(listener.url(opened.getsockname()[1]))
        server.run(sockets=[opened])
    # uvicorn raises the signal again, which does nothing where a shell started this in the
    # background, since SIGINT is ignored there.
    raise KeyboardInterrupt
