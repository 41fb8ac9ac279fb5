"""When a run says that mirrored slices teach something wrong."""

from __future__ import annotations

import pytest

from samadapt.data.intensity import make_intensity
from samadapt.runs.flip_note import flip_note

FLIP = ("flip", "rotate")


@pytest.mark.parametrize(
    ("changes", "classes", "rule", "is_semantic", "said"),
    [
        (
            FLIP,
            ["kidney_left", "kidney_right", "liver"],
            "mri",
            True,
            "kidney_left, kidney_right may",
        ),
        (FLIP, ["kidney_left"], "rgb", True, "the class kidney_left may"),
        (FLIP, ["kidney_left"], "rgb", False, ""),  # a prompt says which kidney is meant
        (("rotate",), ["kidney_left"], "ct", True, ""),
        (FLIP, ["spleen"], "ct:soft_tissue", True, "mirrors the body"),
        (FLIP, ["spleen"], "ct:soft_tissue+lung+bone", True, "mirrors the body"),
        (FLIP, ["polyp"], "rgb", True, ""),
        (FLIP, ["tumour"], "mri", True, ""),  # the halves of a brain are alike
    ],
)
def test_what_is_said_about_flips(changes, classes, rule, is_semantic, said):
    text = flip_note(changes, classes, make_intensity(rule), is_semantic=is_semantic)
    assert (said in text) if said else (text == "")
