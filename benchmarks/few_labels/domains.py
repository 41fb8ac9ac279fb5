"""The data sets, and which part of each is scored.

The held-out part is a list of names beside this file, ``held_out/NAME.txt``. It was fixed by a rule
before anything was trained, and its first lines state the rule. Every patient, rat or field is on
one side. Settings are chosen on the other part alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from samadapt.data.splits import listed_names
from samadapt.data.training_draw import drawn_order

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Domain:
    """One data set.

    Attributes:
        name: its folder below the data root.
        unit: what the numbers of labels count.
        labels: few, middle and many labels.
        keys: how samadapt reads it.
        patient: pattern that finds the patient (rat, field) in a case name; empty: each case is its
            own.
        counts_patients: whether ``labels`` count patients, whose cases all train.
        claims: whether results are claimed; otherwise the set is too small.
        in_pixels: whether distances are in pixels because the voxel size is not known.
    """

    name: str
    unit: str
    labels: tuple[int, int, int]
    keys: tuple[str, ...]
    patient: str = ""
    counts_patients: bool = False
    claims: bool = True
    in_pixels: bool = False

    @property
    def held_out_file(self) -> Path:
        """The list of held-out cases."""
        return FOLDER / "held_out" / f"{self.name}.txt"

    @property
    def middle(self) -> int:
        """The number of labels at which arms are compared with three seeds."""
        return self.labels[1]

    def case_names(self, data: Path) -> list[str]:
        """Return the names of all cases below the data root, sorted.

        Raises:
            FileNotFoundError: the data set is not there.
        """
        folder = data / self.name
        images = next((f for f in ("imagesTr", "images") if (folder / f).is_dir()), None)
        if images is None:
            raise FileNotFoundError(f"{folder}: expected a folder imagesTr or images")
        return sorted(path.name.partition(".")[0] for path in (folder / images).iterdir())

    def patient_of(self, case: str) -> str:
        """Return the patient of a case, or the case itself where each is its own."""
        match = re.fullmatch(self.patient, case) if self.patient else None
        return match.group(1) if match else case

    def training_cases(self, data: Path, labels: int, draw: int) -> int:
        """Return how many training cases a number of labels is: ``data.train_cases``.

        Args:
            data: the data root.
            labels: patients or cases, as ``counts_patients`` says.
            draw: which of them, since patients have different numbers of cases.
        """
        if not self.counts_patients:
            return labels
        held_out = set(listed_names(self.held_out_file))
        pool = [name for name in self.case_names(data) if name not in held_out]
        order = drawn_order([(self.patient_of(name), name) for name in pool], draw)
        chosen = list(dict.fromkeys(map(self.patient_of, order)))[:labels]
        return sum(self.patient_of(name) in chosen for name in pool)


PICTURES = ("data=folder", "data.intensity=rgb")
MICROSCOPE = ("data=folder", "data.intensity=microscopy")
FIELD = r"(.+)_[0-9a-f]{8}"

DOMAINS = {
    domain.name: domain
    for domain in (
        Domain("msd_hippocampus", "volumes", (5, 20, 160), ("data=msd_hippocampus",)),
        Domain(
            "acdc",
            "patients",
            (1, 2, 5),
            ("data=nifti",),
            r"(patient[0-9]+)_.*",
            counts_patients=True,
            in_pixels=True,
        ),
        Domain(
            "axon_sem",
            "rats",
            (1, 2, 3),
            (*MICROSCOPE, "data.classes={axon: 1, myelin: 2}"),
            r"(rat[0-9]+)_.*",
            counts_patients=True,
        ),
        Domain("dsb2018_fluo", "fields", (3, 5, 10), MICROSCOPE, FIELD, counts_patients=True),
        Domain("dsb2018_stain", "fields", (3, 5, 10), PICTURES, FIELD, counts_patients=True),
        Domain("kvasir_polyps", "pictures", (3, 5, 8), PICTURES),
        Domain("fuseg", "pictures", (3, 5, 10), PICTURES),
        Domain("spleen_ct", "pictures", (3, 5, 7), PICTURES, r"(spleen[0-9]+)_.*", claims=False),
    )
}


def fuseg_groups() -> dict[str, list[str]]:
    """Return the photographs of each group of look-alikes in ``fuseg_groups.txt``."""
    lines = (FOLDER / "fuseg_groups.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(":") for line in lines if line and not line.startswith("#")]
    return {name: names.split() for name, names in pairs}


def cluster_of(domain: Domain, case: str) -> str:
    """Return what is drawn as one in a bootstrap: the patient, or the group of look-alikes."""
    if domain.name == "fuseg":
        return next((name for name, cases in fuseg_groups().items() if case in cases), case)
    return domain.patient_of(case)
