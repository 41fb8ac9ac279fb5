"""The automatic masks against segment-anything's, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import nn

from samadapt.errors import PromptError
from samadapt.sam import mask_tools
from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator
from samadapt.sam.model import Sam
from samadapt.sam.predictor import SamPredictor
from samadapt.sam.types import Prompts

Reference = Callable[[Sam], nn.Module]
# Thresholds that about half of a random model's masks pass.
LOOSE = {
    "points_per_side": 8,
    "points_per_batch": 24,
    "pred_iou_thresh": 1e-3,
    "stability_score_thresh": 0.1,
    "stability_score_offset": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "lenient_nms": {"box_nms_thresh": 0.95},
    "all": {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 4},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "box_nms_thresh": 0.9},
    "two_layers": {
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "crop_overlap_ratio": 0.5,
        "box_nms_thresh": 0.9,
        "crop_nms_thresh": 0.95,
    },
    "grids": {"points_per_side": None, "point_grids": [mask_tools.point_grid(9)]},
    "nothing": {"pred_iou_thresh": 1e6},
    "nothing_stable": {"stability_score_thresh": 1.1},
}
MODES = ("binary_mask", "uncompressed_rle")


@pytest.fixture
def photograph() -> NDArray[np.uint8]:
    return skimage.data.chelsea()[::2, ::2]  # 150 x 226


@pytest.fixture
def sam(tiny_sam: Sam) -> Sam:
    """Masks of a random model cover the image; above a higher threshold they are spots."""
    tiny_sam.mask_threshold = 2.0
    return tiny_sam


def _reference(sam: Sam, as_segment_anything: Reference) -> nn.Module:
    reference = as_segment_anything(sam)
    reference.mask_threshold = sam.mask_threshold
    return reference


def _sort_key(record: dict[str, Any]) -> tuple[Any, ...]:
    return (*record["point_coords"][0], *record["crop_box"], round(record["predicted_iou"], 3))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_segment_anything(
    sam: Sam,
    as_segment_anything: Reference,
    photograph: NDArray[np.uint8],
    case: str,
    mode: str,
) -> None:
    from segment_anything import SamAutomaticMaskGenerator as Theirs

    choices = {**LOOSE, **CASES[case], "output_mode": mode}
    found = SamAutomaticMaskGenerator(sam, **choices).generate(photograph)
    wanted = Theirs(_reference(sam, as_segment_anything), **choices).generate(photograph)
    assert len(found) == len(wanted)
    assert (len(found) > 1) != case.startswith("nothing")
    assert case not in ("crops", "two_layers") or len({tuple(r["crop_box"]) for r in found}) > 1
    pairs = zip(sorted(found, key=_sort_key), sorted(wanted, key=_sort_key), strict=True)
    for mine, theirs in pairs:
        _compare(mine, theirs)


def _compare(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert list(mine) == list(theirs)
    np.testing.assert_allclose(mine["point_coords"], theirs["point_coords"])
    assert mine["crop_box"] == theirs["crop_box"]
    np.testing.assert_allclose(mine["bbox"], theirs["bbox"], atol=1)
    assert mine["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-4)
    assert mine["stability_score"] == pytest.approx(
        theirs["stability_score"], abs=2e-3, nan_ok=True
    )
    for key, value in theirs.items():
        assert type(mine[key]) is type(value)
    masks = [record["segmentation"] for record in (mine, theirs)]
    if isinstance(masks[0], dict):
        assert masks[0]["size"] == masks[1]["size"]
        masks = [mask_tools.decode_mask(mask) for mask in masks]
    assert masks[0].dtype == masks[1].dtype == bool
    assert float((masks[0] != masks[1]).mean()) <= 0.001
    assert mine["area"] == masks[0].sum()


def test_same_order_as_segment_anything(
    sam: Sam, as_segment_anything: Reference, photograph: NDArray[np.uint8]
) -> None:
    from segment_anything import SamAutomaticMaskGenerator as Theirs

    choices = {**LOOSE, "box_nms_thresh": 0.95}
    found = SamAutomaticMaskGenerator(sam, **choices).generate(photograph)
    wanted = Theirs(_reference(sam, as_segment_anything), **choices).generate(photograph)
    assert len(found) > 5
    assert [r["point_coords"] for r in found] == [r["point_coords"] for r in wanted]


def test_coco_rle_and_small_regions(sam: Sam, photograph: NDArray[np.uint8]) -> None:
    choices = {**LOOSE, "box_nms_thresh": 0.95}
    plain = SamAutomaticMaskGenerator(sam, **choices).generate(photograph)
    cleaned = SamAutomaticMaskGenerator(sam, **choices, min_mask_region_area=100).generate(
        photograph
    )
    assert 0 < len(cleaned) <= len(plain)
    for record in cleaned:
        again, _ = mask_tools.without_small_regions(record["segmentation"], 100)
        assert np.array_equal(again, record["segmentation"])
        ys, xs = np.nonzero(record["segmentation"])
        x, y, w, h = record["bbox"]
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (x, y, x + w, y + h)
    coco = SamAutomaticMaskGenerator(sam, **choices, output_mode="coco_rle")
    for record, mask in zip(coco.generate(photograph), plain, strict=True):
        assert record["segmentation"] == mask_tools.compress(
            mask_tools.encode_mask(mask["segmentation"])
        )
        assert isinstance(record["segmentation"]["counts"], str)


def test_only_masks_above_the_iou_are_drawn(sam: Sam) -> None:
    prompts = Prompts(
        points=64 * torch.rand(1, 9, 1, 2, generator=torch.Generator().manual_seed(3)),
        point_labels=torch.ones(1, 9, 1, dtype=torch.int),
    )
    embedding = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        every = sam.decode(embedding, prompts, multimask=True)
        least = every.iou.flatten().sort().values[[-1, -5]].tolist()
        given = (sam.prompt_encoder.dense_position(), *sam.prompt_encoder(prompts, 1))
        for value in [*least, 0.0]:
            parts = list(sam.mask_decoder.decode_above(embedding, *given, value))
            logits, iou, owner = (torch.cat(part) for part in zip(*parts, strict=True))
            assert value >= 0
            wanted = every.iou[0] > value if value else torch.ones(9, 3, dtype=torch.bool)
            torch.testing.assert_close(logits, every.logits[0][wanted])
            torch.testing.assert_close(iou, every.iou[0][wanted])
            assert torch.equal(owner, wanted.nonzero()[:, 0])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"output_mode": "png"}, "binary_mask"),
        ({"points_per_side": None}, "exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one"),
        ({"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "points"),
        ({"points_per_side": None, "point_grids": [np.ones((1, 2))], "crop_n_layers": 1}, "points"),
    ],
)
def test_wrong_choices_are_explained(tiny_sam: Sam, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        SamAutomaticMaskGenerator(tiny_sam, **choices)


def test_wrong_images_are_explained(tiny_sam: Sam) -> None:
    with pytest.raises(PromptError, match="uint8"):
        SamAutomaticMaskGenerator(tiny_sam).generate(np.zeros((8, 8), np.uint8))


masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=50, deadline=None)
@given(masks)
def test_run_lengths_come_back(mask: NDArray[np.bool_]) -> None:
    from segment_anything.utils.amg import batched_mask_to_box, mask_to_rle_pytorch, rle_to_mask

    runs = mask_tools.encode_mask(mask)
    assert runs == mask_to_rle_pytorch(torch.tensor(mask)[None])[0]
    np.testing.assert_array_equal(mask_tools.decode_mask(runs), mask)
    np.testing.assert_array_equal(rle_to_mask(runs), mask)
    assert mask_tools.area_of(runs) == mask.sum()
    tensor = torch.tensor(mask)[None]
    assert torch.equal(mask_tools.boxes_of(tensor), batched_mask_to_box(tensor))


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.integers(40, 900), st.integers(40, 900)), st.integers(0, 2))
def test_crops_equal_to_segment_anything(size: tuple[int, int], layers: int) -> None:
    from segment_anything.utils.amg import generate_crop_boxes

    found = mask_tools.crop_boxes(size, layers, 512 / 1500)
    boxes, numbers = generate_crop_boxes(size, layers, 512 / 1500)
    assert [(list(box), layer) for box, layer in found] == list(zip(boxes, numbers, strict=True))


def test_point_grid_equal_to_segment_anything() -> None:
    from segment_anything.utils.amg import build_point_grid

    np.testing.assert_allclose(mask_tools.point_grid(5), build_point_grid(5), atol=1e-12)


@pytest.mark.parametrize(
    ("counts", "text"),  # from pycocotools 2.0
    [
        ([36, 150816], "T1PYc4"),
        ([4674], "Rb4"),
        ([17, 1, 1, 2303, 147, 2891, 9133], "a011nW2b4\\b0jh8"),
        ([12, 1, 1, 3579, 250686, 2896], "<11j_3mid7eZO"),
    ],
)
def test_compressed_run_lengths(counts: list[int], text: str) -> None:
    runs: mask_tools.RunLengths = {"size": [1, sum(counts)], "counts": counts}
    assert mask_tools.compress(runs) == {"size": [1, sum(counts)], "counts": text}


def test_small_holes_are_filled_and_small_islands_dropped() -> None:
    mask = np.zeros((12, 16), bool)
    mask[1:9, 1:9] = True
    mask[3:5, 3:5] = False  # a hole of 4
    mask[6, 7] = mask[7, 6] = False  # two pixels joined at a corner: one hole of 2
    mask[10, 12] = mask[11, 13] = True  # likewise an island of 2
    wanted = np.zeros_like(mask)
    wanted[1:9, 1:9] = True
    cleaned, changed = mask_tools.without_small_regions(mask, 5)
    assert changed
    np.testing.assert_array_equal(cleaned, wanted)
    cleaned, changed = mask_tools.without_small_regions(mask, 3)
    assert cleaned.sum() == 60
    cleaned, changed = mask_tools.without_small_regions(mask, 2)
    assert not changed
    np.testing.assert_array_equal(cleaned, mask)


def test_largest_island_stays_where_all_are_small() -> None:
    mask = np.zeros((6, 6), bool)
    mask[0, :2] = mask[3, :3] = True
    cleaned, changed = mask_tools.without_small_regions(mask, 10)
    assert changed
    assert cleaned.sum() == 3
    assert cleaned[3, :3].all()
    empty, changed = mask_tools.without_small_regions(np.zeros((4, 4), bool), 10)
    assert not empty.any()
    assert not changed


def test_selecting_from_candidates_is_generating(sam: Sam, photograph: NDArray[np.uint8]) -> None:
    """Thresholds can be tried on the candidates of one pass."""
    strict = LOOSE | {"crop_n_layers": 1, "min_mask_region_area": 20}
    loose = SamAutomaticMaskGenerator(
        sam, **strict | {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    )
    generator = SamAutomaticMaskGenerator(sam, **strict, output_mode="uncompressed_rle")
    kept = [generator._record(one) for one in generator.select(loose.candidates(photograph))]
    assert kept
    assert kept == generator.generate(photograph)


def test_a_relative_threshold_does_not_depend_on_the_scale_of_the_predicted_iou(
    sam: Sam, photograph: NDArray[np.uint8]
) -> None:
    choices = LOOSE | {"pred_iou_thresh": 0.0, "box_nms_thresh": 1.0, "points_per_side": 4}
    every = SamAutomaticMaskGenerator(sam, **choices).generate(photograph)
    ious = [one["predicted_iou"] for one in every]
    share = 0.3
    kept = SamAutomaticMaskGenerator(sam, **choices, relative_iou=share).generate(photograph)
    assert [one["predicted_iou"] for one in kept] == [i for i in ious if i >= share * max(ious)]
    assert 0 < len(kept) < len(every)


def test_boxes_around_points_prompt_as_in_the_predictor(
    sam: Sam, photograph: NDArray[np.uint8]
) -> None:
    """A single point with a box of 60 pixels, clipped to the picture, whose mask prompts again."""
    choices: dict[str, Any] = {
        "points_per_side": 1,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "multimask": False,
        "box_sides": [60],
    }
    predictor = SamPredictor(sam)
    predictor.set_image(photograph)
    box = np.array([113 - 30, 75 - 30, 113 + 30, 75 + 30])
    mask = predictor.predict(box=box, multimask_output=False)[0][0]
    (found,) = SamAutomaticMaskGenerator(sam, **choices).generate(photograph)
    assert np.array_equal(found["segmentation"], mask)
    y, x = np.nonzero(mask)
    around = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    again, iou, _ = predictor.predict(box=around, multimask_output=False)
    (found,) = SamAutomaticMaskGenerator(sam, **choices, refine=1).generate(photograph)
    assert np.array_equal(found["segmentation"], again[0])
    assert found["predicted_iou"] == pytest.approx(float(iou[0]), rel=1e-4)
