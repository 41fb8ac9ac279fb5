"""What the readers of all volume formats share: checks, slicing, and predictions on the grid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from samadapt.data.channels import ChannelError, Indices, listed, mask_with_channels
from samadapt.data.formats.base import Layout, Reader
from samadapt.data.formats.nifti.grid import (
    SUFFIXES,
    finite_image,
    load_grid,
    made_header,
    save_labels,
    source_grid,
    spacing_of,
    to_slices,
    whole_labels,
)
from samadapt.data.formats.shared.volume_layout import channel_beside, discover_volumes
from samadapt.data.types import Case, Finding, FindingError, Volume
from samadapt.errors import DataError
from samadapt.system.arrays import Array


class Grid(NamedTuple):
    """A volume as its file holds it.

    Attributes:
        values: (x, y, z), or (x, y, z, c) of several channels, any real type.
        affine: (4, 4) float64, voxel to RAS+ mm.
        header: NIfTI header for predictions; None: one is made from the affine.
        axis: canonical axis to slice along where the user names none; None: the one with the
            largest spacing.
        in_mm: the affine's lengths are mm; a file that does not state its spacing has none.
        findings: warnings.
        is_placed: the affine says where the image lies; a picture or a film lies nowhere, and its
            mask is compared by shape alone.
        files: the files that it was read from, where a folder holds others too.
    """

    values: Array
    affine: Array
    header: Any = None
    axis: int | None = None
    in_mm: bool = True
    findings: tuple[Finding, ...] = ()
    is_placed: bool = True
    files: tuple[Path, ...] = ()

    @property
    def nifti_header(self) -> Any:
        """The file's NIfTI header, or one made for its grid."""
        return (
            made_header(self.values.shape[:3], self.affine) if self.header is None else self.header
        )


def load_nifti(path: Path, channel: Indices = None, spacing: str | None = None) -> Grid:
    """Read a NIfTI file; arguments and errors are those of ``nifti_grid.load_grid``."""
    values, header = load_grid(path, channel, spacing)
    return Grid(values, np.asarray(header.get_best_affine(), dtype=np.float64), header)


def stack_grid(planes: Array, spacing: tuple[float, float, float] | None) -> Grid:
    """Return the grid of a stack without orientation: its planes are the slices, as they are.

    Args:
        planes: (z, y, x), or (c, z, y, x) of several channels.
        spacing: (x, y, z) in mm, or None where it is unknown.
    """
    x, y, z = spacing or (1.0, 1.0, 1.0)
    affine = np.diag([-x, -y, z, 1.0])  # rows to the back, columns to the left: upright as stored
    return Grid(planes.T, affine, axis=2, in_mm=spacing is not None)


def join_channels(paths: Sequence[Path], grids: Sequence[Grid]) -> Grid:
    """Return one grid of several files, each a channel.

    Raises:
        FindingError: voxels are not finite, or a file does not lie on the grid of the first.
    """
    first, planes = grids[0], []
    for path, grid in zip(paths, grids, strict=True):
        found = compare_grids(paths[0], path, first, grid)
        if found:
            grid = turned(grid, first.affine)
            if compare_grids(paths[0], path, first, grid):
                raise FindingError(
                    replace(found[0], fix="resample the channels of a case to one grid")
                )
        planes.append(finite_image(path, grid.values))
    findings = tuple(finding for grid in grids for finding in grid.findings)
    return first._replace(values=np.stack(planes, axis=-1), findings=findings)


