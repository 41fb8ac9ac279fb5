"""Deflated DICOM files that unpack to more than they declare, and too many frames."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data.findings import FindingError
from samadapt.data.formats.base import read_image
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.dicom.frames import frames_of

pydicom = pytest.importorskip("pydicom")
READ = """
import sys
from pathlib import Path
from samadapt.data.formats.base import read_image
from samadapt.errors import DataError
try:
    read_image(Path(sys.argv[1]))
except DataError as error:
    told = error.finding.code
# VmHWM and not ru_maxrss, which a process inherits from the one that started it.
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.is_file() else []
peak = sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(told, peak)
"""


@pytest.fixture
def parts(make_series: Callable[..., list[Path]], tmp_path: Path) -> tuple[bytes, bytes]:
    """Return a preamble with file meta information that says "deflated", and a plain data set."""
    planes = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8)
    path = make_series(tmp_path / "series", planes)[0]
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    head, body = BytesIO(), BytesIO()
    head.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(head, data.file_meta)
    pydicom.filewriter.write_dataset(_explicit(body), data)
    return head.getvalue(), body.getvalue()


def _explicit(stream: BytesIO) -> Any:
    file = pydicom.filebase.DicomFileLike(stream)
    file.is_little_endian, file.is_implicit_VR = True, False
    return file


def _deflated(body: bytes, zeros: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(body) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed + block * (zeros >> 24) + packer.flush()


def test_a_deflated_file_is_read(parts: tuple[bytes, bytes], tmp_path: Path) -> None:
    head, body = parts
    (tmp_path / "a.dcm").write_bytes(head + _deflated(body, 0))
    assert read_image(tmp_path / "a.dcm").shape == (8, 8, 1)


def test_a_deflated_bomb(parts: tuple[bytes, bytes], tmp_path: Path) -> None:
    head, body = parts
    path = tmp_path / "a.dcm"
    path.write_bytes(head + _deflated(body, 8 << 30))
    assert path.stat().st_size < 16e6
    with pytest.raises(FindingError, match="unpacks to more"):
        read_file(path, ["Rows"])
    told = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    code, peak = told.stdout.split()
    assert code == "too_large"
    if sys.platform == "linux":  # elsewhere it is counted in another unit
        assert int(peak) < 1 << 20


def test_frames_without_number(make_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    planes = np.ones((1, 1, 1), dtype=np.uint16)
    path = make_series(tmp_path, planes, NumberOfFrames=2_000_000_000)[0]
    with pytest.raises(FindingError, match="frames in"):
        frames_of(path)
