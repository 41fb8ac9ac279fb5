"""NRRD and MetaImage volumes through SimpleITK, in the folder layouts of ``volume_layout.py``.

Masks may be segmentations of 3D Slicer; see ``slicer_seg.py``. ITK's space is LPS+ (x to the
patient's left, y to posterior); turning the signs of x and y gives RAS+.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samadapt.data.channels import ChannelError, Indices, need_one, pick
from samadapt.data.classes import chosen_values
from samadapt.data.findings import FindingError, check_bytes, check_size, fault
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.itk.data_files import data_files, is_metaimage
from samadapt.data.formats.itk.slicer_seg import ENDINGS as SLICER
from samadapt.data.formats.itk.slicer_seg import label_map, number_segments, placed, read_segments
from samadapt.data.formats.nifti.affine import is_singular
from samadapt.data.formats.nifti.reader import load_nifti
from samadapt.data.formats.nifti.write import SUFFIXES
from samadapt.data.formats.shared.stored_volume import LPS_TO_RAS, StoredVolume
from samadapt.data.formats.shared.volume_reader import VolumeReader
from samadapt.data.formats.shared.volume_slices import check_prediction, made_header, to_source
from samadapt.data.types import Case, Volume
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

_SINGLE = (".nrrd", ".mha")
_HEADERS = (".nhdr", ".mhd")
_DEFLATE_RATIO = 1040
"""No deflate stream is more than 1032 times smaller than its content (zlib's documentation)."""


@register_reader("itk", "nrrd", "metaimage")
class ItkReader(VolumeReader):
    """Reads NRRD and MetaImage volumes."""

    summary = "NRRD and MetaImage volumes (.nrrd .nhdr .mha .mhd): layouts as nifti; extra itk"
    takes_channels: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = (".nrrd", ".nhdr", ".mha", ".mhd")
    output_suffixes: ClassVar[tuple[str, ...]] = (*SUFFIXES, *_SINGLE)
    needs: ClassVar[tuple[str, str] | None] = ("SimpleITK", "itk")

    def load(self, path: Path, channel: Indices = None) -> StoredVolume:
        """Read one file. A mask that ``data.label`` names may be NIfTI."""
        if path.name.lower().endswith(SUFFIXES):
            return load_nifti(path, channel, self.options.spacing)
        return load_itk(path, channel, self.options.root)

    def discover(self) -> Layout:
        """List the cases of the folder; the segments of Slicer's masks name the classes."""
        layout = super().discover()
        masks = [case.labels for case in layout.cases if case.labels is not None]
        self._segments = {path: read_segments(path) for path in masks}
        values = number_segments(self._segments, layout.classes)
        if values and layout.classes is None:
            layout.classes = {name: (value,) for name, value in values.items()}
        self._values = values
        return layout

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return the headers and their data files.

        None for segmentations of Slicer, whose values depend on the segments of all cases, and
        where ITK alone knows the data files.
        """
        found = list(super().sources(case) or ())
        if any(self._segments.values()):
            return None
        for path in list(found):
            if path.name.lower().endswith(_HEADERS):
                try:
                    files = data_files(path, self.options.root)[1]
                except (FindingError, OSError):
                    return None  # ``examine`` reports it
                if not files:
                    return None
                found += files
        return found

    def load_labels(
        self, case: Case, path: Path, image: StoredVolume | None
    ) -> StoredVolume | None:
        """Read the mask of a case; a segmentation of Slicer is put in its place in the image."""
        segments = self._segments.get(path, [])
        if not segments and not path.name.lower().endswith(SLICER):
            return super().load_labels(case, path, image)
        if image is None:
            return None
        stored = load_layers(path, self.options.root)
        values = None if self._values is None else chosen_values(self.options.classes, self._values)
        labels = label_map(path, stored.values, segments, values)
        return placed(path, stored._replace(values=labels), image)

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids with the direction, origin and spacing of the source."""
        import SimpleITK as sitk  # noqa: N813

        if not path.name.lower().endswith(_SINGLE):
            raise DataError(f"{path}: labels are written as {' or '.join(_SINGLE)} here")
        if volume.source is None:
            raise DataError(f"{path}: a picture has no grid; write it as .png")
        check_prediction(prediction, volume.source, path)
        dtype = np.uint8 if prediction.size == 0 or prediction.max() < 256 else np.int16
        values = to_source(prediction.astype(dtype), volume.source)
        axes = values.ndim
        affine = LPS_TO_RAS @ volume.source.affine  # turning two signs is its own inverse
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        image.SetSpacing(spacing[:axes].tolist())
        image.SetOrigin(affine[:axes, 3].tolist())
        image.SetDirection((affine[:3, :3] / spacing)[:axes, :axes].ravel().tolist())
        with atomic.file(path) as part:
            sitk.WriteImage(image, str(part), useCompression=True)


def load_itk(path: Path, channel: Indices = None, root: Path | None = None) -> StoredVolume:
    """Read a NRRD or MetaImage file.

    Args:
        path: ``.nrrd``, ``.mha``, or a header ``.nhdr``, ``.mhd`` with its data file.
        channel: index of the component of a multi-component or 4D image, or several.
        root: the data set's folder. A data file must lie in it, or below the header's folder.

    Returns:
        The volume (x, y, z), or (x, y, z, c) with several channels.

    Raises:
        FindingError: the file is missing, broken or of a kind that cannot be used.
    """
    return _as_stored(path, *_read(path, root), channel)


def load_layers(path: Path, root: Path | None = None) -> StoredVolume:
    """Read all layers of a segmentation of Slicer, (x, y, z, layer); raises as ``load_itk``."""
    image, values = _read(path, root)
    try:
        stored = _as_stored(path, image, values, None)
    except ChannelError as several:
        return _as_stored(path, image, values, tuple(range(several.count)))
    return stored._replace(values=stored.values[..., None])


def _read(path: Path, root: Path | None) -> tuple[Any, Array]:
    """Return ITK's image and its array (…, z, y, x, component)."""
    if find_spec("SimpleITK") is None:
        fix = "install it: pip install 'samadapt[itk]'"
        raise fault("missing_package", path, "SimpleITK is needed to read it", fix)
    import SimpleITK as sitk  # noqa: N813

    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    stored = data_files(path, root)
    reader: Any = sitk.ImageFileReader()
    # ITK is told the format, and does not try other formats on the file.
    reader.SetImageIO("MetaImageIO" if is_metaimage(path) else "NrrdImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        message = f"its header cannot be read as NRRD or MetaImage ({type(error).__name__})"
        raise fault("bad_header", path, message, "export it again") from None
    _check(path, reader, stored)
    try:
        image = reader.Execute()
        return image, np.asarray(sitk.GetArrayFromImage(image))
    except (RuntimeError, MemoryError) as error:
        message = f"the voxels cannot be read ({type(error).__name__})"
        raise fault("truncated_file", path, message, "copy or export it again") from None


def _as_stored(path: Path, image: Any, values: Array, channel: Indices) -> StoredVolume:
    """Return the array (…, z, y, x, component) and the geometry of an ITK image as a volume."""
    several = image.GetNumberOfComponentsPerPixel() > 1, image.GetDimension() == 4
    if all(several):
        message = "expected one list of channels; it has components and a fourth axis"
        raise fault("bad_shape", path, message, "split the file into volumes")
    if any(several):
        values = pick(path, values if several[0] else np.moveaxis(values, 0, -1), channel)
    else:
        need_one(path, channel)
    if isinstance(channel, tuple):
        values = np.moveaxis(values, -1, 0)  # (c, z, y, x): its transpose is (x, y, z, c)
    axes = min(image.GetDimension(), 3)
    spacing = np.array(image.GetSpacing()[:axes])
    side = image.GetDimension()
    # The columns of ITK's direction matrix are unit vectors along the axes of the file.
    direction = np.array(image.GetDirection()).reshape(side, side)[:axes, :axes]
    affine = np.eye(4)
    affine[:axes, :axes] = direction * spacing
    affine[:axes, 3] = image.GetOrigin()[:axes]
    if is_singular(affine):
        message = "its directions cannot be inverted: an axis has no length of its own"
        raise fault("bad_spacing", path, message, "set the true orientation and spacing")
    affine = LPS_TO_RAS @ affine
    values = values.T
    shape = values.shape[:axes]
    channels = values.shape[axes:]
    values = values.reshape((*shape, 1)[:3] + channels)  # a picture gets a third axis
    return StoredVolume(values, affine, made_header(shape, affine))


def _check(path: Path, reader: Any, stored: tuple[str, list[Path]]) -> None:
    """Refuse a header that ITK would only find wrong after it has taken memory.

    Args:
        path: the file.
        reader: ITK's, which has read the header.
        stored: the encoding and the data files.
    """
    encoding, files = stored
    shape = [int(side) for side in reader.GetSize()]
    if not 2 <= len(shape) <= 4:
        message = f"expected 2 to 4 axes; its shape is {tuple(shape)}"
        raise fault("bad_shape", path, message, "split the file into volumes")
    spacing = [float(side) for side in reader.GetSpacing()]
    if not all(math.isfinite(side) and side > 0 for side in spacing[:3]):
        message = f"voxel spacing must be positive; the header says {spacing}"
        raise fault("bad_spacing", path, message, "set the true spacing (mm) in the header")
    dtype = _dtype(path, reader.GetPixelID())
    components = reader.GetNumberOfComponents()
    check_size(path, [*shape, components])
    missing = [file for file in files if not file.is_file()]
    if missing:
        message = f"its data file {missing[0].name} is missing"
        raise fault("missing_file", path, message, "put the data file beside the header")
    needed = math.prod(shape) * components * dtype.itemsize
    check_bytes(path, needed)
    held = sum(file.stat().st_size for file in files)
    if (
        encoding in ("raw", "deflate")
        and held * (_DEFLATE_RATIO if encoding == "deflate" else 1) < needed
    ):
        message = f"its shape {tuple(shape)} needs {needed} bytes; {held} are stored"
        raise fault("truncated_file", path, message, "copy or export it again")


def _dtype(path: Path, pixel_id: int) -> np.dtype[Any]:
    """Return a type of the size of one number, and refuse numbers that are not real.

    ITK names its types in words, such as "16-bit signed integer".
    """
    import SimpleITK as sitk  # noqa: N813

    name = sitk.GetPixelIDValueAsString(pixel_id)
    bits = {"8-bit": 1, "16-bit": 2, "32-bit": 4, "64-bit": 8}
    if name.split(" ")[-1].lower() in ("integer", "float") and "complex" not in name.lower():
        for word in name.split():
            if word in bits:
                return np.dtype(f"V{bits[word]}")
    message = f"expected real numbers; its voxels are: {name}"
    raise fault("unsupported_dtype", path, message, "save it as int16 or float32")