class VolumeReader(Reader):
    """Reads volumes of one format; a format says how one file becomes a ``Grid``."""

    output_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    file_keys: ClassVar[tuple[str, ...]] = ("root", "image", "label")

    @abstractmethod
    def load(self, path: Path, channel: Indices = None) -> Grid:
        """Read one file.

        Args:
            path: image or mask.
            channel: index of the channel of a multi-channel file; several are the fourth axis.

        Raises:
            FindingError: the file is missing, broken or of a kind that cannot be used.
        """

    def load_image(self, case: Case) -> Grid:
        """Read the image of a case, whose channels may be files; raises as ``load``."""
        if case.files:
            return self.load_files(case.files)
        return self.load(case.image, case.channel)

    def load_files(self, paths: Sequence[Path]) -> Grid:
        """Read the files of one case, each a channel; raises as ``load``."""
        return join_channels(paths, [self.load(path) for path in paths])

    def load_labels(self, case: Case, path: Path, image: Grid | None) -> Grid | None:
        """Read the mask of a case, whose image is given unless it is broken; raises as ``load``.

        None: a mask that cannot be read without its image.
        """
        try:
            return self.load(path)
        except ChannelError as problem:
            raise mask_with_channels(path, problem.count) from None

    def discover(self) -> Layout:
        """List the cases of the folder."""
        return discover_volumes(self.options, self.suffixes)

    def read_image(self, path: Path) -> Volume:
        """Read a volume without labels, sliced along ``options.axis``."""
        grid = self._load_chosen(path)
        volume = self.arrange(grid, finite_image(path, grid.values))
        return replace(volume, files=grid.files, findings=grid.findings)

    def _load_chosen(self, path: Path) -> Grid:
        """Read the channels that the options choose; a name is looked up where there are several.

        A file of one channel needs no look-up: the adapter's channel may have been such a file.
        """
        choice = self.options.channel
        if not all(str(one).isdigit() for one in listed(choice)):
            try:
                grid = self.load(path)
            except ChannelError:
                return self.load(path, channel_beside(path.parent, choice))
            if isinstance(choice, tuple):
                raise ChannelError(path, 1, choice)
            return grid
        return self.load(path, channel_beside(path.parent, choice))

    def read_channels(self, paths: Sequence[Path]) -> Volume:
        """Read a volume whose channels are files, in their order, without labels.

        Raises:
            FindingError: a file is missing or broken, or lies on another grid.
        """
        grid = self.load_files(paths)
        return replace(self.arrange(grid, grid.values), findings=grid.findings)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check image and labels; grids that differ are a finding of both files."""
        findings: list[Finding] = []
        image = labels = grid = label_grid = None
        try:
            _check_partner(case)
            grid = self.load_image(case)
            findings += grid.findings
            image = finite_image(case.image, grid.values)
            findings += _constant(case, image)
        except FindingError as problem:
            findings.append(problem.finding)
        try:
            if case.labels is not None:
                label_grid = self.load_labels(case, case.labels, grid)
                if (
                    grid is not None
                    and label_grid is not None
                    and self.compare(case, grid, label_grid)
                ):
                    other_way = turned(label_grid, grid.affine)
                    same = not self.compare(case, grid, other_way)
                    label_grid = other_way if same else label_grid
                labels = label_grid and self._label_values(case.labels, label_grid.values)
        except FindingError as problem:
            findings.append(problem.finding)
        if grid is None or image is None or label_grid is None or labels is None:
            return None, findings
        findings += label_grid.findings
        findings += self.compare(case, grid, label_grid)
        if not labels.any():
            message = "the mask is empty: no voxel differs from 0"
            fix = "check that it is the right file"
            findings.append(Finding("no_foreground", "warning", str(case.labels), message, fix))
        if any(finding.severity == "error" for finding in findings):
            return None, findings
        return self.arrange(grid, image, labels), findings

    def _label_values(self, path: Path, values: Array) -> Array:
        """Return whole label values; probabilities stay as they are for ``data.mask_threshold``."""
        return values if self.options.masks.threshold is not None else whole_labels(path, values)

    def compare(self, case: Case, image: Grid, labels: Grid) -> list[Finding]:
        """Report how the grids of image and mask differ."""
        return compare_grids(case.image, case.labels or case.image, image, labels)

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids on the grid of the file that ``volume`` was read from."""
        if volume.source is None:
            raise DataError(f"{path}: a picture has no NIfTI grid; write it as .png")
        save_labels(prediction, volume.source, path)

    def arrange(self, grid: Grid, image: Array, labels: Array | None = None) -> Volume:
        """Return image and labels, (x, y, z) on the file's grid, as slices."""
        axis = grid.axis if self.options.axis is None else self.options.axis
        source = source_grid(grid.nifti_header, axis, grid.affine)
        arranged = None if labels is None else to_slices(labels, source)
        spacing = spacing_of(source) if grid.in_mm else None
        return Volume(to_slices(image, source), arranged, spacing, source)


