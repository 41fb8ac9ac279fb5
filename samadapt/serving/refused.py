"""What a server answers if it does not do what a client asks for."""

from __future__ import annotations

from collections.abc import Mapping


class RefusedError(Exception):
    """A request is refused.

    Attributes:
        status: the HTTP status of the answer.
        detail: what was expected and what was found; it names no file of this machine.
        headers: of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep the answer."""
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})
