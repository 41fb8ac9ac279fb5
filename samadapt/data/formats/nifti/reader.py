"""NIfTI volumes: MSD and nnU-Net folders, ``images/`` + ``labels/``, or two named files.

The layouts are those of ``volume_layout.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from samadapt.data.channels import Indices
from samadapt.data.formats.base import register_reader
from samadapt.data.formats.nifti.grid import SUFFIXES
from samadapt.data.formats.shared.volume_reader import Grid, VolumeReader, load_nifti


@register_reader("nifti", "msd", "nnunet")
class NiftiReader(VolumeReader):
    """Reads NIfTI volumes."""

    summary = "NIfTI volumes: MSD, nnU-Net, images/ + labels/, or data.image and data.label"
    takes_channels: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def load(self, path: Path, channel: Indices = None) -> Grid:
        """Read a ``.nii`` or ``.nii.gz`` file."""
        return load_nifti(path, channel, self.options.spacing)
