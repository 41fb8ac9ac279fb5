"""From images and prompts in their own frame to label maps: what evaluation and prediction share.

Images are embedded in batches; prompts of all images are decoded in packed batches, so that
neither slices nor objects are decoded one at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samadapt.errors import ConfigError, PromptError
from samadapt.prompts.simulate import ObjectPrompts
from samadapt.sam.geometry import make_frame, resize_image, to_model_boxes, to_model_points
from samadapt.sam.types import Frame, Prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from samadapt.sam.model import Sam

OBJECTS_PER_DECODE = 32
"""Objects in one decoder call: bounds the memory (about 40 MB each at 4g = 256)."""


@torch.no_grad()
def embed(sam: Sam, images: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, list[Frame]]:
    """Embed images of any sizes in one forward pass.

    Args:
        sam: the model, base or adapted.
        images: b arrays (h, w, 3), RGB 0..255, after the intensity rule.

    Returns:
        Embeddings (b, 256, g, g) on the model's device, and the frame of each image.
    """
    resize = sam.preprocessing.resize
    frames = [make_frame(image.shape[:2], sam.image_size, resize) for image in images]
    resized = [
        torch.from_numpy(resize_image(image, frame).copy()).permute(2, 0, 1)
        for image, frame in zip(images, frames, strict=True)
    ]
    batch = sam.preprocess([image.to(sam.device, torch.float32) for image in resized])
    return sam.encode(batch), frames


@torch.no_grad()
def semantic_logits(
    sam: Sam,
    embeddings: Tensor,
    frames: Sequence[Frame],
    num_classes: int,
    *,
    background_token: bool = False,
) -> Iterator[Tensor]:
    """Give the logits of every class without a prompt: mask token k is class k.

    Args:
        sam: a model trained so, with at least ``num_classes`` mask tokens.
        embeddings: (b, 256, g, g).
        frames: the frame of each image.
        num_classes: number K of classes.
        background_token: mask token 0 is the background; its logit is taken from the others', by
            which neither the largest nor a softmax changes.

    Yields:
        For each image (1, 1, K, h, w) in its original frame; the background has the logit 0.

    Raises:
        ConfigError: for fewer mask tokens than classes.
    """
    logits = sam.decode(embeddings, Prompts(), multimask=True).logits
    if logits.shape[2] < num_classes:
        raise ConfigError(
            f"without prompts each class needs a mask token; got {logits.shape[2]} tokens for "
            f"{num_classes} classes"
        )
    logits = logits[:, :, :num_classes].float()
    if background_token:
        logits = logits - sam.decode(embeddings, Prompts(), multimask=False).logits.float()
    for index, frame in enumerate(frames):
        yield sam.postprocess(logits[index : index + 1], frame)


def segment_semantic(
    sam: Sam,
    embeddings: Tensor,
    frames: Sequence[Frame],
    num_classes: int,
    *,
    background_token: bool = False,
    overlapping: bool = False,
) -> list[NDArray[np.uint8]]:
    """Label every pixel without a prompt; arguments and errors as ``semantic_logits``.

    Returns:
        b arrays (h, w) of class ids 0..K in the original frames; (K, h, w), a map a class, where
        classes are ``overlapping``.
    """
    each = semantic_logits(sam, embeddings, frames, num_classes, background_token=background_token)
    label = region_labels if overlapping else semantic_labels
    return [label(logits, num_classes)[0].cpu().numpy() for logits in each]


@torch.no_grad()
def object_logits(
    sam: Sam,
    embeddings: Tensor,
    frames: Sequence[Frame],
    prompts: Sequence[ObjectPrompts],
    *,
    multimask: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Decode prompted objects, one mask each.

    Args:
        sam: the model.
        embeddings: (b, 256, g, g).
        frames: the frame of each image.
        prompts: for each image its objects in the original frame; their number may differ and
            may be 0.
        multimask: of several masks an object, take the one with the highest predicted IoU.

    Returns:
        For each image the logits (p, 1, 4g, 4g) of its objects in the model frame, and the IoU
        (p,) that the mask decoder predicts for each.

    Raises:
        PromptError: for wrong shapes, naming the image's position in the batch.
    """
    if not len(embeddings) == len(frames) == len(prompts):
        raise PromptError(
            "embeddings, frames and prompts must be as many; got "
            f"{len(embeddings)}, {len(frames)} and {len(prompts)}"
        )
    for index, item in enumerate(prompts):
        _check(item, index)
    side = 4 * sam.embedding_size
    nothing = 0, embeddings.new_zeros(0, 1, side, side), embeddings.new_zeros(0)
    parts: dict[int, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)
    for pack in _packs(prompts):
        decoded = _decode(sam, embeddings, frames, pack, multimask)
        for job, (logits, iou) in zip(pack, decoded, strict=True):
            parts[job.image].append((job.start, logits, iou))
    found = []
    for index in range(len(prompts)):
        _, masks, ious = zip(
            *sorted(parts[index] or [nothing], key=lambda part: part[0]), strict=True
        )
        found.append((torch.cat(masks), torch.cat(ious)))
    return found


