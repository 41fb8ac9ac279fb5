"""Fetching a data set's archive: checksum, resume-free atomic file, safe extraction.

Written here and not taken from ``monai.apps``: that logs to standard output, which ``--json``
owns, sets no time limit, and imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from samadapt.data.cards import Download
from samadapt.errors import DownloadError

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 20
_TIMEOUT_S = 30.0

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
    download_file(source.url, archive, source.md5, source.sha256, progress)
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        extract_archive(archive, Path(temporary))
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
) -> None:
    """Fetch a file; it appears under its name only when complete and of the right checksum.

    Raises:
        DownloadError: no connection, or another checksum.
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


def extract_archive(archive: Path, folder: Path) -> None:
    """Extract a tar or zip file; every member is checked before the first is written.

    Raises:
        DownloadError: a member lies outside the folder or is no plain file or folder, or the
            archive is broken.
    """
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, folder)
        else:
            _extract_tar(archive, folder)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DownloadError(
            f"{archive}: the archive is broken ({error}); delete it and try again"
        ) from None


def _extract_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            _check_member(archive, member.name, member.isfile() or member.isdir())
        for member in members:
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            if content is not None:
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file, _CHUNK)


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            kind = (entry.external_attr >> 28) & 0xF  # Unix file type: 0 unset, 4 folder, 8 file
            _check_member(archive, entry.filename, kind in (0, 4, 8))
        content.extractall(folder)


def _check_member(archive: Path, name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain:
        raise DownloadError(f"{archive}: member {name!r} is a link or device; refused")
    if path.is_absolute() or ".." in path.parts or (path.parts and ":" in path.parts[0]):
        raise DownloadError(f"{archive}: member {name!r} lies outside the folder; refused")
