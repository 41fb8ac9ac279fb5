"""MedSAM's arrays: ``.npz`` files with ``imgs`` and ``gts``, or ``imgs/*.npy`` and ``gts/*.npy``.

A file contains a volume, (d, h, w) with labels (d, h, w), or a picture, (h, w) or (h, w, 3) with
labels (h, w). ``spacing``, if an ``.npz`` file has it, is (x, y, z) in mm, in the order of
SimpleITK. Without it distances in mm are unknown. 8-bit values stay as they are; colours that are
fractions become 0-255. Predictions are written as ``.npz`` with the key ``segs``, or as NIfTI or
PNG. Pickled objects are never loaded, because they can run code.

Source: ``pre_CT_MR.py`` and ``pre_grey_rgb.py`` of bowang-lab/MedSAM.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samadapt.data.channels import Indices
from samadapt.data.findings import (
    Finding,
    FindingError,
    check_bytes,
    check_size,
    error_finding,
    fault,
    too_large,
    warning_finding,
)
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.nifti.write import SUFFIXES
from samadapt.data.formats.shared.stored_volume import StoredVolume, stack_without_orientation
from samadapt.data.formats.shared.volume_reader import VolumeReader
from samadapt.data.formats.shared.volume_values import finite_image, whole_labels
from samadapt.data.types import Case, Volume
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

_AGAIN = "copy it again, or run the pre-processing again"


@register_reader("medsam_npz")
class MedSamReader(VolumeReader):
    """Reads MedSAM's ``.npz`` and ``.npy`` files."""

    summary = "MedSAM's .npz (imgs, gts, spacing), or folders imgs/ and gts/ of .npy files"
    suffixes: ClassVar[tuple[str, ...]] = (".npz", ".npy")
    output_suffixes: ClassVar[tuple[str, ...]] = (".npz", *SUFFIXES, ".png")
    default_intensity = "rgb"
    file_keys: ClassVar[tuple[str, ...]] = ("root",)

    def discover(self) -> Layout:
        """List ``imgs/`` and ``gts/``, or every ``.npz`` below the root."""
        root, layout = self.options.root, Layout()
        if root is None or not root.is_dir():
            found = "there is no such folder" if root else "no folder is given"
            message = f"expected .npz files, or imgs/ and gts/ with .npy files; {found}"
            layout.findings.append(
                error_finding("missing_folder", root or Path("data.root"), message, "set data.root")
            )
            return layout
        if (root / "imgs").is_dir():
            pairs = [{p.stem: p for p in (root / part).glob("*.npy")} for part in ("imgs", "gts")]
            for name in sorted({*pairs[0], *pairs[1]}):
                image = pairs[0].get(name, root / "imgs" / f"{name}.npy")
                layout.cases.append(Case(name, image, pairs[1].get(name)))
        else:
            for path in sorted(root.rglob("*.npz")):
                name = "_".join(path.relative_to(root).with_suffix("").parts)
                layout.cases.append(Case(name, path, path))
        if not layout.cases:
            message = "no .npz file in it, and no imgs/ with .npy files"
            layout.findings.append(error_finding("no_cases", root, message, "check data.root"))
        return layout

    def load(self, path: Path, channel: Indices = None) -> StoredVolume:
        """Read the image of a file as a volume; a grey picture becomes one slice."""
        image, spacing = _image(path)
        return stack_without_orientation(image if image.ndim == 3 else image[None], spacing)

    def read_image(self, path: Path) -> Volume:
        """Read a picture or a volume without labels."""
        image, spacing = _image(path)
        return self._as_volume(path, image, spacing, None)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check the image and the labels."""
        findings: list[Finding] = []
        image = labels = spacing = None
        try:
            if not case.image.is_file() and case.labels is not None:
                message = f"these labels have no image; expected {case.image}"
                raise fault("missing_image", case.labels, message, "add the image")
            if case.labels is None:
                raise fault("missing_label", case.image, "gts/ has no such file", "add it")
            labels = whole_labels(case.labels, _array(case.labels, "gts"))
            image, spacing = _image(case.image)
            findings += _compare(case, image, labels)
        except FindingError as problem:
            findings.append(problem.finding)
        if image is None or labels is None or any(f.severity == "error" for f in findings):
            return None, findings
        try:
            return self._as_volume(case.image, image, spacing, labels), findings
        except FindingError as problem:
            return None, [*findings, problem.finding]

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids as ``segs``, with axes as in the source: (d, h, w) or (h, w)."""
        if path.suffix.lower() != ".npz":
            raise DataError(f"{path}: these labels are written as .npz; choose a name that ends so")
        if prediction.shape[:2] != volume.shape[:2]:
            raise DataError(f"{path}: expected {volume.shape}; got {prediction.shape}")
        # Back to the axes of the file: slices first.
        planes = (
            prediction[:, :, 0]
            if prediction.ndim == 3 and volume.source is None
            else (np.moveaxis(prediction, 2, 0) if prediction.ndim == 3 else prediction)
        )
        with atomic.file(path) as part:
            np.savez_compressed(part, segs=planes)

    def _as_volume(
        self,
        path: Path,
        image: Array,
        spacing: tuple[float, float, float] | None,
        labels: Array | None,
    ) -> Volume:
        # A volume of 3 columns looks like a colour picture; its labels have three axes.
        is_color = image.ndim == 3 and image.shape[2] == 3 and (labels is None or labels.ndim == 2)
        if image.ndim not in (2, 3) or (
            labels is not None and image.ndim - is_color != labels.ndim
        ):
            message = f"imgs has the shape {image.shape}; expected (h, w), (h, w, 3) or (d, h, w)"
            raise fault("colour_volume", path, message, "save each picture as a file of its own")
        if is_color:
            return Volume(
                _colours(path, image), None if labels is None else labels[:, :, None], is_color=True
            )
        values = image if image.dtype == np.uint8 else finite_image(path, image)
        if image.ndim == 2:
            return Volume(values[:, :, None], None if labels is None else labels[:, :, None])
        grid = stack_without_orientation(values, spacing)
        return self.arrange(
            grid, grid.values, None if labels is None else labels.transpose(2, 1, 0)
        )


