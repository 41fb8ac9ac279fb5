"""Masks of everything in an image, with the calls and results of segment-anything's generator.

A grid of points prompts the model, over the whole image and optionally over crops of it. Masks with
a high predicted IoU and a high stability are kept, and duplicates are dropped (Kirillov et al.
2023, appendix B).

Beyond segment-anything, the generator can prompt with boxes around the points, for models that were
trained with boxes; draw the single mask of a prompt, for models whose other masks were not trained;
prompt again with the box of each mask; and compare the predicted IoU with the best of the image.
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
        multimask: draw three masks for each prompt; False: the single one.
        box_sides: prompt with square boxes of these sides, in pixels of the image, around each
            point; empty: prompt with the points.
        refine: how often the box around each mask prompts the model again, which then draws the
            single mask of this box.
        relative_iou: keep masks with at least this share of the highest predicted IoU of the image;
            0 keeps all. For models whose predicted IoU is too low or too high everywhere.
        min_mask_area: drop masks of fewer pixels, counted after small regions are dropped.
        max_mask_share: drop masks that cover at least this share of the image; None keeps all.

    Raises:
        PromptError: the grids contradict each other, a side is not above 0, or the output mode is
            unknown.
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
        *,
        multimask: bool = True,
        box_sides: Sequence[float] = (),
        refine: int = 0,
        relative_iou: float = 0.0,
        min_mask_area: int = 0,
        max_mask_share: float | None = None,
    ) -> None:
        if output_mode not in get_args(OutputMode):
            raise PromptError(
                f"output_mode must be one of {', '.join(get_args(OutputMode))}; got {output_mode!r}"
            )
        if not all(side > 0 for side in box_sides):
            raise PromptError(f"box_sides must be above 0 pixels; got {list(box_sides)}")
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
        self.multimask = multimask
        self.box_sides = tuple(box_sides)
        self.refine = refine
        self.relative_iou = relative_iou
        self.min_mask_area = min_mask_area
        self.max_mask_share = max_mask_share

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
        return [self._record(mask) for mask in self.select(self.candidates(image))]

    @torch.no_grad()
    def candidates(self, image: NDArray[np.uint8]) -> list[FoundMask]:
        """Return the masks of an image that pass the thresholds, with their duplicates.

        Raises:
            PromptError: the image has another shape or type than ``generate`` takes.
        """
        check_image(image)
        crops = crop_boxes(
            (image.shape[0], image.shape[1]), self.crop_n_layers, self.crop_overlap_ratio
        )
        return [mask for crop, layer in crops for mask in self._in_crop(image, crop, layer)]

    def select(self, candidates: Sequence[FoundMask]) -> list[FoundMask]:
        """Return the candidates of one image that are good enough and no duplicates.

        Candidates of a generator with low thresholds may be selected from again with higher ones,
        which costs no pass of the model.
        """
        best = max((mask.iou for mask in candidates), default=0.0)
        by_crop: dict[Box, list[FoundMask]] = {}
        for mask in candidates:
            if self._is_good(mask, best):
                by_crop.setdefault(mask.crop, []).append(mask)
        found = []
        for masks in by_crop.values():
            ious = [mask.iou for mask in masks]
            found += _without_duplicates(masks, ious, self.box_nms_thresh)
        if self.crop_n_layers > 0:
            # Of duplicates, the mask from the smaller crop wins, because it is finer.
            scores = [1 / ((c[2] - c[0]) * (c[3] - c[1])) for c in (mask.crop for mask in found)]
            found = _without_duplicates(found, scores, self.crop_nms_thresh)
        if self.min_mask_region_area > 0:
            found = self._clean(found)
        return [mask for mask in found if area_of(mask.runs) >= self.min_mask_area]

    def _is_good(self, mask: FoundMask, best_iou: float) -> bool:
        """Return whether a mask passes the thresholds; ``best_iou`` is the image's highest."""
        if self.pred_iou_thresh > 0 and mask.iou <= self.pred_iou_thresh:
            return False
        if self.stability_score_thresh > 0 and not mask.stability >= self.stability_score_thresh:
            return False
        if self.max_mask_share is not None:
            height, width = mask.runs["size"]
            if area_of(mask.runs) >= self.max_mask_share * height * width:
                return False
        return self.relative_iou <= 0 or mask.iou >= self.relative_iou * best_iou

    def _in_crop(self, image: NDArray[np.uint8], crop: Box, layer: int) -> list[FoundMask]:
        x0, y0, x1, y1 = crop
        self.predictor.set_image(image[y0:y1, x0:x1])
        points = self.point_grids[layer] * (x1 - x0, y1 - y0)
        found: list[FoundMask] = []
        for side in self.box_sides or (0.0,):
            for start in range(0, len(points), self.points_per_batch):
                batch = points[start : start + self.points_per_batch]
                found.extend(self._from_points(batch, side, crop, image.shape[:2]))
        self.predictor.reset_image()
        return found

    def _from_points(
        self, points: NDArray[np.float64], side: float, crop: Box, size: tuple[int, ...]
    ) -> Iterator[FoundMask]:
        """Yield the masks of points (n, 2), in pixels of the crop, or of boxes around them."""
        # What a further pass draws anew is judged by the predicted IoU of that pass alone.
        min_iou = self.pred_iou_thresh if self.refine == 0 else 0.0
        prompts = self._prompts(points, side, crop)
        for low_res, iou, owner in self._decode(prompts, min_iou, multimask=self.multimask):
            for _ in range(self.refine):
                low_res, iou, owner = self._again(low_res, iou, owner, crop)
            if len(iou):
                yield from self._good(low_res, iou, points[owner.cpu()], crop, size)

    def _prompts(self, points: NDArray[np.float64], side: float, crop: Box) -> Prompts:
        """Return points (n, 2) in pixels of a crop, or boxes around them, in the model frame."""
        transform, device = self.predictor.transform, self.predictor.device
        crop_size = (crop[3] - crop[1], crop[2] - crop[0])
        if side:
            limits = np.array((crop_size[1], crop_size[0]) * 2, dtype=np.float64)
            around = np.concatenate([points - side / 2, points + side / 2], axis=1)
            boxes = transform.apply_boxes(np.clip(around, 0, limits), crop_size)
            return Prompts(boxes=torch.as_tensor(boxes, dtype=torch.float32, device=device)[None])
        coords = transform.apply_coords(points, crop_size)
        places = torch.as_tensor(coords, dtype=torch.float32, device=device)
        labels = torch.ones(1, len(points), 1, dtype=torch.int, device=device)
        return Prompts(points=places[None, :, None], point_labels=labels)

    def _decode(
        self, prompts: Prompts, min_iou: float, *, multimask: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield logits (k, 4g, 4g), predicted IoU (k,) and the index (k,) of the prompt."""
        model = self.predictor.model
        sparse, dense = model.prompt_encoder(prompts, 1)
        position = model.prompt_encoder.dense_position()
        embedding = self.predictor.get_image_embedding()
        yield from model.mask_decoder.decode_above(
            embedding, position, sparse, dense, min_iou, multimask=multimask
        )

    def _again(
        self, low_res: Tensor, iou: Tensor, owner: Tensor, crop: Box
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt with the box around each mask; masks without a pixel are dropped."""
        model = self.predictor.model
        frame = self.predictor.transform.frame((crop[3] - crop[1], crop[2] - crop[0]))
        masks = model.postprocess(low_res[None, None], frame)[0, 0] > model.mask_threshold
        kept = masks.flatten(1).any(dim=1)
        if not kept.any():
            return low_res[:0], iou[:0], owner[:0]
        # The far sides of a box lie behind its last pixel.
        edges = (boxes_of(masks[kept]) + torch.tensor((0, 0, 1, 1), device=masks.device)).cpu()
        boxes = self.predictor.transform.apply_boxes(edges.double().numpy(), frame.original)
        prompts = Prompts(boxes=torch.as_tensor(boxes, dtype=torch.float32)[None].to(masks.device))
        drawn = [part[:2] for part in self._decode(prompts, 0.0, multimask=False)]
        logits, ious = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return logits, ious, owner[kept]

    def _good(
        self,
        low_res: Tensor,
        iou: Tensor,
        points: NDArray[np.float64],
        crop: Box,
        size: tuple[int, ...],
    ) -> Iterator[FoundMask]:
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
            yield FoundMask(
                runs=encode_mask(_paste(mask.numpy(), crop, size)),
                box=box,
                iou=score.item(),
                point=[float(value) for value in points[index] + crop[:2]],
                stability=stable.item(),
                crop=crop,
            )

    def _clean(self, found: list[FoundMask]) -> list[FoundMask]:
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

    def _record(self, mask: FoundMask) -> dict[str, Any]:
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
class FoundMask:
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
    found: list[FoundMask], scores: Sequence[float], threshold: float
) -> list[FoundMask]:
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
