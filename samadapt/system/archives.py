"""Unpack tar and zip files that come from the network.

Every member is checked before the first is written: it must be a plain file or folder inside the
target folder, and all members together must not be larger than a limit. What is unpacked is never
more than the members declare.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from samadapt.errors import DownloadError

MAX_RATIO = 50
"""How many times its own size an archive may unpack to. Images shrink to a half, text to a tenth;
a decompression bomb shrinks to a thousandth."""
SLACK_BYTES = 1 << 28
"""Bytes that a small archive may unpack to in any case: 256 MB."""

_CHUNK = 1 << 20
# Methods other than deflate decompress a whole block for each read, which may be far larger.
_CHUNK_OTHER_METHODS = 1 << 12
# The most that tarfile may read at once. It reads long headers, whose length the file declares, in
# one piece; 64 MB is far above any real header.
_MAX_READ = 1 << 26


def extract_archive(archive: Path, folder: Path, max_bytes: int | None = None) -> None:
    """Extract a tar file (plain, gzip, bzip2 or xz) or a zip file.

    Args:
        archive: the file.
        folder: where its members go.
        max_bytes: bytes that it may unpack to; None allows ``MAX_RATIO`` times its size, plus
            ``SLACK_BYTES``.

    Raises:
        DownloadError: a member lies outside the folder or is a link or device, the members are too
            large together, the archive is broken, or the folder cannot be written.
    """
    try:
        limit = max_bytes
        if limit is None:
            limit = MAX_RATIO * archive.stat().st_size + SLACK_BYTES
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, folder, limit)
        else:
            _extract_tar(archive, folder, limit)
    except DownloadError:
        raise
    except Exception as error:  # the libraries raise many kinds of errors for broken bytes
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"cannot be unpacked into {folder}: {error.strerror}"
        else:
            reason = f"the archive is broken ({type(error).__name__}); delete it and try again"
        raise DownloadError(f"{archive}: {reason}") from None


class _BoundedFile:
    """A file that refuses to read very much at once, as a tar header can ask for."""

    def __init__(self, archive: Path, file: IO[bytes]) -> None:
        self.archive, self.file = archive, file

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _MAX_READ:
            raise DownloadError(f"{self.archive}: the archive is broken (a header is too long)")
        return self.file.read(count)

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


def _open_decompressed(archive: Path) -> IO[bytes]:
    """Open a tar file through the decompressor that its first bytes name."""
    with archive.open("rb") as file:
        head = file.read(6)
    for mark, library in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma)):
        if head.startswith(mark):
            opened: IO[bytes] = library.open(archive)
            return opened
    return archive.open("rb")


def _extract_tar(archive: Path, folder: Path, max_bytes: int) -> None:
    with _open_decompressed(archive) as file:
        bounded: Any = _BoundedFile(archive, file)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            members, total = [], 0
            # The sizes are checked one by one, before tarfile skips the content of a member, which
            # means decompressing it.
            for member in tar:
                _check_member(archive, member.name, member.isfile() or member.isdir())
                total += member.size
                _check_total(archive, total, max_bytes)
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


def _extract_zip(archive: Path, folder: Path, max_bytes: int) -> None:
    with zipfile.ZipFile(archive) as content:
        entries = content.infolist()
        for entry in entries:
            # The Unix file type is in the high bits: 0 is unset, 4 a folder, 8 a plain file.
            kind = (entry.external_attr >> 28) & 0xF
            _check_member(archive, entry.filename, kind in (0, 4, 8))
        _check_total(archive, sum(entry.file_size for entry in entries), max_bytes)
        for entry in entries:
            target = folder / entry.filename.replace("\\", "/")
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            streams = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            with content.open(entry) as member:
                _copy(member, target, entry.file_size, _CHUNK if streams else _CHUNK_OTHER_METHODS)


def _copy(source: IO[bytes], target: Path, size: int, chunk: int) -> None:
    """Write the content of a member, at most ``size`` bytes, which it declares."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while piece := source.read(chunk):
            file.write(piece)
            if file.tell() > size:
                raise ValueError("a member holds more than it declares")


def _check_total(archive: Path, total: int, max_bytes: int) -> None:
    if total > max_bytes:
        raise DownloadError(
            f"{archive}: expected members of at most {max_bytes:,} bytes together; they declare "
            f"{total:,} bytes or more; if that is right, unpack the archive yourself"
        )


def _check_member(archive: Path, name: str, is_plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not is_plain:
        raise DownloadError(f"{archive}: member {name[:200]!r} is a link or device; refused")
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise DownloadError(f"{archive}: member {name[:200]!r} lies outside the folder; refused")
