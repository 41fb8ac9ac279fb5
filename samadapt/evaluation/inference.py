"""From images and prompts in their own frame to label maps: what evaluation and prediction share.

Images are embedded in batches; prompts of all images are decoded in packed batches, so that
neither slices nor objects are decoded one at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from samadapt.errors import ConfigError, PromptError
from samadapt.sam.geometry import make_frame, resize_image, to_model_boxes, to_model_points
from samadapt.sam.types import Frame, Prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from samadapt.sam.model import Sam

OBJECTS_PER_DECODE = 32
"""Objects in one decoder call: bounds the memory (about 40 MB each at 4g = 256)."""


class ObjectPrompts(TypedDict, total=False):
    """Prompts of one image for p objects, in pixels of the original image.

    Keys:
        boxes: (p, 4) XYXY, or None or absent.
        points: (p, k, 2) (x, y), or None or absent.
        point_labels: (p, k); 1 foreground, 0 background, -1 padding; with ``points``.
        class_ids: (p,) label that each object gets, 1..255; absent: 1.
    """

    boxes: NDArray[Any] | None
    points: NDArray[Any] | None
    point_labels: NDArray[Any] | None
    class_ids: NDArray[Any] | None


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
        torch.from_numpy(np.ascontiguousarray(resize_image(image, frame))).permute(2, 0, 1)
        for image, frame in zip(images, frames, strict=True)
    ]
    batch = sam.preprocess([image.to(sam.device, torch.float32) for image in resized])
    return sam.encode(batch), frames


@torch.no_grad()
def segment_semantic(
    sam: Sam, embeddings: Tensor, frames: Sequence[Frame], num_classes: int
) -> list[NDArray[np.uint8]]:
    """Label every pixel without a prompt: mask token k is class k.

    Args:
        sam: a model trained so, with at least ``num_classes`` mask tokens.
        embeddings: (b, 256, g, g).
        frames: the frame of each image.
        num_classes: number K of classes.

    Returns:
        b arrays (h, w) of class ids 0..K in the original frames.

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
    labels = []
    for index, frame in enumerate(frames):
        original = sam.postprocess(logits[index : index + 1], frame)
        labels.append(semantic_labels(original, num_classes)[0].cpu().numpy())
    return labels


@torch.no_grad()
def segment_objects(
    sam: Sam,
    embeddings: Tensor,
    frames: Sequence[Frame],
    prompts: Sequence[ObjectPrompts],
    *,
    threshold: float | None = None,
) -> list[NDArray[np.uint8]]:
    """Segment prompted objects, one mask each; where objects overlap the higher logit wins.

    Args:
        sam: the model.
        embeddings: (b, 256, g, g).
        frames: the frame of each image.
        prompts: for each image its objects in the original frame; their number may differ and
            may be 0.
        threshold: logit above which a pixel belongs to an object; None: the model's.

    Returns:
        b arrays (h, w) of class ids in the original frames; 0 where no object is.

    Raises:
        PromptError: for wrong shapes, naming the image's position in the batch.
    """
    if not len(embeddings) == len(frames) == len(prompts):
        raise PromptError(
            "embeddings, frames and prompts must be as many; got "
            f"{len(embeddings)}, {len(frames)} and {len(prompts)}"
        )
    checked = [_checked(prompt, index) for index, prompt in enumerate(prompts)]
    parts: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
    for pack in _packs(checked):
        for job, logits in zip(pack, _decode(sam, embeddings, frames, pack), strict=True):
            parts[job.image].append((job.start, logits))
    limit = sam.mask_threshold if threshold is None else threshold
    labels = []
    for index, frame in enumerate(frames):
        if not parts[index]:
            labels.append(np.zeros(frame.original, dtype=np.uint8))
            continue
        low = torch.cat([logits for _, logits in sorted(parts[index], key=lambda part: part[0])])
        original = sam.postprocess(low[None].float(), frame)
        ids = torch.as_tensor(checked[index].class_ids, device=original.device)[None]
        labels.append(object_labels(original, ids, limit)[0].cpu().numpy())
    return labels


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
class _Objects:
    """Checked prompts of one image."""

    boxes: NDArray[np.float32] | None
    points: NDArray[np.float32] | None
    point_labels: NDArray[np.int64] | None
    class_ids: NDArray[np.int64]


@dataclass(frozen=True)
class _Job:
    """A run of objects of one image that is decoded together."""

    image: int
    start: int
    count: int
    objects: _Objects

    def take(self, values: NDArray[Any], count: int) -> NDArray[Any]:
        """This run's rows, the last one repeated up to ``count``."""
        rows = np.minimum(np.arange(count), self.count - 1) + self.start
        return np.asarray(values[rows])


