"""The MNI152 template: one averaged T1 brain with tissue maps, from the PyPI package nilearn.

A voxel is grey or white matter if that tissue's probability is the larger of the two and above 0.5.
This is one brain, averaged over 152 people, and two intensity thresholds segment it equally well.
It shows that the program works, and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from samadapt.data.findings import Finding
from samadapt.data.formats.base import Layout, register_reader
from samadapt.data.formats.nifti.reader import NiftiReader, load_nifti
from samadapt.data.types import Case, Volume
from samadapt.errors import MissingExtraError
from samadapt.system.arrays import Array

_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_TISSUES = ("gm", "wm")
_CLASSES = {"grey_matter": (1,), "white_matter": (2,)}


@register_reader("mni152")
class Mni152Reader(NiftiReader):
    """Reads the template that nilearn contains; ``data.root`` is refused."""

    summary = "one averaged T1 brain with grey and white matter, from the package nilearn"
    suffixes = ()
    takes_channels = False
    file_keys = ()
    default_intensity = "mri"

    def discover(self) -> Layout:
        """Return the only case.

        Raises:
            MissingExtraError: nilearn is not installed.
        """
        folder = _package_folder()
        case = Case("mni152", folder / _FILE.format("t1"), folder / _FILE.format("gm"))
        return Layout([case], [], _CLASSES, "MRI")

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return the template and both probability maps."""
        return [case.image, *(case.image.with_name(_FILE.format(tissue)) for tissue in _TISSUES)]

    def examine(self, case: Case) -> tuple[Volume | None, list[Finding]]:
        """Read the template and make the labels from the two probability maps."""
        stored = load_nifti(case.image)
        grey, white = (
            load_nifti(case.image.with_name(_FILE.format(tissue))).values for tissue in _TISSUES
        )
        # The maps are 8-bit or scaled probabilities; dividing by the maximum gives 0..1.
        labels = tissue_labels(grey / grey.max(), white / white.max())
        return self.arrange(stored, stored.values.astype(np.float32), labels), []


def tissue_labels(grey: Array, white: Array) -> Array:
    """Return labels: 1 grey matter, 2 white matter, 0 neither.

    Args:
        grey: probability (0..1) of grey matter.
        white: probability (0..1) of white matter, in the same shape.

    Returns:
        int32 in the same shape. A tissue needs more than 0.5 and the larger probability.
    """
    labels = np.zeros(grey.shape, dtype=np.int32)
    labels[(grey > 0.5) & (grey >= white)] = 1
    labels[(white > 0.5) & (white > grey)] = 2
    return labels


def _package_folder() -> Path:
    """Find the data folder of nilearn without importing nilearn, which takes a second."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise MissingExtraError("nilearn", "demo")
    folder = Path(spec.origin).parent / "datasets" / "data"
    if not (folder / _FILE.format("t1")).is_file():
        raise MissingExtraError("nilearn>=0.10", "demo")
    return folder
