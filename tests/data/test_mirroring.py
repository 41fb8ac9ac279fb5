"""Which images may be mirrored, and which classes forbid it."""

from __future__ import annotations

import pytest

from samadapt.data.intensity import make_intensity
from samadapt.data.mirroring import mirrors_of, refuse_sides, sided, words_of
from samadapt.errors import PromptError


@pytest.mark.parametrize(
    "name",
    [
        "left lung", "Lung_Right", "kidney_l", "L-kidney", "kidneyR", "LKidney", "leftLung",
        "leftlung", "Left", "rh cortex", "lobe.dex", "rein gauche", "pulmo sinister", "lt-atrium",
    ],
)  # fmt: skip
def test_names_of_sides(name):
    assert sided(["spleen", name]) == [name]


@pytest.mark.parametrize(
    "names",
    [
        ["liver", "spleen", "bright spot", "cleft", "upright", "plate"],
        ["L", "lesion"],  # a letter alone may stand for anything
        ["L1", "L2", "rib"],  # vertebrae
        ["l1", "r2"],
        ["LV", "myocardium"],  # no partner
        ["lib", "ribs"],
        ["grey", "white"],
    ],
)
def test_class_names_without_a_side_are_not_listed(names):
    assert sided(names) == []


def test_abbreviations_are_sides_if_both_are_there():
    assert sided(["RV", "MYO", "LV"]) == ["RV", "LV"]
    assert sided(["atrium LA", "atrium RA", "aorta"]) == ["atrium LA", "atrium RA"]
    assert words_of("leftLung_2-CT") == ["left", "lung", "2", "ct"]


def test_the_message_names_the_classes_and_the_key():
    refuse_sides(["liver"], "tta=flip")
    with pytest.raises(PromptError, match=r"tta=flip: .* class kidney_l names a side; leave tta"):
        refuse_sides(["liver", "kidney_l"], "tta=flip")
    with pytest.raises(PromptError, match=r"classes left, right name a side; leave eval.tta out"):
        refuse_sides(["left", "right"], "eval.tta=flip")


def test_only_microscopy_has_no_upper_side():
    microscopy = make_intensity("microscopy")
    assert mirrors_of(microscopy, is_picture=True) == ((), (1,), (0,), (0, 1))
    assert mirrors_of(microscopy, is_picture=False) == ((), (1,))
    assert mirrors_of(make_intensity(["microscopy"] * 2), is_picture=True)[2:] == ((0,), (0, 1))
    assert mirrors_of(make_intensity("rgb"), is_picture=True) == ((), (1,))
    assert mirrors_of(make_intensity("mri"), is_picture=False) == ((), (1,))