def _compare(case: Case, image: Array, labels: Array) -> list[Finding]:
    file = case.labels or case.image
    if image.ndim == 4 and image.shape[:3] == labels.shape:
        message = f"a stack of colour pictures {image.shape} cannot be read as a volume"
        return [error_finding("colour_volume", case.image, message, "save each picture as a file")]
    shape = image.shape[:2] if image.ndim == labels.ndim + 1 else image.shape
    if labels.shape != shape or labels.ndim not in (2, 3):
        message = f"gts has the shape {labels.shape}; imgs has {image.shape}"
        return [error_finding("shape_mismatch", file, message, "save both at the same size")]
    findings = []
    if image.min() == image.max():
        message = f"all of imgs has the value {float(image.min()):g}"
        findings.append(error_finding("constant_image", case.image, message, _AGAIN))
    if not labels.any():
        message, fix = "gts is empty: no value differs from 0", "check that it is the right file"
        findings.append(warning_finding("no_foreground", file, message, fix))
    return findings


def _colours(path: Path, image: Array) -> Array:
    """Return colours (h, w, 3) as uint8; they are integers 0-255 or fractions 0..1."""
    if image.dtype == np.uint8:
        return image
    values = finite_image(path, image)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > (1 if image.dtype.kind == "f" else 255):
        message = f"colours must be 0..255 in 8 bits or fractions of 0..1; found {low:g}..{high:g}"
        raise fault("colour_range", path, message, "scale them and save the file again")
    return np.asarray(np.rint(values * (255 if image.dtype.kind == "f" else 1)), dtype=np.uint8)


