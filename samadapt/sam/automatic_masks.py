"""Masks of everything in an image, with the calls and results of segment-anything's generator.

A grid of points prompts the model, over the whole image and optionally over crops of it. Masks with
a high predicted IoU and a high stability are kept, and duplicates are dropped (Kirillov et al.
2023, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samadapt.errors import PromptError
from samadapt.sam.mask_tools import (
    Box,
    RunLengths,
    area_of,
    boxes_of,
    compress,
    crop_boxes,
    decode_mask,
    encode_mask,
    point_grid,
    stability_scores,
    touches_crop,
    without_small_regions,
)
from samadapt.sam.model import Sam
from samadapt.sam.predictor import SamPredictor, check_image
from samadapt.sam.types import Prompts

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]


class SamAutomaticMaskGenerator:
    """Finds the masks of everything in an image.

    Args:
        model: the model.
        points_per_side: points along a side of the grid; None if ``point_grids`` is given.
        points_per_batch: points that the decoder gets at once.
        pred_iou_thresh: keep masks with a higher predicted IoU; 0 keeps all.
        stability_score_thresh: keep masks with at least this stability; 0 keeps all.
        stability_score_offset: shift of the threshold for the stability score, in logits.
        box_nms_thresh: two masks of a crop are duplicates if the IoU of their boxes is higher.
        crop_n_layers: layers of crops besides the whole image; layer i has 4**i crops.
        crop_nms_thresh: the same as ``box_nms_thresh``, between crops.
        crop_overlap_ratio: overlap of the crops of the first layer over the image's short side.
        crop_n_points_downscale_factor: the grid of layer i is smaller by this factor to the power
            of i.
        point_grids: one grid (n, 2) in 0..1 for each layer, instead of ``points_per_side``.
        min_mask_region_area: drop islands and fill holes of fewer pixels; 0 keeps them.
        output_mode: type of ``segmentation``: a boolean array (h, w), run lengths, or COCO's
            compressed string.

    Raises:
        PromptError: the grids contradict each other, or the output mode is unknown.
    """

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[NDArray[np.float64]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
    ) -> None:
        if output_mode not in get_args(OutputMode):
            raise PromptError(
                f"output_mode must be one of {', '.join(get_args(OutputMode))}; got {output_mode!r}"
            )
        if (points_per_side is None) == (point_grids is None):
            raise PromptError("give exactly one of points_per_side and point_grids")
        if point_grids is None:
            factor = crop_n_points_downscale_factor
            sides = [int(points_per_side or 0) // factor**i for i in range(crop_n_layers + 1)]
            point_grids = [point_grid(side) for side in sides]
        if len(point_grids) <= crop_n_layers or not all(len(grid) for grid in point_grids):
            raise PromptError(
                f"each of {crop_n_layers + 1} layers needs points; "
                f"got {[len(grid) for grid in point_grids]}"
            )
        self.point_grids = list(point_grids)
        self.predictor = SamPredictor(model)
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    @torch.no_grad()
    def generate(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Find the masks of an RGB image (h, w, 3) uint8.

        Returns:
            A dictionary for each mask, in pixels of the image: ``segmentation``; ``area``; ``bbox``
            [x, y, w, h]; ``predicted_iou``; ``point_coords`` [[x, y]] of the prompt;
            ``stability_score``; ``crop_box`` [x, y, w, h] of the crop that it was found in.

        Raises:
            PromptError: the image has another shape or type.
        """
        check_image(image)
        height, width = image.shape[:2]
        crops = crop_boxes((height, width), self.crop_n_layers, self.crop_overlap_ratio)
        found = [mask for crop, layer in crops for mask in self._in_crop(image, crop, layer)]
        if len(crops) > 1:
            # Of duplicates, the mask from the smaller crop wins, because it is finer.
            scores = [1 / ((c[2] - c[0]) * (c[3] - c[1])) for c in (mask.crop for mask in found)]
            found = _without_duplicates(found, scores, self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            found = self._clean(found)
        return [self._record(mask) for mask in found]

    def _in_crop(self, image: NDArray[np.uint8], crop: Box, layer: int) -> list[_FoundMask]:
        x0, y0, x1, y1 = crop
        self.predictor.set_image(image[y0:y1, x0:x1])
        points = self.point_grids[layer] * (x1 - x0, y1 - y0)
        found: list[_FoundMask] = []
        for start in range(0, len(points), self.points_per_batch):
            batch = points[start : start + self.points_per_batch]
            found.extend(self._from_points(batch, crop, image.shape[:2]))
        self.predictor.reset_image()
        return _without_duplicates(found, [mask.iou for mask in found], self.box_nms_thresh)

    def _from_points(
        self, points: NDArray[np.float64], crop: Box, size: tuple[int, ...]
    ) -> Iterator[_FoundMask]:
        """Yield the masks of points (n, 2), given in pixels of the crop, that are good enough."""
        predictor, model = self.predictor, self.predictor.model
        coords = predictor.transform.apply_coords(points, (crop[3] - crop[1], crop[2] - crop[0]))
        places = torch.as_tensor(coords, dtype=torch.float32, device=predictor.device)
        labels = torch.ones(1, len(points), 1, dtype=torch.int, device=predictor.device)
        prompts = Prompts(points=places[None, :, None], point_labels=labels)
        sparse, dense = model.prompt_encoder(prompts, 1)
        masks = model.mask_decoder.decode_above(
            predictor.get_image_embedding(),
            model.prompt_encoder.dense_position(),
            sparse,
            dense,
            self.pred_iou_thresh,
        )
        for low_res, iou, owner in masks:
            if len(iou):
                yield from self._good(low_res, iou, points[owner.cpu()], crop, size)

    def _good(
        self,
        low_res: Tensor,
        iou: Tensor,
        points: NDArray[np.float64],
        crop: Box,
        size: tuple[int, ...],
    ) -> Iterator[_FoundMask]:
        """Yield the stable masks of n logits (n, 4g, 4g) that the edge of the crop does not cut."""
        model = self.predictor.model
        frame = self.predictor.transform.frame((crop[3] - crop[1], crop[2] - crop[0]))
        logits = model.postprocess(low_res[None, None], frame)[0, 0]
        stability = stability_scores(logits, model.mask_threshold, self.stability_score_offset)
        keep = stability >= self.stability_score_thresh
        if self.stability_score_thresh <= 0:
            keep = torch.ones_like(keep)
        masks = logits[keep] > model.mask_threshold
        offset = torch.tensor((crop[0], crop[1]) * 2, device=masks.device)
        boxes = boxes_of(masks) + offset
        inside = ~touches_crop(boxes, crop, (size[0], size[1]))
        kept = keep.nonzero()[:, 0][inside]
        values = (masks[inside], boxes[inside], iou[kept], stability[kept], kept)
        for mask, box, score, stable, index in zip(*(t.cpu() for t in values), strict=True):
            yield _FoundMask(
                runs=encode_mask(_paste(mask.numpy(), crop, size)),
                box=box,
                iou=score.item(),
                point=[float(value) for value in points[index] + crop[:2]],
                stability=stable.item(),
                crop=crop,
            )

    def _clean(self, found: list[_FoundMask]) -> list[_FoundMask]:
        """Drop small regions; of masks that become duplicates, an unchanged one wins."""
        cleaned, scores = [], []
        for mask in found:
            pixels, changed = without_small_regions(
                decode_mask(mask.runs), self.min_mask_region_area
            )
            scores.append(0.0 if changed else 1.0)
            if changed:
                box = boxes_of(torch.as_tensor(pixels)[None])[0]
                mask = replace(mask, runs=encode_mask(pixels), box=box)
            cleaned.append(mask)
        return _without_duplicates(cleaned, scores, max(self.box_nms_thresh, self.crop_nms_thresh))

    def _record(self, mask: _FoundMask) -> dict[str, Any]:
        segmentation: Any = mask.runs
        if self.output_mode == "binary_mask":
            segmentation = decode_mask(mask.runs)
        elif self.output_mode == "coco_rle":
            segmentation = compress(mask.runs)
        return {
            "segmentation": segmentation,
            "area": area_of(mask.runs),
            "bbox": _xywh(mask.box.tolist()),
            "predicted_iou": mask.iou,
            "point_coords": [mask.point],
            "stability_score": mask.stability,
            "crop_box": _xywh(mask.crop),
        }


@dataclass(frozen=True)
class _FoundMask:
    """One mask, in pixels of the whole image.

    Attributes:
        runs: run lengths of the mask (h, w).
        box: (4,) int64 XYXY around it.
        iou: predicted IoU.
        point: [x, y] of its prompt.
        stability: stability score.
        crop: XYXY of the crop that it was found in.
    """

    runs: RunLengths
    box: Tensor
    iou: float
    point: list[float]
    stability: float
    crop: Box


def _without_duplicates(
    found: list[_FoundMask], scores: Sequence[float], threshold: float
) -> list[_FoundMask]:
    """Keep the best of masks whose boxes have an IoU above ``threshold``; the best come first."""
    from torchvision.ops import batched_nms

    if not found:
        return []
    boxes = torch.stack([mask.box for mask in found]).float()
    one_class = torch.zeros(len(found))
    kept = batched_nms(boxes, torch.tensor(scores), one_class, threshold)
    return [found[i] for i in kept.tolist()]


def _paste(mask: NDArray[np.bool_], crop: Box, size: tuple[int, ...]) -> NDArray[np.bool_]:
    if mask.shape == tuple(size):
        return mask
    whole = np.zeros(size, dtype=bool)
    whole[crop[1] : crop[3], crop[0] : crop[2]] = mask
    return whole


def _xywh(box: Sequence[int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
