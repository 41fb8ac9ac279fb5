"""Download the data set of a card into the cache folder."""

from __future__ import annotations

import logging
from pathlib import Path

from samadapt.data.cards import Download
from samadapt.errors import DownloadError
from samadapt.system.archives import SLACK_BYTES
from samadapt.system.cache import cache_folder
from samadapt.system.download import MAX_ARCHIVE_BYTES, Progress, download_archive

logger = logging.getLogger(__name__)


def fetch_dataset(name: str, source: Download, progress: Progress | None = None) -> Path:
    """Return the folder of a data set; download and unpack it if it is not there yet.

    Args:
        name: name of the card.
        source: the card's ``download``.
        progress: called while the archive is downloaded.

    Raises:
        DownloadError: there is no connection, the checksum is wrong, or the archive is unsafe or
            broken.
    """
    folder = cache_folder("datasets") / source.folder
    if folder.is_dir():
        return folder
    size = f" ({source.megabytes:g} MB)" if source.megabytes else ""
    logger.info("downloading %s%s from %s", name, size, source.url)
    checksum = f"sha256:{source.sha256}" if source.sha256 else f"md5:{source.md5}"
    # More than twice the size on the card is refused: a wrong server must not fill the disk.
    most = int(2e6 * source.megabytes) + SLACK_BYTES if source.megabytes else MAX_ARCHIVE_BYTES
    unpacked = source.unpacked_megabytes
    try:
        return download_archive(
            source.url,
            folder,
            checksum=checksum.lower(),
            progress=progress,
            max_bytes=most,
            max_unpacked_bytes=int(1e6 * unpacked) if unpacked else None,
        )
    except DownloadError as error:
        raise DownloadError(
            f"the data set {name!r} could not be fetched: {error}; or fetch the archive by other "
            "means, unpack it, and set data.root to its folder"
        ) from error