def _image(path: Path) -> tuple[Array, tuple[float, float, float] | None]:
    image = _array(path, "imgs")
    if image.dtype.kind not in "iufb":
        message = f"expected real numbers; its type is {image.dtype}"
        raise fault("unsupported_dtype", path, message, "save it as uint8 or float32")
    if image.ndim not in (2, 3, 4):
        message = f"expected (h, w), (h, w, 3) or (d, h, w); its shape is {image.shape}"
        raise fault("bad_shape", path, message, _AGAIN)
    finite_image(path, image)
    if path.suffix.lower() != ".npz":
        return image, None
    spacing = _array(path, "spacing", is_needed=False)
    if spacing is None:
        return image, None
    usable = spacing.shape == (3,) and spacing.dtype.kind in "iuf"
    if not usable or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        message = f"spacing must be three positive numbers in mm; got {str(spacing)[:60]}"
        raise fault("bad_spacing", path, message, "correct or leave out the key spacing")
    x, y, z = (float(side) for side in spacing)
    return image, (x, y, z)


def _array(path: Path, key: str, *, is_needed: bool = True) -> Any:
    """Return the array of a ``.npy`` file, or one array of a ``.npz`` file.

    None if the file lacks an array that is not needed.

    Raises:
        FindingError: the file is missing, broken or pickled, or it lacks the array.
    """
    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    try:
        try:
            return _read_array(path, key, is_needed=is_needed)
        except SystemError:
            # numpy lets Python parse the header, and before 3.11.8 and 3.12.1 that may fail if
            # another thread parses something at the same moment.
            return _read_array(path, key, is_needed=is_needed)
    except FindingError:
        raise
    except Exception as problem:  # zipfile, zlib and numpy raise many kinds
        if "pickle" in str(problem).lower() or "Python objects" in str(problem):
            message = f"{key} holds pickled objects, which are never loaded"
            raise fault("pickled_array", path, message, "save plain arrays") from None
        message = f"cannot be read as {path.suffix} ({type(problem).__name__})"
        raise fault("unreadable_image", path, message, _AGAIN) from None


def _read_array(path: Path, key: str, *, is_needed: bool) -> Any:
    """Do what ``_array`` does, with the errors of zipfile, zlib and numpy."""
    if path.suffix.lower() != ".npz":
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # np.load treats other files as pickles
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # no pixel is read yet
        check_size(path, array.shape)
        check_bytes(path, array.nbytes)
        return np.array(array)
    with zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            if not is_needed:
                return None
            held = len(archive.namelist())
            message = f"expected the key {key!r}, which is not among its {held} arrays"
            raise fault("missing_key", path, message, _AGAIN)
        _check_member(path, archive, f"{key}.npy")
        with archive.open(f"{key}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _check_member(path: Path, archive: zipfile.ZipFile, name: str) -> None:
    """Refuse an array whose header declares more, or less, than the archive contains.

    The check needs no memory for the array.

    Raises:
        FindingError: naming the file.
    """
    entry = archive.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile unpacks a whole block of bzip2 or LZMA at once, of whatever size.
        message = f"{name} is compressed in a way that numpy never writes"
        raise fault("unreadable_image", path, message, "save it with np.savez_compressed")
    with archive.open(entry) as file:
        # An .npy member begins with a magic, a version and a header with shape and type.
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        begins = file.tell()
    if shape:
        check_size(path, shape)
    needed, held = math.prod(shape) * int(dtype.itemsize), entry.file_size - begins
    check_bytes(path, needed)
    if not dtype.hasobject and held < needed:
        message = f"{name} declares {needed} bytes for shape {shape}; it holds {held}"
        raise fault("truncated_file", path, message, _AGAIN)
    if not dtype.hasobject and held > needed:
        message = f"{name} declares {needed} bytes for shape {shape}; it holds {held}"
        raise too_large(path, message)
