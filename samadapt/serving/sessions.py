"""Sessions: what one client works on, for as long as it shows that it does."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samadapt.serving.limits import ServingLimits
from samadapt.serving.refused import RefusedError

if TYPE_CHECKING:
    from samadapt.serving.served_image import ServedImage
    from samadapt.serving.served_object import ServedObject

FULL, EXPIRED = 503, 410


@dataclass
class Session:
    """The image and the objects of one client.

    Attributes:
        token: names the session; nobody can guess it.
        heartbeats: the client shows regularly that it is there.
        acted: time of the last action of its user.
        seen: time of its last request.
        image: the image, or None before there is one.
        objects: the objects by their number.
        lock: held while a request changes the session.
    """

    token: str
    heartbeats: bool
    acted: float
    seen: float
    image: ServedImage | None = None
    objects: dict[int, ServedObject] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def open_image(self) -> ServedImage:
        """Return the image.

        Raises:
            RefusedError: there is none yet.
        """
        if self.image is None:
            raise RefusedError(400, "there is no image yet; send one first")
        return self.image


class Sessions:
    """The open sessions of a server.

    Args:
        limits: how many there may be, and how long they last.
        close: gives back the memory of an image.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        limits: ServingLimits,
        close: Callable[[ServedImage], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._close, self._clock = close, clock
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        """Return the number of open sessions."""
        return len(self._open)

    def claim(self, *, heartbeats: bool) -> Session:
        """Open a session.

        Args:
            heartbeats: the client sends them, so that its silence means that it has gone.

        Raises:
            RefusedError: there are as many as the server takes (503).
        """
        self.sweep()
        if len(self._open) >= self.limits.sessions:
            raise RefusedError(
                FULL,
                f"the server is full: {self.limits.sessions} sessions are open; end one, or try "
                f"again later",
                {"Retry-After": "10"},
            )
        now = self._clock()
        session = Session(secrets.token_urlsafe(24), heartbeats, acted=now, seen=now)
        self._open[session.token] = session
        return session

    def get(self, token: str | None, *, acts: bool = True) -> Session:
        """Return an open session.

        Args:
            token: its token.
            acts: the request is an action of the user, which starts the idle time anew.

        Raises:
            RefusedError: it has expired, or never was (410).
        """
        session = self.peek(token)
        session.seen = self._clock()
        if acts:
            session.acted = session.seen
        return session

    def peek(self, token: str | None) -> Session:
        """Return an open session without a sign of life.

        Raises:
            RefusedError: it has expired, or never was (410).
        """
        self.sweep()
        session = self._open.get(token or "")
        if session is None:
            raise RefusedError(EXPIRED, "this session has expired or is unknown; begin a new one")
        return session

    def remaining(self, session: Session) -> float:
        """Return the seconds until the session ends if its user does nothing."""
        return max(0.0, self.limits.idle_seconds - (self._clock() - session.acted))

    def release(self, token: str | None) -> bool:
        """End a session; return whether there was one."""
        session = self._open.pop(token or "", None)
        if session is None:
            return False
        self.drop_image(session)
        return True

    def replace_image(self, session: Session, image: ServedImage) -> None:
        """Give a session an image, in the place of its last one and of its objects."""
        if session.token not in self._open:  # it was ended meanwhile
            self._close(image)
            raise RefusedError(EXPIRED, "this session has ended")
        self.drop_image(session)
        session.image = image

    def sweep(self) -> None:
        """End the sessions that have expired; one that is being answered has not."""
        now = self._clock()
        for token, session in list(self._open.items()):
            idle = now - session.acted > self.limits.idle_seconds
            gone = session.heartbeats and now - session.seen > self.limits.liveness_seconds
            if (idle or gone) and not session.lock.locked():
                self.release(token)

    def close_all(self) -> None:
        """End all sessions."""
        for token in list(self._open):
            self.release(token)

    def drop_image(self, session: Session) -> None:
        """Give back the image of a session and its objects."""
        session.objects.clear()
        if session.image is not None:
            self._close(session.image)
            session.image = None