def compare_grids(image: Path, labels: Path, first: Grid, second: Grid) -> list[Finding]:
    """Compare two grids: shapes must be equal, corners agree within a tenth of a voxel."""
    shapes = first.values.shape[:3], second.values.shape[:3]
    if shapes[0] != shapes[1]:
        message = f"its shape {shapes[1]} differs from {shapes[0]} of the image {image}"
        fix = "export image and mask on the same grid"
        return [error("shape_mismatch", labels, message, fix)]
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shapes[0])[:, None] - 1)
    corners = np.vstack([corners, np.ones(8)])
    distance = float(np.abs((first.affine - second.affine) @ corners)[:3].max())
    if distance <= 0.1 * float(np.linalg.norm(first.affine[:3, :3], axis=0).min()):
        return []
    message = f"its grid lies up to {distance:.3g} mm from that of the image {image}"
    fix = "resample the mask to the image's grid, or copy the image's affine if it is the true one"
    return [error("grid_mismatch", labels, message, fix)]


def turned(grid: Grid, affine: Array) -> Grid:
    """Return a grid with its axes in the order and direction of another affine's.

    Voxels are rearranged and stay where they are in the patient: programs that convert DICOM
    mirror axes, so that a mask drawn on the result lies on the same voxels in another order.
    """
    from nibabel.orientations import (
        apply_orientation,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    way = ornt_transform(io_orientation(grid.affine), io_orientation(affine))
    values = apply_orientation(grid.values, way)
    return grid._replace(values=values, affine=grid.affine @ inv_ornt_aff(way, grid.values.shape))


def error(code: str, file: Path, message: str, fix: str) -> Finding:
    """Return an error finding."""
    return Finding(code, "error", str(file), message, fix)


def _constant(case: Case, image: Array) -> list[Finding]:
    """Report an image of one value; of several channels those that have one."""
    fix = "export it again"
    planes = image.reshape(*image.shape[:3], -1)
    low, high = planes.min(axis=(0, 1, 2)), planes.max(axis=(0, 1, 2))
    constant = np.flatnonzero(low == high).tolist()
    if len(constant) == planes.shape[3]:
        message = f"all voxels have the value {float(low[0]):g}"
        return [error("constant_image", case.image, message, fix)]
    found = []
    for index in constant:
        path = case.files[index] if case.files else case.image
        message = (
            f"channel {index} of the chosen ones has the value {float(low[index]):g} everywhere"
        )
        found.append(Finding("constant_channel", "warning", str(path), message, fix))
    return found


def _check_partner(case: Case) -> None:
    absent = [path for path in case.files if not path.exists()]
    if absent and len(absent) < len(case.files):
        present = ", ".join(path.name for path in case.files if path not in absent)
        message = f"this channel of the case {case.name} is missing; there is {present}"
        raise FindingError(error("missing_image", absent[0], message, "add the file"))
    if not case.image.exists() and case.labels is not None and case.labels.is_file():
        message = f"this mask has no image; expected {case.image}"
        raise FindingError(error("missing_image", case.labels, message, "add the image"))
    if case.labels is None:
        message = "this image has no mask of the same name"
        raise FindingError(error("missing_label", case.image, message, "add it, or move the image"))