@torch.no_grad()
def segment_objects(
    sam: Sam,
    embeddings: Tensor,
    frames: Sequence[Frame],
    prompts: Sequence[ObjectPrompts | Mapping[str, Any]],
    *,
    threshold: float | None = None,
    multimask: bool = False,
) -> list[NDArray[np.uint8]]:
    """Segment prompted objects, one mask each; where objects overlap the higher logit wins.

    Args:
        sam: see ``object_logits``, as all that follow but the threshold.
        embeddings: (b, 256, g, g).
        frames: the frame of each image.
        prompts: for each image its objects.
        threshold: logit above which a pixel belongs to an object; None: the model's.
        multimask: take the best of several masks.

    Returns:
        b arrays (h, w) of class ids in the original frames; 0 where no object is.

    Raises:
        PromptError: as ``object_logits``.
    """
    objects = [p if isinstance(p, ObjectPrompts) else ObjectPrompts(**p) for p in prompts]
    masks = object_logits(sam, embeddings, frames, objects, multimask=multimask)
    limit = sam.mask_threshold if threshold is None else threshold
    labels = []
    for (low, _), item, frame in zip(masks, objects, frames, strict=True):
        ids = np.concatenate([[0], item.class_ids]).astype(np.uint8)
        labels.append(ids[object_numbers(sam, low, frame, limit)])
    return labels


@torch.no_grad()
def segment_instances(
    sam: Sam,
    embeddings: Tensor,
    frames: Sequence[Frame],
    prompts: Sequence[ObjectPrompts],
    *,
    multimask: bool = False,
) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Segment prompted objects as ``segment_objects`` does, and tell them apart.

    Returns:
        For each image the numbers 1..p (h, w) of its objects in the original frame, 0 where none
        is, and the predicted IoU (p,) of each.
    """
    masks = object_logits(sam, embeddings, frames, prompts, multimask=multimask)
    return [
        (object_numbers(sam, low, frame, sam.mask_threshold), iou.float().cpu().numpy())
        for (low, iou), frame in zip(masks, frames, strict=True)
    ]


@torch.no_grad()
def object_numbers(sam: Sam, low: Tensor, frame: Frame, threshold: float) -> NDArray[np.int32]:
    """Say whose every pixel of an image is: where objects overlap the higher logit wins.

    Some masks at a time are brought to the image's size, however many there are.

    Args:
        sam: the model.
        low: (p, 1, 4g, 4g) logits of its objects in the model frame; p may be 0.
        frame: of the image.
        threshold: logit that a pixel must exceed.

    Returns:
        (h, w) in the original frame: 1..p, 0 where no object is.
    """
    best = torch.full(frame.original, float(threshold), device=low.device)
    winner = torch.zeros(frame.original, dtype=torch.int64, device=low.device)
    for start in range(0, len(low), OBJECTS_PER_DECODE):
        part = low[None, start : start + OBJECTS_PER_DECODE].float()
        top, index = sam.postprocess(part, frame)[0, :, 0].max(dim=0)
        better = top > best
        best, winner = (
            torch.where(better, top, best),
            torch.where(better, index + start + 1, winner),
        )
    numbers: NDArray[np.int32] = winner.to(torch.int32).cpu().numpy()
    return numbers


def semantic_labels(logits: Tensor, num_classes: int) -> Tensor:
    """Pick the best class of every pixel, background having the logit 0.

    Args:
        logits: (b, 1, m, h, w) with m >= ``num_classes``, in the original frame.
        num_classes: number K of classes; token k - 1 is class k.

    Returns:
        (b, h, w) uint8 class ids 0..K.
    """
    best, index = logits[:, 0, :num_classes].max(dim=1)
    return torch.where(best > 0, index + 1, 0).to(torch.uint8)


def region_labels(logits: Tensor, num_classes: int) -> Tensor:
    """Say of every pixel and class whether the pixel is of the class; arguments as above.

    Returns:
        (b, K, h, w) uint8: k in the map of class k, 0 elsewhere.
    """
    ids = torch.arange(1, num_classes + 1, device=logits.device)[:, None, None]
    return torch.where(logits[:, 0, :num_classes] > 0, ids, 0).to(torch.uint8)


def object_labels(logits: Tensor, class_ids: Tensor, threshold: float = 0.0) -> Tensor:
    """Merge the masks of p objects; where several exceed the threshold the highest logit wins.

    Args:
        logits: (b, p, 1, h, w) in the original frame.
        class_ids: (b, p) label of each object; 0 marks padding, which is ignored.
        threshold: logit that a pixel must exceed.

    Returns:
        (b, h, w) uint8 class ids; 0 where no object is.
    """
    real = (class_ids > 0)[:, :, None, None]
    best, index = logits[:, :, 0].masked_fill(~real, -torch.inf).max(dim=1)
    ids = class_ids.gather(1, index.flatten(1)).view_as(index)
    return torch.where(best > threshold, ids, 0).to(torch.uint8)


@dataclass(frozen=True)
class _Job:
    """A run of objects of one image that is decoded together."""

    image: int
    start: int
    count: int
    objects: ObjectPrompts

    def take(self, values: NDArray[Any], count: int) -> NDArray[Any]:
        """This run's rows, the last one repeated up to ``count``."""
        rows = np.minimum(np.arange(count), self.count - 1) + self.start
        return np.asarray(values[rows])


