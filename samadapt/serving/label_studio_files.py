"""Fetch the images of Label Studio: from its one origin, and from nowhere else.

This is the only request that the server sends. A task that names an image elsewhere is refused, and
so are redirects, because they would lead elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.error import URLError
from urllib.parse import urljoin, urlsplit

from samadapt.errors import ConfigError
from samadapt.serving.refused import RefusedError

SECONDS = 30.0


@dataclass(frozen=True)
class LabelStudioFiles:
    """The images of one Label Studio.

    Attributes:
        origin: its address, as ``http://localhost:8080``.
        key: its access token, which is sent to this origin alone; empty: none is sent.

    Raises:
        ConfigError: the address is none.
    """

    origin: str
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(
                f"label_studio: expected an address as http://localhost:8080; got {self.origin!r}"
            )

    def fetch(self, address: str, most: int) -> bytes:
        """Return the bytes of an image that a task names.

        Args:
            address: ``data:`` with base64, a path at the origin, or a whole address there.
            most: bytes that are accepted.

        Raises:
            RefusedError: it lies elsewhere (403), is too large (413) or cannot be had (422).
        """
        if address.startswith("data:"):
            return inline(address)
        url = urljoin(self.origin + "/", address)
        if _origin_of(url) != _origin_of(self.origin):
            raise RefusedError(
                403, "the image of this task is not at the address that label_studio= names"
            )
        headers = {"Authorization": f"Token {self.key}"} if self.key else {}
        request = urllib.request.Request(url, headers=headers)
        try:
            with _opener().open(request, timeout=SECONDS) as answer:
                content: bytes = answer.read(most + 1)
        except (URLError, OSError, ValueError) as error:
            reason = f"status {error.code}" if hasattr(error, "code") else type(error).__name__
            raise RefusedError(
                422, f"the image cannot be fetched from Label Studio ({reason})"
            ) from None
        if len(content) > most:
            raise RefusedError(413, f"the image has more than {most:,} bytes")
        return content


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens addresses, without redirects and without the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def inline(address: str) -> bytes:
    """Return the bytes of an image in an address ``data:...;base64,...``.

    Raises:
        RefusedError: it holds no base64 (422).
    """
    head, comma, data = address.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(422, "expected an image as data:image/png;base64,...") from None


def _origin_of(url: str) -> Any:
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    return parts.scheme, parts.hostname, port
