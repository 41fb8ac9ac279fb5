"""Archives with chosen members."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """Return a member of an archive: a file, or another kind such as a link."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


def write_tar(path: Path, members: list[tarfile.TarInfo], mode: str = "w:gz") -> Path:
    """Write an archive whose files all hold ``hello``."""
    with tarfile.open(path, mode) as tar:
        for info in members:
            content = b"hello" if info.isfile() else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
