"""Which options fit which model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samadapt.inference.mask_options import MaskOptions
from samadapt.prompts.policy import PromptPolicy


def fitted(sam, name, kind, *, is_adapted, **given):
    sam.build = replace(sam.build, name=name)
    return MaskOptions(**given).fitted(sam, PromptPolicy(kind), is_adapted=is_adapted)


@pytest.mark.parametrize("name", ["vit_b", "vit_t"])
def test_weights_of_sam_get_the_thresholds_of_the_paper(tiny_sam, name):
    found = fitted(tiny_sam, name, "point", is_adapted=False)
    assert (found.masks_per_point, found.refine) == ("three", 0)
    assert (found.min_iou, found.relative_iou, found.min_stability) == (0.88, 0.0, 0.95)


def test_models_of_boxes_draw_one_mask_and_prompt_again(tiny_sam):
    for name, is_adapted in (("lite_medsam", False), ("vit_b", True)):
        found = fitted(tiny_sam, name, "box", is_adapted=is_adapted)
        assert (found.masks_per_point, found.refine, found.min_iou) == ("one", 1, 0.0)
        assert found.relative_iou > 0


def test_an_adapter_of_points_draws_three_masks(tiny_sam):
    found = fitted(tiny_sam, "lite_medsam", "point", is_adapted=True)
    assert (found.masks_per_point, found.refine) == ("three", 0)


def test_an_adapter_whose_classes_have_tokens_answers_as_its_base(tiny_sam):
    for name, masks, refine in (("vit_b", "three", 0), ("lite_medsam", "one", 1)):
        found = fitted(tiny_sam, name, "semantic", is_adapted=True)
        assert (found.masks_per_point, found.refine) == (masks, refine)
        assert found.relative_iou > 0


def test_given_values_stay(tiny_sam):
    found = fitted(tiny_sam, "lite_medsam", "box", is_adapted=True, refine=0, min_iou=0.5)
    assert (found.refine, found.min_iou) == (0, 0.5)
