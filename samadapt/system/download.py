"""Fetch one file over HTTP: resumed after a break, checked, and put in place in one step."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from samadapt.errors import DownloadError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes in all (None where the server hides it)."""

_CHUNK = 1 << 20
MAX_BYTES = 1 << 36
"""Bytes of a file whose size nothing says: 64 GB."""
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    progress: Progress | None = None,
    attempts: int = 4,
    wait_s: float = 1.0,
    timeout_s: float = 30.0,
    most_bytes: int = MAX_BYTES,
) -> Path:
    """Fetch ``url`` into ``path``, unless ``path`` is there already.

    What arrives is kept in ``<path>.part``, so a later call goes on where this one broke off.
    Several processes may ask for the same file; one fetches it and the others wait.

    Args:
        url: an http or https address.
        path: where the file goes; its folder is made.
        checksum: ``"sha256:<hex>"`` or ``"md5:<hex>"`` of the whole file.
        progress: told how far it is; the default logs every tenth.
        attempts: tries before giving up on a connection that fails.
        wait_s: pause before the second try, in seconds; it doubles with each.
        timeout_s: how long the server may be silent, in seconds.
        most_bytes: an answer that is longer is cut off.

    Returns:
        ``path``.

    Raises:
        DownloadError: no connection, a refusal by the server, or another checksum.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists():
                return path
            part = path.with_name(f"{path.name}.part")
            fetch = _Fetch(url, part, progress or _Tenths(path.name), timeout_s, most_bytes)
            resumed = part.exists()
            fetch.until_complete(attempts, wait_s)
            if resumed and checksum and file_checksum(part, checksum) != checksum:
                # The part may have come from an older version of the file: once more from nothing.
                part.unlink()
                fetch.until_complete(attempts, wait_s)
            _check(part, url, checksum)
            part.replace(path)
            Path(f"{path}.lock").unlink(missing_ok=True)  # whoever still waits finds the file
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error}") from error
    return path


def file_checksum(path: Path, kind: str) -> str:
    """Return ``"<algorithm>:<hex>"`` of a file; the algorithm is what ``kind`` begins with."""
    algorithm = kind.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _check(part: Path, url: str, checksum: str | None) -> None:
    if checksum is None:
        return
    found = file_checksum(part, checksum)
    if found != checksum:
        size = part.stat().st_size
        part.unlink()
        raise DownloadError(
            f"{url} does not have the expected checksum: expected {checksum}, got {found} "
            f"({size} bytes); what was fetched has been removed"
        )


class _Fetch:
    """One file on its way from ``url`` into ``part``."""

    def __init__(
        self, url: str, part: Path, progress: Progress, timeout_s: float, most_bytes: int
    ) -> None:
        self.url = url
        self.part = part
        self.progress = progress
        self.timeout_s = timeout_s
        self.most_bytes = most_bytes

    def until_complete(self, attempts: int, wait_s: float) -> None:
        """Go on after each break, at most ``attempts`` times."""
        for attempt in range(1, attempts + 1):
            try:
                self.once()
                return
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError) and error.code not in _WORTH_RETRYING:
                    raise DownloadError(f"{self.url}: the server answered {error}") from error
                if attempt == attempts:
                    raise DownloadError(
                        f"{self.url} could not be fetched in {attempts} tries: "
                        f"{error or type(error).__name__}"
                    ) from error
                logger.info("%s broke off (%s); going on", self.url, error)
                time.sleep(wait_s * 2 ** (attempt - 1))

    def once(self) -> None:
        """Ask for what is missing and append it; an incomplete answer is an OSError."""
        there = self.part.stat().st_size if self.part.exists() else 0
        request = Request(self.url, headers={"Range": f"bytes={there}-"} if there else {})
        try:
            with urlopen(request, timeout=self.timeout_s) as response:
                self._receive(response, there)
        except HTTPError as error:
            if error.code != 416:
                raise
            # Nothing beyond what is there: complete, or longer than the file, which starts anew.
            total = error.headers.get("Content-Range", "").rpartition("/")[2]
            if total != str(there):
                self.part.unlink()
                raise OSError("the file is shorter than what was fetched before") from error

    def _receive(self, response: HTTPResponse, there: int) -> None:
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {there}-")
        if not (response.status == 206 and begins):
            there = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = there + int(length) if length else None
        with self.part.open("ab" if there else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                there += len(chunk)
                if there > self.most_bytes:
                    break
                self.progress(there, total)
        if there > self.most_bytes:
            self.part.unlink()
            raise DownloadError(
                f"{self.url}: the server sends more than the {self.most_bytes:,} bytes that are "
                "expected; what was fetched has been removed"
            )
        if total is not None and there < total:
            raise OSError(f"the connection ended after {there} of {total} bytes")


class _Tenths:
    """Log each further tenth of a file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.logged = -1

    def __call__(self, done: int, total: int | None) -> None:
        if total and done * 10 // total > self.logged:
            self.logged = done * 10 // total
            logger.info("%s: %d of %d MB", self.name, done // 10**6, total // 10**6)
