"""``train.augment=auto``: the random changes that suit a kind of image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samadapt.data.intensity import make_intensity
from samadapt.training.augmentation_rule import PATIENT, PICTURE, changes_for

GREY = np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), 3, axis=2)
COLOURED = GREY * np.array([1, 2, 3], np.uint8)


def dataset(rule: str, *, axis: int | None = None, image: Any = GREY, classes: Any = ("a",)) -> Any:
    return SimpleNamespace(
        train=["one", "two"],
        classes=list(classes),
        intensity=make_intensity(rule),
        case=lambda name: SimpleNamespace(axis=axis),
        samples=lambda name: [SimpleNamespace(image=image)],
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dataset("mri", axis=2), PATIENT),
        (dataset("ct:soft_tissue", axis=2), PATIENT),
        (dataset("microscopy", axis=2), PATIENT),  # a volume has a direction of its own
        (dataset("ct:soft_tissue"), PATIENT),  # single CT slices
        (dataset("rgb"), PATIENT),  # grey pictures may be X-rays
        (dataset("rgb", image=COLOURED), PICTURE),
        (dataset("microscopy"), PICTURE),
        (dataset("microscopy", image=COLOURED), PICTURE),
    ],
)
def test_the_kind_of_image_decides(data: Any, expected: tuple[str, ...]) -> None:
    assert changes_for("auto", data) == expected


@pytest.mark.parametrize(
    ("rule", "image"), [("rgb", COLOURED), ("microscopy", GREY)], ids=["photograph", "microscopy"]
)
def test_where_a_class_names_a_side_nothing_is_mirrored(rule: str, image: Any) -> None:
    changes = changes_for("auto", dataset(rule, image=image, classes=("eye_left", "eye_right")))
    assert changes
    assert "flip" not in changes


def test_channels_that_are_no_colours_keep_their_hue() -> None:
    data = dataset("microscopy")
    data.intensity = make_intensity(["microscopy", "microscopy"])
    assert set(PICTURE) - set(changes_for("auto", data)) == {"colour"}


def test_named_changes_stay_as_they_are() -> None:
    assert changes_for(["noise", "flip"], dataset("mri", axis=2)) == ("noise", "flip")
    assert changes_for((), dataset("rgb", image=COLOURED)) == ()