def _packs(objects: Sequence[_Objects]) -> Iterator[list[_Job]]:
    """Pack runs of objects into decoder calls of at most ``OBJECTS_PER_DECODE``, padding included.

    Only prompts of one kind and one number of points go together: a padding point is a token of
    its own and would change the masks a little.
    """
    groups: dict[tuple[bool, int], list[_Job]] = defaultdict(list)
    for image, item in enumerate(objects):
        clicks = 0 if item.points is None else item.points.shape[1]
        total = len(item.class_ids)
        for start in range(0, total, OBJECTS_PER_DECODE):
            count = min(OBJECTS_PER_DECODE, total - start)
            groups[item.boxes is not None, clicks].append(_Job(image, start, count, item))
    for jobs in groups.values():
        pack: list[_Job] = []
        for job in sorted(jobs, key=lambda job: job.count):
            if pack and (len(pack) + 1) * job.count > OBJECTS_PER_DECODE:
                yield pack
                pack = []
            pack.append(job)
        yield pack


def _decode(
    sam: Sam, embeddings: Tensor, frames: Sequence[Frame], pack: Sequence[_Job]
) -> list[Tensor]:
    """Low-resolution logits (count, 1, 4g, 4g) of every job of a pack, in one decoder call."""
    count = max(job.count for job in pack)
    boxes, points, point_labels = [], [], []
    for job in pack:
        frame, item = frames[job.image], job.objects
        if item.boxes is not None:
            boxes.append(to_model_boxes(job.take(item.boxes, count), frame))
        if item.points is not None and item.point_labels is not None:
            points.append(to_model_points(job.take(item.points, count), frame))
            point_labels.append(job.take(item.point_labels, count))
    prompts = Prompts(
        points=_stacked(points, sam, torch.float32),
        point_labels=_stacked(point_labels, sam, torch.int64),
        boxes=_stacked(boxes, sam, torch.float32),
    )
    images = torch.tensor([job.image for job in pack], device=embeddings.device)
    logits = sam.decode(embeddings[images], prompts, multimask=False).logits
    return [logits[row, : job.count] for row, job in enumerate(pack)]


def _stacked(arrays: list[NDArray[Any]], sam: Sam, dtype: torch.dtype) -> Tensor | None:
    return torch.as_tensor(np.stack(arrays), dtype=dtype, device=sam.device) if arrays else None


def _checked(prompt: ObjectPrompts, index: int) -> _Objects:
    """Prompts as arrays, with their shapes checked.

    Raises:
        PromptError: naming the image and the shapes.
    """
    boxes = _shaped(prompt.get("boxes"), (None, 4), "boxes must be (p, 4) XYXY pixels", index)
    points = _shaped(
        prompt.get("points"), (None, None, 2), "points must be (p, k, 2) (x, y) pixels", index
    )
    point_labels = prompt.get("point_labels")
    if (points is None) != (point_labels is None):
        raise PromptError(f"image {index}: points and point_labels must be given together")
    if points is not None:
        point_labels = np.asarray(point_labels, dtype=np.int64)
        if point_labels.shape != points.shape[:2]:
            raise PromptError(
                f"image {index}: point_labels must be (p, k) = {points.shape[:2]}; "
                f"got {point_labels.shape}"
            )
    counts = {len(given) for given in (boxes, points) if given is not None}
    class_ids = prompt.get("class_ids")
    count = counts.pop() if counts else 0
    class_ids = np.ones(count, np.int64) if class_ids is None else np.asarray(class_ids, np.int64)
    if counts or class_ids.shape != (count,):
        raise PromptError(
            f"image {index}: boxes, points and class_ids must be for the same objects; got "
            f"{', '.join(str(n) for n in (count, *counts))} objects and class_ids of shape "
            f"{class_ids.shape}"
        )
    if count and not (class_ids.min() >= 1 and class_ids.max() <= 255):
        raise PromptError(f"image {index}: class_ids must be 1 to 255; got {class_ids.tolist()}")
    return _Objects(boxes, points, point_labels, class_ids)


def _shaped(
    values: NDArray[Any] | None, shape: tuple[int | None, ...], wanted: str, index: int
) -> NDArray[np.float32] | None:
    """The values as float32 of the wanted shape; finite."""
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float32)
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise PromptError(f"image {index}: {wanted}; got {array.shape}")
    if not np.isfinite(array).all():
        raise PromptError(f"image {index}: {wanted}; got NaN or infinity")
    return array
