"""Download files and archives over HTTP, for ``sam/weights/sources.py`` and ``data/fetch.py``.

A download resumes where an earlier one broke off, is tried again after a failure, is checked
against its checksum, never exceeds a size, and appears under its name only when it is complete.
Several processes may ask for the same file: one fetches it and the others wait.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from filelock import FileLock

from samadapt.errors import DownloadError
from samadapt.system.archives import extract_archive

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and the total, which is None if the server hides it."""

MAX_BYTES = 1 << 36
"""Bytes of a file whose size is not known in advance: 64 GB."""
MAX_ARCHIVE_BYTES = 1 << 40
"""Bytes of an archive whose size is not known in advance: 1 TB."""

_CHUNK = 1 << 20
# A time-out, too many requests, or a failure of the server. Other refusals are final.
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
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Download ``url`` to ``path``, unless ``path`` exists already.

    What arrives is kept in ``<path>.part``, so that a later call resumes where this one broke off.

    Args:
        url: an http or https address.
        path: where the file goes; missing folders are made.
        checksum: ``"sha256:<hex>"`` or ``"md5:<hex>"`` of the whole file.
        progress: called while the file arrives; the default logs every tenth.
        attempts: how many times a failing connection is tried.
        wait_s: pause before the second attempt, in seconds; it doubles each time.
        timeout_s: how long the server may be silent, in seconds.
        max_bytes: an answer that is longer is refused.

    Returns:
        ``path``.

    Raises:
        DownloadError: no connection, a refusal by the server, too long an answer, or a file with
            another checksum.
    """
    try:
        with _only_process(path) as is_there:
            if is_there:
                return path
            part = path.with_name(f"{path.name}.part")
            fetch = _Fetch(url, part, progress or _LogTenths(path.name), timeout_s, max_bytes)
            resumed = part.exists()
            fetch.until_complete(attempts, wait_s)
            if resumed and checksum and file_checksum(part, checksum) != checksum:
                # The part may come from an older version of the file: start again from nothing.
                part.unlink()
                fetch.until_complete(attempts, wait_s)
            _check(part, url, checksum)
            part.replace(path)
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error}") from error
    return path


def download_archive(
    url: str,
    folder: Path,
    *,
    checksum: str | None = None,
    progress: Progress | None = None,
    max_bytes: int = MAX_ARCHIVE_BYTES,
    max_unpacked_bytes: int | None = None,
) -> Path:
    """Download a tar or zip file and unpack the folder in it, unless ``folder`` exists already.

    The archive must hold a folder of the name of ``folder``. It is deleted afterwards.

    Args:
        url: an http or https address.
        folder: where the content goes; it appears only when it is complete.
        checksum: see ``download``.
        progress: see ``download``.
        max_bytes: see ``download``.
        max_unpacked_bytes: see ``extract_archive``.

    Returns:
        ``folder``.

    Raises:
        DownloadError: see ``download`` and ``extract_archive``; or the archive does not hold the
            folder.
    """
    try:
        with _only_process(folder) as is_there:
            if is_there:
                return folder
            archive = folder.parent / Path(urlparse(url).path).name
            download(url, archive, checksum=checksum, progress=progress, max_bytes=max_bytes)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                extract_archive(archive, Path(temporary), max_unpacked_bytes)
                extracted = Path(temporary) / folder.name
                if not extracted.is_dir():
                    raise DownloadError(
                        f"{archive}: expected the folder {folder.name!r} in the archive"
                    )
                extracted.replace(folder)
            archive.unlink()
    except OSError as error:
        raise DownloadError(f"cannot write {folder}: {error}") from error
    return folder


def file_checksum(path: Path, kind: str) -> str:
    """Return ``"<algorithm>:<hex>"`` of a file, with the algorithm that ``kind`` begins with."""
    algorithm = kind.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


@contextmanager
def _only_process(path: Path) -> Iterator[bool]:
    """Wait until no other process fetches ``path``; give whether it exists then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield path.exists()
        # Whoever still waits for the deleted lock will find that the path exists.
        Path(f"{path}.lock").unlink(missing_ok=True)


def _check(part: Path, url: str, checksum: str | None) -> None:
    if checksum is None:
        return
    found = file_checksum(part, checksum)
    if found != checksum:
        size = part.stat().st_size
        part.unlink()
        raise DownloadError(
            f"{url} does not have the expected checksum: expected {checksum}, got {found} "
            f"({size} bytes); the file has been removed; try again, or report it"
        )


class _Fetch:
    """The transfer of one file from ``url`` into ``part``."""

    def __init__(
        self, url: str, part: Path, progress: Progress, timeout_s: float, max_bytes: int
    ) -> None:
        self.url = url
        self.part = part
        self.progress = progress
        self.timeout_s = timeout_s
        self.max_bytes = max_bytes

    def until_complete(self, attempts: int, wait_s: float) -> None:
        """Resume after each failure, with at most ``attempts`` connections."""
        for attempt in range(1, attempts + 1):
            try:
                self.once()
                return
            except ValueError as error:  # urllib's, for what is no address
                raise DownloadError(f"{self.url} cannot be fetched: {error}") from error
            except (OSError, HTTPException) as error:
                if isinstance(error, HTTPError) and error.code not in _WORTH_RETRYING:
                    raise DownloadError(f"{self.url}: the server answered {error}") from error
                if attempt == attempts:
                    raise DownloadError(
                        f"{self.url} could not be fetched in {attempts} attempts: "
                        f"{error or type(error).__name__}"
                    ) from error
                logger.info("%s broke off (%s); resuming", self.url, error)
                time.sleep(wait_s * 2 ** (attempt - 1))

    def once(self) -> None:
        """Request what is missing and append it; an incomplete answer is an OSError."""
        received = self.part.stat().st_size if self.part.exists() else 0
        request = Request(self.url, headers={"Range": f"bytes={received}-"} if received else {})
        try:
            with urlopen(request, timeout=self.timeout_s) as response:
                self._receive(response, received)
        except HTTPError as error:
            if error.code != 416:
                raise
            # 416: the range is not satisfiable. The part is complete, or it is longer than the
            # file, and then it belongs to another version of it.
            total = error.headers.get("Content-Range", "").rpartition("/")[2]
            if total != str(received):
                self.part.unlink()
                raise OSError("the file is shorter than what was fetched before") from error

    def _receive(self, response: HTTPResponse, received: int) -> None:
        is_rest = response.headers.get("Content-Range", "").startswith(f"bytes {received}-")
        if not (response.status == 206 and is_rest):
            received = 0  # the server ignores the range and sends the whole file
        length = response.headers.get("Content-Length")
        total = received + int(length) if length else None
        with self.part.open("ab" if received else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                received += len(chunk)
                if received > self.max_bytes:
                    break
                self.progress(received, total)
        if received > self.max_bytes:
            self.part.unlink()
            raise DownloadError(
                f"{self.url}: expected at most {self.max_bytes:,} bytes; the server sends more than"
                f" {received - 1:,} bytes; what was fetched has been removed"
            )
        if total is not None and received < total:
            raise OSError(f"the connection ended after {received} of {total} bytes")


class _LogTenths:
    """Logs each further tenth of a file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.logged = -1

    def __call__(self, received: int, total: int | None) -> None:
        if total and received * 10 // total > self.logged:
            self.logged = received * 10 // total
            logger.info("%s: %d of %d MB", self.name, received // 10**6, total // 10**6)
