"""Files that samadapt does not read: what they are, by name or first bytes, and what to do."""

from __future__ import annotations

from pathlib import Path

_CONVERT = "python -c \"import nibabel as nib; nib.save(nib.load('{}'), '{}')\""
_NAMES = {
    ".hdr": "an Analyze 7.5 image or a NIfTI pair (.hdr with .img)",
    ".img": "an Analyze 7.5 image or a NIfTI pair (.hdr with .img)",
    ".mgh": "a FreeSurfer volume",
    ".mgz": "a FreeSurfer volume",
    ".mnc": "a MINC volume",
}
_CONTENT = (  # offset, the bytes there, what the file is, what to do
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"BZh", "compressed with bzip2", "unpack it (bunzip2), or compress it with gzip"),
    (0, b"\xfd7zXZ", "compressed with xz", "unpack it (unxz), or compress it with gzip"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it, or compress it with gzip"),
    (0, b"NRRD", "a NRRD volume", "name it .nrrd and use data=itk"),
    (0, b"ObjectType", "a MetaImage volume", "name it .mha and use data=itk"),
    (128, b"DICM", "a DICOM file", "use data=dicom, or convert the series (dcm2niix)"),
    (0, b"\x89HDF", "an HDF5 file", "convert it to .nii.gz"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the data", "fetch it: git lfs pull"),
    (0, b"<!", "a web page, not the data", "download the file again"),
    (0, b"<html", "a web page, not the data", "download the file again"),
)


def by_name(path: Path) -> tuple[str, str] | None:
    """Return what a file is and how to convert it, if its name shows a kind that is not read."""
    ending = path.suffix.lower()
    if ending not in _NAMES:
        return None
    source = path.with_suffix(".img").name if ending == ".hdr" else path.name
    command = _CONVERT.format(source, f"{path.stem}.nii.gz")
    caution = "; Analyze does not store which side is left: compare the result with its source"
    what = "convert it to .nii.gz: "
    return _NAMES[ending], what + command + (caution if ending in (".hdr", ".img") else "")


def by_content(content: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do, from its first bytes; None if they do not show it.

    Args:
        content: at least the first 348 bytes.
    """
    for place, mark, what, fix in _CONTENT:
        if content[place : place + len(mark)].lower() == mark.lower():
            return what, fix
    if content[:4] in (
        b"\x5c\x01\0\0",
        b"\0\0\x01\x5c",
    ):  # 348, the length of the header, in either byte order
        if content[344:347] == b"ni1":
            return "the header of a NIfTI pair", "convert it, with its .img, to .nii.gz (nibabel)"
        if content[344:347] != b"n+1":
            return "an Analyze 7.5 header", "convert it, with its .img, to .nii.gz (nibabel)"
    return None