def _packs(objects: Sequence[ObjectPrompts]) -> Iterator[list[_Job]]:
    """Pack runs of objects into decoder calls of at most ``OBJECTS_PER_DECODE``, padding included.

    Only prompts of one kind and one number of points go together: a padding point is a token of
    its own and would change the masks a little.
    """
    groups: dict[tuple[bool, int, bool], list[_Job]] = defaultdict(list)
    for image, item in enumerate(objects):
        clicks = 0 if item.points is None else item.points.shape[1]
        total = len(item)
        for start in range(0, total, OBJECTS_PER_DECODE):
            count = min(OBJECTS_PER_DECODE, total - start)
            kind = item.boxes is not None, clicks, item.logits is not None
            groups[kind].append(_Job(image, start, count, item))
    for jobs in groups.values():
        pack: list[_Job] = []
        for job in sorted(jobs, key=lambda job: job.count):
            if pack and (len(pack) + 1) * job.count > OBJECTS_PER_DECODE:
                yield pack
                pack = []
            pack.append(job)
        yield pack


def _decode(
    sam: Sam, embeddings: Tensor, frames: Sequence[Frame], pack: Sequence[_Job], multimask: bool
) -> list[tuple[Tensor, Tensor]]:
    """Logits (count, 1, 4g, 4g) and predicted IoU (count,) of every job of a pack, in one call."""
    count = max(job.count for job in pack)
    boxes, points, point_labels, masks = [], [], [], []
    for job in pack:
        frame, item = frames[job.image], job.objects
        if item.boxes is not None:
            boxes.append(to_model_boxes(job.take(item.boxes, count), frame))
        if item.points is not None and item.point_labels is not None:
            points.append(to_model_points(job.take(item.points, count), frame))
            point_labels.append(job.take(item.point_labels, count))
        if item.logits is not None:
            masks.append(job.take(item.logits, count))
    prompts = Prompts(
        points=_stacked(points, sam, torch.float32),
        point_labels=_stacked(point_labels, sam, torch.int64),
        boxes=_stacked(boxes, sam, torch.float32),
        masks=_stacked(masks, sam, torch.float32),
    )
    images = torch.tensor([job.image for job in pack], device=embeddings.device)
    output = sam.decode(embeddings[images], prompts, multimask=multimask)
    iou, best = output.iou.max(dim=2)
    logits = output.logits.take_along_dim(best[:, :, None, None, None], dim=2)
    return [(logits[row, : job.count], iou[row, : job.count]) for row, job in enumerate(pack)]


def _stacked(arrays: list[NDArray[Any]], sam: Sam, dtype: torch.dtype) -> Tensor | None:
    return torch.as_tensor(np.stack(arrays), dtype=dtype, device=sam.device) if arrays else None


def _check(prompts: ObjectPrompts, index: int) -> None:
    """Check the shapes of one image's prompts.

    Raises:
        PromptError: naming the image and what was expected.
    """
    count = len(prompts)
    boxes, points, labels = prompts.boxes, prompts.points, prompts.point_labels
    if boxes is not None and boxes.shape != (count, 4):
        raise PromptError(f"image {index}: boxes must be ({count}, 4) XYXY; got {boxes.shape}")
    if (points is None) != (labels is None):
        raise PromptError(f"image {index}: points and point_labels must be given together")
    if points is not None and labels is not None:
        if points.ndim != 3 or points.shape[::2] != (count, 2):
            raise PromptError(
                f"image {index}: points must be ({count}, k, 2) (x, y); got {points.shape}"
            )
        if labels.shape != points.shape[:2]:
            raise PromptError(
                f"image {index}: point_labels must be {points.shape[:2]}; got {labels.shape}"
            )
    if count and boxes is None and points is None and prompts.logits is None:
        raise PromptError(f"image {index}: {count} objects need boxes or points; got neither")
    ids = prompts.class_ids
    if count and not (ids.min() >= 1 and ids.max() <= 255):
        raise PromptError(f"image {index}: class_ids must be 1 to 255; got {ids.tolist()}")
