"""Files that unpack to far more than they declare are refused in less than 1 GiB of memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from samadapt.data.findings import FindingError
from samadapt.data.formats.base import read_image
from samadapt.data.formats.nifti.reader import load_nifti
from samadapt.system.limits import MAX_GB, set_limits

GB = 1 << 30
READ = """
import json, sys, tracemalloc
from pathlib import Path
from samadapt.data.formats.base import read_image
from samadapt.errors import DataError
try:
    volume = read_image(Path(sys.argv[1]))
    told = ["read", str(volume.image.shape)]
except DataError as error:
    told = [error.finding.code, str(error)]
# VmHWM and not ru_maxrss, which a process inherits from the one that started it.
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.is_file() else []
peak = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
print(json.dumps([*told, peak]))
"""


def outcome(path: Path) -> tuple[str, str]:
    """Read a file in its own process; return code and message, and check its memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    code, message, peak = json.loads(done.stdout)
    assert peak < GB
    return code, message


def gzip_of(path: Path, head: bytes, zeros: int) -> Path:
    """Write a gzip file of some bytes and many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    path.write_bytes(packer.compress(head + bytes(zeros)) + packer.flush())
    return path


def bomb(head: bytes, zeros: int, wbits: int) -> bytes:
    """Return a deflate stream of many zeros, with a wrong checksum because that is faster."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (zeros >> 24) + packer.flush()


def nifti_header(shape: tuple[int, ...], dtype: str = "uint8") -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(np.eye(4), code="scanner")
    return bytes(header.binaryblock) + bytes(4)


def test_more_than_a_nifti_header_declares(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bomb(nifti_header((8, 8, 8)), 3 * GB, 31))
    assert path.stat().st_size < 4e6
    code, message = outcome(path)
    assert code == "too_large"
    assert "declares 864 bytes; the file holds more" in message


@pytest.mark.slow
def test_more_than_a_large_nifti_header_declares(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bomb(nifti_header((1024, 1024, 2047)), 3 * GB, 31))
    assert outcome(path)[0] == "too_large"


def test_a_nifti_header_that_declares_too_much(tmp_path: Path) -> None:
    path = gzip_of(tmp_path / "a.nii.gz", nifti_header((2048, 2048, 2048)), 1 << 20)
    code, message = outcome(path)
    assert code == "too_large"
    assert "data.max_gb" in message


def test_a_nifti_header_that_declares_more_than_there_is(tmp_path: Path) -> None:
    path = gzip_of(tmp_path / "a.nii.gz", nifti_header((1024, 1024, 2000)), 1 << 20)
    assert outcome(path)[0] == "truncated_file"


def test_an_honest_empty_map_is_read_however_far_it_shrinks(tmp_path: Path) -> None:
    path = gzip_of(tmp_path / "a.nii.gz", nifti_header((512, 512, 400)), 512 * 512 * 400)
    assert path.stat().st_size * 900 < 512 * 512 * 400
    assert load_nifti(path).values.shape == (512, 512, 400)


def test_padding_behind_the_voxels_is_read(tmp_path: Path) -> None:
    content = nifti_header((4, 4, 4)) + bytes(range(64))
    (tmp_path / "a.nii").write_bytes(content + bytes(512))
    assert load_nifti(tmp_path / "a.nii").values.max() == 63
    (tmp_path / "a.nii").write_bytes(content + bytes(5000))
    with pytest.raises(FindingError, match="holds more"):
        load_nifti(tmp_path / "a.nii")


def test_the_key_raises_the_bound(tmp_path: Path) -> None:
    path = gzip_of(tmp_path / "a.nii.gz", nifti_header((64, 64, 64)), 64**3)
    try:
        set_limits(max_gb=1e-4)
        with pytest.raises(FindingError, match=r"at most .*data\.max_gb"):
            load_nifti(path)
        set_limits(max_gb=2e-3)
        assert load_nifti(path).values.shape == (64, 64, 64)
    finally:
        set_limits(max_gb=MAX_GB)


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    first = gzip_of(tmp_path / "a", nifti_header((4, 4, 4)), 0).read_bytes()
    second = gzip_of(tmp_path / "b", bytes(range(64)), 0).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(first + second + bytes(100))
    assert load_nifti(tmp_path / "a.nii.gz").values.max() == 63


def npz(
    path: Path, header: dict[str, object], zeros: int, method: int = zipfile.ZIP_DEFLATED
) -> Path:
    """Write an ``.npz`` in which the header of ``imgs`` does not fit its content."""
    from io import BytesIO

    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, header)
    with (
        zipfile.ZipFile(path, "w", method, compresslevel=1) as archive,
        archive.open("imgs.npy", "w", force_zip64=True) as file,
    ):
        file.write(head.getvalue())
        block = bytes(1 << 24)
        for start in range(0, zeros, len(block)):
            file.write(block[: zeros - start])
    return path


