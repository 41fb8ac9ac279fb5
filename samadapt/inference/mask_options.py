"""The options of masks without prompts, and the values that fit a model where none is given.

SAM's own weights draw three masks for a point, and its paper keeps those with a predicted IoU above
0.88 and a stability of at least 0.95 (Kirillov et al. 2023, appendix B). Neither fits a model that
was adapted with boxes, nor MedSAM and LiteMedSAM, which were trained with boxes alone: their masks
for ambiguous prompts were never trained and are empty, and a point is no prompt that they know, so
their predicted IoU is low everywhere. Such a model draws its single mask, the box around this mask
prompts again, and the predicted IoU is compared with the best one of the image.
"""
# ruff: noqa: RUF009  ``option`` returns a field, not a default

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from samadapt.inference.options import option
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator
    from samadapt.sam.model import Sam

Outputs = Literal["three", "one"]

_BOXES_ALONE = frozenset({"medsam", "lite_medsam"})
"""Base models that were trained with boxes alone."""


RELATIVE_IOU = 0.85
"""Share of the highest predicted IoU of the image. LiteMedSAM after 50 steps with boxes predicted
at most 0.87 on a picture of nuclei, so SAM's 0.88 kept nothing. With 0.75 two masks in three were
no nucleus, and 0.9 lost more than a third of those that were one."""


@dataclass(frozen=True)
class MaskOptions:
    """How an image is prompted without a user, and which masks are kept."""

    points_per_side: Whole = option(
        32, "points along each side of the grid that prompts the model", ge=1, le=256
    )
    points_per_batch: Whole = option(
        64, "points that the decoder gets at once; fewer need less memory", ge=1
    )
    masks_per_point: Outputs | None = option(
        None,
        "three: the three masks of an ambiguous prompt; one: the single mask; null: three for "
        "SAM's own weights and for an adapter that was trained with points",
    )
    box_sides: Sequence[float] | None = option(
        None,
        "prompt with square boxes of these sides, in pixels, around each point of the grid; "
        "[]: prompt with the points; null: as settings say, or with the points",
    )
    refine: Whole | None = option(
        None,
        "how often the box around each mask prompts the model again; null: once for a model that "
        "was trained with boxes, else never",
        ge=0,
        le=4,
    )
    min_iou: float | None = option(
        None,
        "keep masks with a higher predicted IoU; 0: all; null: 0.88 for SAM's own weights, else 0",
        ge=0,
        le=1,
    )
    relative_iou: float | None = option(
        None,
        "keep masks with at least this share of the highest predicted IoU of the image; 0: all; "
        "null: 0 for SAM's own weights, else 0.85",
        ge=0,
        le=1,
    )
    min_stability: float | None = option(
        None,
        "keep masks with at least this stability, the IoU of the mask at a higher and at a lower "
        "threshold; 0: all; null: 0.95 for SAM's own weights, else 0.5",
        ge=0,
        le=1,
    )
    stability_offset: float = option(
        1.0, "how far these two thresholds lie above and below, in logits", gt=0
    )
    nms: float = option(
        0.7, "two masks are duplicates if the IoU of their boxes is higher", gt=0, le=1
    )
    crop_layers: Whole = option(
        0, "also look at crops: layer i has 4^i of them; 0: the whole image alone", ge=0, le=4
    )
    crop_nms: float = option(0.7, "the same as nms, between masks of different crops", gt=0, le=1)
    crop_overlap: float = option(
        512 / 1500, "overlap of the crops of the first layer, of the image's short side", ge=0, lt=1
    )
    crop_points_factor: Whole = option(
        1, "the grid of layer i is smaller by this factor to the power of i", ge=1
    )
    min_area: Whole = option(
        0, "drop islands and fill holes of a mask below this many pixels; 0: keep them", ge=0
    )
    min_mask_area: Whole | None = option(
        None, "drop masks of fewer pixels, counted after min_area; null: keep them", ge=0
    )
    max_mask_share: float | None = option(
        None,
        "drop masks that cover at least this share of the image; null: keep them",
        gt=0,
        le=1,
    )

    def fitted(self, sam: Sam, policy: PromptPolicy, *, is_adapted: bool) -> MaskOptions:
        """Return the options with values in the place of None, as they fit a model.

        Args:
            sam: the model.
            policy: how it was prompted in its training.
            is_adapted: whether it carries an adapter.
        """
        as_sam = not is_adapted and sam.build.name not in _BOXES_ALONE
        three = as_sam or (is_adapted and policy.multimask is not False)
        if policy.is_semantic:  # the classes have tokens of their own: prompts are the base's
            three = sam.build.name not in _BOXES_ALONE
        fitting: dict[str, Any] = {
            "masks_per_point": "three" if three else "one",
            "box_sides": (),
            "refine": 0 if three else 1,
            "min_iou": 0.88 if as_sam else 0.0,
            "relative_iou": 0.0 if as_sam else RELATIVE_IOU,
            "min_stability": 0.95 if as_sam else 0.5,
        }
        missing = {name: value for name, value in fitting.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def generator(self, sam: Sam) -> SamAutomaticMaskGenerator:
        """Return the generator of fitted options.

        Raises:
            PromptError: the crops leave a layer without points.
        """
        # It imports torch, which the help text of the command must not wait for.
        from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator

        return SamAutomaticMaskGenerator(
            sam,
            points_per_side=self.points_per_side,
            points_per_batch=self.points_per_batch,
            pred_iou_thresh=self.min_iou or 0.0,
            stability_score_thresh=self.min_stability or 0.0,
            stability_score_offset=self.stability_offset,
            box_nms_thresh=self.nms,
            crop_n_layers=self.crop_layers,
            crop_nms_thresh=self.crop_nms,
            crop_overlap_ratio=self.crop_overlap,
            crop_n_points_downscale_factor=self.crop_points_factor,
            min_mask_region_area=self.min_area,
            output_mode="uncompressed_rle",
            multimask=self.masks_per_point != "one",
            box_sides=self.box_sides or (),
            refine=self.refine or 0,
            relative_iou=self.relative_iou or 0.0,
            min_mask_area=self.min_mask_area or 0,
            max_mask_share=self.max_mask_share,
        )
