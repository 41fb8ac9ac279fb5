"""What the readers of all volume formats share: checks, slicing, and writing of predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from samadapt.data.channels import ChannelError, Indices, listed_channels, mask_with_channels
from samadapt.data.findings import Finding, FindingError, error_finding, warning_finding
from samadapt.data.formats.base import FormatReader, Layout
from samadapt.data.formats.nifti.write import SUFFIXES, save_labels
from samadapt.data.formats.shared.stored_volume import (
    StoredVolume,
    compare_grids,
    join_channels,
    with_axes_of,
)
from samadapt.data.formats.shared.volume_layout import channel_beside, discover_volumes
from samadapt.data.formats.shared.volume_slices import source_grid, spacing_of, to_slices
from samadapt.data.formats.shared.volume_values import finite_image, whole_labels
from samadapt.data.types import Case, Volume
from samadapt.errors import DataError
from samadapt.system.arrays import Array


class VolumeReader(FormatReader):
    """Reads volumes of one format; a format says how a file becomes a ``StoredVolume``."""

    output_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    file_keys: ClassVar[tuple[str, ...]] = ("root", "image", "label")

    @abstractmethod
    def load(self, path: Path, channel: Indices = None) -> StoredVolume:
        """Read one file.

        Args:
            path: image or mask.
            channel: index of the channel of a multi-channel file; several become the fourth axis.

        Raises:
            FindingError: the file is missing, broken or of a kind that cannot be used.
        """

    def load_image(self, case: Case) -> StoredVolume:
        """Read the image of a case, from one file or a file a channel; raises as ``load``."""
        if case.files:
            return self.load_files(case.files)
        return self.load(case.image, case.channel)

    def load_files(self, paths: Sequence[Path]) -> StoredVolume:
        """Read the files of one case, each of which is a channel; raises as ``load``."""
        return join_channels(paths, [self.load(path) for path in paths])

    def load_labels(
        self, case: Case, path: Path, image: StoredVolume | None
    ) -> StoredVolume | None:
        """Read the mask of a case; raises as ``load``.

        Args:
            case: the case.
            path: the mask.
            image: the image of the case; None if it is broken.

        Returns:
            The mask; None if this kind of mask needs the image, which is broken.
        """
        try:
            return self.load(path)
        except ChannelError as problem:
            raise mask_with_channels(path, problem.count) from None

    def discover(self) -> Layout:
        """List the cases of the folder."""
        return discover_volumes(self.options, self.suffixes)

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return the files of the image and the mask."""
        return [*(case.files or (case.image,)), *([case.labels] if case.labels else [])]

    def read_image(self, path: Path) -> Volume:
        """Read a volume without labels, sliced along ``options.axis``."""
        stored = self._load_chosen(path)
        volume = self.arrange(stored, finite_image(path, stored.values))
        return replace(volume, files=stored.files, findings=stored.findings)

    def _load_chosen(self, path: Path) -> StoredVolume:
        """Read the channels that the options choose.

        A name is looked up in ``dataset.json`` only if the file has several channels. An adapter
        that was trained on a channel in a file of its own (``*_flair.nii.gz``) also names that
        channel, and then the file has nothing to choose from.
        """
        choice = self.options.channel
        if not all(str(one).isdigit() for one in listed_channels(choice)):
            try:
                stored = self.load(path)
            except ChannelError:
                return self.load(path, channel_beside(path.parent, choice))
            if isinstance(choice, tuple):
                raise ChannelError(path, 1, choice)
            return stored
        return self.load(path, channel_beside(path.parent, choice))

    def read_channels(self, paths: Sequence[Path]) -> Volume:
        """Read a volume without labels from several files, one a channel, in their order.

        Raises:
            FindingError: a file is missing or broken, or lies on another grid.
        """
        stored = self.load_files(paths)
        return replace(self.arrange(stored, stored.values), findings=stored.findings)

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read and check image and mask of a case, and compare their grids.

        Returns:
            The volume, or None if there is an error; and the findings of both files.
        """
        findings: list[Finding] = []
        image = labels = stored = stored_labels = None
        try:
            _check_partner(case)
            stored = self.load_image(case)
            findings += stored.findings
            image = finite_image(case.image, stored.values)
            findings += _constant(case, image)
        except FindingError as problem:
            findings.append(problem.finding)
        # The mask is read even if the image is broken, so that all faults are told at once.
        try:
            if case.labels is not None:
                stored_labels = self.load_labels(case, case.labels, stored)
                if (
                    stored is not None
                    and stored_labels is not None
                    and self.compare(case, stored, stored_labels)
                ):
                    reordered = with_axes_of(stored_labels, stored.affine)
                    same = not self.compare(case, stored, reordered)
                    stored_labels = reordered if same else stored_labels
                labels = stored_labels and stored_labels.values
                # Probabilities stay as they are for `data.mask_threshold`.
                if labels is not None and self.options.masks.threshold is None:
                    labels = whole_labels(case.labels, labels)
        except FindingError as problem:
            findings.append(problem.finding)
        if stored is None or image is None or stored_labels is None or labels is None:
            return None, findings
        findings += stored_labels.findings
        findings += self.compare(case, stored, stored_labels)
        if not labels.any():
            message = "the mask is empty: no voxel differs from 0"
            fix = "check that it is the right file"
            findings.append(
                warning_finding("no_foreground", case.labels or case.image, message, fix)
            )
        if any(finding.severity == "error" for finding in findings):
            return None, findings
        return self.arrange(stored, image, labels), findings

    def compare(self, case: Case, image: StoredVolume, labels: StoredVolume) -> list[Finding]:
        """Return how the grids of image and mask differ; nothing if they agree."""
        return compare_grids(case.image, case.labels or case.image, image, labels)

    def write(self, prediction: Array, volume: Volume, path: Path) -> None:
        """Write class ids on the grid of the file that ``volume`` was read from."""
        if volume.source is None:
            raise DataError(f"{path}: a picture has no NIfTI grid; write it as .png")
        save_labels(prediction, volume.source, path)

    def arrange(self, stored: StoredVolume, image: Array, labels: Array | None = None) -> Volume:
        """Return image and labels, which are in the axes of the file, as slices."""
        axis = stored.axis if self.options.axis is None else self.options.axis
        source = source_grid(stored.nifti_header, axis, stored.affine)
        arranged = None if labels is None else to_slices(labels, source)
        spacing = spacing_of(source) if stored.in_mm else None
        return Volume(to_slices(image, source), arranged, spacing, source)


def _constant(case: Case, image: Array) -> list[Finding]:
    """Report an image in which all voxels are equal, or the channels in which they are."""
    fix = "export it again"
    channels = image.reshape(*image.shape[:3], -1)
    low, high = channels.min(axis=(0, 1, 2)), channels.max(axis=(0, 1, 2))
    constant = np.flatnonzero(low == high).tolist()
    if len(constant) == channels.shape[3]:
        message = f"all voxels have the value {float(low[0]):g}"
        return [error_finding("constant_image", case.image, message, fix)]
    found = []
    for index in constant:
        path = case.files[index] if case.files else case.image
        message = (
            f"all voxels of channel {index} of the chosen ones have the value {float(low[index]):g}"
        )
        found.append(warning_finding("constant_channel", path, message, fix))
    return found


def _check_partner(case: Case) -> None:
    """Refuse a case that lacks its image, one of its channels, or its mask."""
    absent = [path for path in case.files if not path.exists()]
    if absent and len(absent) < len(case.files):
        present = ", ".join(path.name for path in case.files if path not in absent)
        message = f"this channel of the case {case.name} is missing; there is {present}"
        raise FindingError(error_finding("missing_image", absent[0], message, "add the file"))
    if not case.image.exists() and case.labels is not None and case.labels.is_file():
        message = f"this mask has no image; expected {case.image}"
        raise FindingError(error_finding("missing_image", case.labels, message, "add the image"))
    if case.labels is None:
        message = "this image has no mask of the same name"
        raise FindingError(
            error_finding("missing_label", case.image, message, "add it, or move the image")
        )
