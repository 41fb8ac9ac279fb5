"""Fetching a data set's archive: checksum, resume-free atomic file, safe extraction.

Written here and not taken from ``monai.apps``: that logs to standard output, which ``--json``
owns, sets no time limit, and imports torch.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import logging
import lzma
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlparse

from samadapt.data.cards import Download
from samadapt.errors import DownloadError

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_AT_ONCE = 1 << 26
_SLACK = 1 << 28
MAX_DOWNLOAD = 1 << 40
"""Bytes of an archive whose size nothing says: 1 TB."""
DENSEST = 50
"""How many times its size an archive may unpack to: images shrink to a half, text to a tenth."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes received and the total, None where the server does not say."""


def datasets_cache() -> Path:
    """Return where data sets are kept: ``$SAMADAPT_CACHE/datasets`` or ``~/.cache/samadapt``."""
    base = os.environ.get("SAMADAPT_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "samadapt") / "datasets"


def fetch_dataset(name: str, source: Download, progress: Progress | None = None) -> Path:
    """Return the folder of a data set, downloaded and extracted if it is not there yet.

    Raises:
        DownloadError: no connection, another checksum, or an unsafe or broken archive.
    """
    parent = datasets_cache()
    folder = parent / source.folder
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    archive = parent / Path(urlparse(source.url).path).name
    size = f" ({source.megabytes:g} MB)" if source.megabytes else ""
    _LOG.info("downloading %s%s from %s", name, size, source.url)
    most = None if source.megabytes is None else int(2 * source.megabytes * 1e6) + _SLACK
    download_file(source.url, archive, source.md5, source.sha256, progress, most)
    unpacked = source.unpacked_megabytes
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        extract_archive(archive, Path(temporary), None if unpacked is None else int(unpacked * 1e6))
        extracted = Path(temporary) / source.folder
        if not extracted.is_dir():
            raise DownloadError(f"{archive}: expected the folder {source.folder!r} in the archive")
        extracted.replace(folder)
    archive.unlink()
    return folder


def download_file(
    url: str,
    path: Path,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    most: int | None = None,
) -> None:
    """Fetch a file; it appears under its name only when complete and of the right checksum.

    Args:
        url: of the file.
        path: where it goes.
        md5: hexadecimal checksum, or None.
        sha256: hexadecimal checksum, or None.
        progress: told how far it is.
        most: bytes above which the answer is cut off; None: ``MAX_DOWNLOAD``.

    Raises:
        DownloadError: no connection, another checksum, or too long an answer.
    """
    digest = hashlib.sha256() if sha256 else hashlib.md5(usedforsecurity=False)
    expected = sha256 or md5
    partial = path.with_name(path.name + ".part")
    received = 0
    try:
        request = urllib.request.urlopen(url, timeout=_TIMEOUT_S)
        with request as response, partial.open("wb") as file:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                if received > (MAX_DOWNLOAD if most is None else most):
                    raise ValueError(f"the server sends more than {received - 1:,} bytes")
                if progress is not None:
                    progress(received, total)
    except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
        partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{url}: the download failed ({error}); fetch the file by other means, extract it, "
            "and set data.root to its folder"
        ) from None
    if expected and digest.hexdigest() != expected.lower():
        partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{url}: the checksum differs: expected {digest.name} {expected}, got "
            f"{digest.hexdigest()} after {received} bytes; try again, or report it"
        )
    partial.replace(path)


def extract_archive(archive: Path, folder: Path, most: int | None = None) -> None:
    """Extract a tar or zip file; every member is checked before the first is written.

    Args:
        archive: the file.
        folder: where its members go.
        most: bytes that it may unpack to; None: ``DENSEST`` times its size, and 256 MB.

    Raises:
        DownloadError: a member lies outside the folder or is no plain file or folder, the members
            are together too large, or the archive is broken.
    """
    try:
        limit = DENSEST * archive.stat().st_size + _SLACK if most is None else most
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, folder, limit)
        else:
            _extract_tar(archive, folder, limit)
    except DownloadError:
        raise
    except Exception as error:  # the libraries raise many kinds for broken bytes
        raise DownloadError(
            f"{archive}: the archive is broken ({type(error).__name__}); delete it and try again"
        ) from None


class _Bounded:
    """A file that refuses to return very much at once, as a tar header can ask for."""

    def __init__(self, archive: Path, file: IO[bytes]) -> None:
        self.archive, self.file = archive, file

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _AT_ONCE:
            raise DownloadError(f"{self.archive}: the archive is broken (a header is too long)")
        return self.file.read(count)

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


def _unpacked(archive: Path) -> IO[bytes]:
    """Open a tar file, through the decompressor that its first bytes name."""
    with archive.open("rb") as file:
        head = file.read(6)
    for mark, library in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
        if head.startswith(mark):
            opened: IO[bytes] = library.open(archive)
            return opened
    return archive.open("rb")


def _extract_tar(archive: Path, folder: Path, most: int) -> None:
    with _unpacked(archive) as file:
        bounded: Any = _Bounded(archive, file)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            members, total = [], 0
            for member in tar:  # checked before tarfile skips what it holds
                _check_member(archive, member.name, member.isfile() or member.isdir())
                total += member.size
                _check_total(archive, total, most)
                members.append(member)
            for member in members:
                target = folder / member.name
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                content = tar.extractfile(member)
                if content is not None:
                    with content:
                        _copy(content, target, member.size, _CHUNK)


def _extract_zip(archive: Path, folder: Path, most: int) -> None:
    with zipfile.ZipFile(archive) as content:
        entries = content.infolist()
        for entry in entries:
            kind = (entry.external_attr >> 28) & 0xF  # Unix file type: 0 unset, 4 folder, 8 file
            _check_member(archive, entry.filename, kind in (0, 4, 8))
        _check_total(archive, sum(entry.file_size for entry in entries), most)
        for entry in entries:
            target = folder / entry.filename.replace("\\", "/")
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            plain = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            with content.open(entry) as member:  # of other kinds a block unpacks as a whole
                _copy(member, target, entry.file_size, _CHUNK if plain else 1 << 12)


def _copy(source: IO[bytes], target: Path, size: int, chunk: int) -> None:
    """Write what a member holds, at most as much as it declares."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while piece := source.read(chunk):
            file.write(piece)
            if file.tell() > size:
                raise ValueError("a member holds more than it declares")


def _check_total(archive: Path, total: int, most: int) -> None:
    if total > most:
        raise DownloadError(
            f"{archive}: its members declare {total:,} bytes or more, and at most {most:,} are "
            "unpacked; if that is right, unpack it yourself and set data.root to its folder"
        )


def _check_member(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain:
        raise DownloadError(f"{archive}: member {name[:200]!r} is a link or device; refused")
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise DownloadError(f"{archive}: member {name[:200]!r} lies outside the folder; refused")