def test_more_than_an_array_declares(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (8, 8)}
    code, message = outcome(npz(tmp_path / "a.npz", header, 3 * GB // 2))
    assert code == "too_large"
    assert "declares 64 bytes" in message


def test_an_array_that_declares_too_much(tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 31,)}
    assert outcome(npz(tmp_path / "a.npz", header, 1000))[0] == "too_large"


@pytest.mark.slow
def test_an_array_packed_in_large_blocks(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30,)}
    path = npz(tmp_path / "a.npz", header, GB, zipfile.ZIP_BZIP2)
    assert path.stat().st_size < 4e6
    assert outcome(path)[0] == "unreadable_image"


def png(path: Path, side: int, zeros: int) -> Path:
    """Write a grey PNG that declares ``side`` x ``side`` pixels and holds many zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", bomb(b"", zeros, 15)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_a_png_that_declares_too_much(tmp_path: Path) -> None:
    assert outcome(png(tmp_path / "a.png", 100_000, 1 << 24))[0] == "too_large"


def test_more_than_a_png_declares(tmp_path: Path) -> None:
    code, _ = outcome(png(tmp_path / "a.png", 64, GB))
    assert code in ("read", "unreadable_image")  # content after the pixels is never unpacked
    assert outcome(png(tmp_path / "b.png", 6000, GB))[0] == "too_large"


def test_a_png_that_holds_less_than_it_declares(tmp_path: Path) -> None:
    """The stream ends properly, and PIL reads missing pixels as black."""
    code, message = outcome(png(tmp_path / "a.png", 16_000, 1 << 24))
    assert code == "truncated_file"
    assert "declares 256,016,000 bytes of pixels; it holds 16,777,216" in message


@pytest.mark.parametrize("interlaced", [0, 1])
def test_an_honest_png_of_one_colour(tmp_path: Path, interlaced: int) -> None:
    from PIL import Image

    from samadapt.data.formats.shared.png_safety import check_png

    path = tmp_path / "a.png"
    Image.new("RGB", (3001, 2003)).save(path)
    if interlaced:
        sides = [(3001, 2003, 8, 8, 0, 0), (3001, 2003, 8, 8, 4, 0), (3001, 2003, 4, 8, 0, 4)]
        sides += [(3001, 2003, 4, 4, 2, 0), (3001, 2003, 2, 4, 0, 2), (3001, 2003, 2, 2, 1, 0)]
        sides += [(3001, 2003, 1, 2, 0, 1)]
        total = sum(-(-(h - y) // dy) * (1 + 3 * -(-(w - x) // dx)) for w, h, dx, dy, x, y in sides)
        content = path.read_bytes()
        head = struct.pack(">IIBBBBB", 3001, 2003, 8, 2, 0, 0, 1)
        packed = zlib.compress(bytes(total))
        chunks = [(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")]
        body = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        ]
        path.write_bytes(content[:8] + b"".join(body))
    check_png(path)
    assert read_image(path).shape == (2003, 3001, 1)


def test_a_tiff_strip_that_unpacks_to_more(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 64, 64), np.uint8), compression="zlib")
    strip = bomb(b"", 2 * GB, 15)
    with tifffile.TiffFile(path) as tif:
        tags = [tif.pages[0].tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
    content = bytearray(path.read_bytes())
    for at, number in zip(tags, (len(content), len(strip)), strict=True):
        content[at : at + 4] = struct.pack("<I", number)
    path.write_bytes(bytes(content) + strip)
    code, message = outcome(path)
    assert code in ("too_large", "truncated_file")
    assert "a.tif" in message


def test_a_tiff_that_declares_too_much(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 64, 64), np.uint8), compression="zlib")
    with tifffile.TiffFile(path) as tif:
        places = [tif.pages[0].tags[name].offset + 8 for name in ("ImageWidth", "ImageLength")]
    content = bytearray(path.read_bytes())
    for at in places:
        content[at : at + 4] = struct.pack("<I", 1 << 20)
    path.write_bytes(bytes(content))
    assert outcome(path)[0] in ("too_large", "truncated_file", "unreadable_image")


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_an_itk_header_that_declares_too_much(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("SimpleITK")
    path = tmp_path / f"a{suffix}"
    packed = zlib.compress(bytes(1 << 24))
    if suffix == ".mha":
        head = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            f"CompressedData = True\nCompressedDataSize = {len(packed)}\n"
            "DimSize = 4096 4096 4096\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
            "ElementDataFile = LOCAL\n"
        )
    else:
        head = (
            "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4096 4096 4096\nencoding: gzip\n"
            "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
            "space origin: (0,0,0)\n\n"
        )
    path.write_bytes(head.encode() + packed)
    assert outcome(path)[0] == "too_large"


def test_values_that_are_infinite_as_float32(tmp_path: Path) -> None:
    values = np.ones((4, 4, 4))
    values[0, 0, 0] = 1e300
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(FindingError, match="above the largest float32"):
        read_image(tmp_path / "a.nii")


def test_a_gif_of_some_bytes_with_a_large_canvas(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "a.gif"
    Image.new("P", (4, 4), 1).save(path)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", 16_000, 16_000)
    path.write_bytes(bytes(content))
    assert outcome(path)[0] == "too_large"
