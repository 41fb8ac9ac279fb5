"""The one way from embeddings and prompts to masks and label maps.

::

    ImagePrompts, one an image                  numpy, original frame
      |  to_tensors: model frame, one tensor for b images of p objects
      v
    Prompts (b, p, ...)                         tensors, model frame
      |  Sam.decode
      v
    logits (p, 1, 4g, 4g), predicted IoU (p,)   object_logits, for each image
      |  Sam.postprocess: resize to the original frame, crop the padding
      v
    object numbers (h, w)                       merge_objects: the highest logit wins
      |  ImagePrompts.names
      v
    class ids (h, w)

Training stops at the logits of ``Sam.decode`` and builds its tensors with ``to_tensors``.
A model that was trained without prompts goes from embeddings to the logits of its classes
(``semantic_logits``) and to class ids (``semantic_labels``).

Evaluation and prediction have images with different numbers of objects. Their objects are packed
into decoder calls of at most ``OBJECTS_PER_DECODE``, so that neither slices nor objects are decoded
one at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from samadapt.errors import ConfigError, PromptError
from samadapt.sam.click_disks import obey_clicks, with_click_disks
from samadapt.sam.dense_features import unpack_embedding
from samadapt.sam.geometry import make_frame, masks_to_model, to_model_boxes, to_model_points
from samadapt.sam.types import Frame, ImagePrompts, Prompts, at_least_fp32
from samadapt.sam.watershed import MAPS_PER_CLASS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.system.arrays import Array

OBJECTS_PER_DECODE = 32
"""Objects in one decoder call. It bounds the memory: about 40 MB an object at 4g = 256."""


def to_tensors(
    prompts: Sequence[ImagePrompts],
    frames: Sequence[Frame],
    side: int,
    device: torch.device | None = None,
    points: int = 0,
) -> Prompts:
    """Bring the prompts of b images into the model frame and stack them.

    Args:
        prompts: b items of p objects each. All have boxes or none has, and likewise mask prompts.
            Where an item has fewer points than another, it is padded with points of label -1.
        frames: the frame of each image.
        side: 4g, the side of mask prompts.
        device: where the tensors go; None: the CPU.
        points: the least number of points of an object, padding included.

    Raises:
        PromptError: the items do not have the same number of objects.
    """
    most = max(points, most_points(prompts))
    boxes: list[Array] = []
    placed: list[Array] = []
    labels: list[Array] = []
    masks: list[Array] = []
    for item, frame in zip(prompts, frames, strict=True):
        if item.boxes is not None:
            boxes.append(to_model_boxes(item.boxes, frame))
        if most:
            padded, marks = np.zeros((len(item), most, 2)), np.full((len(item), most), -1)
            if item.points is not None and item.point_labels is not None:
                count = item.points.shape[1]
                padded[:, :count], marks[:, :count] = item.points, item.point_labels
            placed.append(to_model_points(padded, frame))
            labels.append(marks)
        if item.mask_logits is not None:
            masks.append(item.mask_logits)
        elif item.masks is not None:
            masks.append(masks_to_model(item.masks, frame, side))

    def stacked(arrays: list[Array], dtype: torch.dtype) -> Tensor | None:
        return torch.as_tensor(np.stack(arrays), dtype=dtype, device=device) if arrays else None

    return Prompts(
        points=stacked(placed, torch.float32),
        point_labels=stacked(labels, torch.int64),
        boxes=stacked(boxes, torch.float32),
        masks=stacked(masks, torch.float32),
    )


def most_points(prompts: Sequence[ImagePrompts]) -> int:
    """Return the largest number of points of an object, padding included; 0 without points."""
    return max((item.points.shape[1] for item in prompts if item.points is not None), default=0)


@dataclass(frozen=True)
class _Chunk:
    """Objects of one item that are decoded in one call: those from ``start`` on."""

    item: int
    start: int
    prompts: ImagePrompts


@torch.no_grad()
def object_logits(
    sam: SegmentationModel,
    embeddings: Float[Tensor, "b c g g"],
    frames: Sequence[Frame],
    prompts: Sequence[ImagePrompts],
    *,
    images: Sequence[int] | None = None,
    multimask: bool | None = False,
    token_of_class: bool = False,
    click_disks: bool = False,
) -> list[tuple[Float[Tensor, "_ 1 _ _"], Float[Tensor, " _"]]]:
    """Decode prompted objects, one mask each.

    Args:
        sam: the model.
        embeddings: (b, c, g, g).
        frames: the frame of each of the b images.
        prompts: the objects of each image, in its original frame. The number of objects may
            differ and may be 0.
        images: the position among the b images that each item of ``prompts`` belongs to; None:
            item i belongs to image i.
        multimask: of several masks an object, take the one with the highest predicted IoU. None:
            do so for objects with a single prompt, which are those with one point or one box alone.
        token_of_class: of several masks an object, take mask token k - 1 for an object of class k,
            as a model that was trained without prompts has them.
        click_disks: draw the clicks into the mask prompts, as a model that was trained so has them,
            and obey them: the cell of each click has its sign in the answer.

    Returns:
        For each item of ``prompts`` the logits (p, 1, 4g, 4g) of its objects in the model frame,
        and the IoU (p,) that the mask decoder predicts for each.

    Raises:
        PromptError: for wrong shapes; names the position of the item.
    """
    images = range(len(frames)) if images is None else images
    if len(embeddings) != len(frames) or len(images) != len(prompts):
        raise PromptError(
            "embeddings, frames and prompts must have the same length; got "
            f"{len(embeddings)}, {len(frames)} and {len(prompts)}"
        )
    for position, item in enumerate(prompts):
        item.check(f"image {position}: ")
    side = 4 * sam.embedding_size
    nothing = 0, embeddings.new_zeros(0, 1, side, side), embeddings.new_zeros(0)
    parts: dict[int, list[tuple[int, Tensor, Tensor]]] = defaultdict(list)
    for pack in _packs(prompts):
        # (n, p): every chunk of the pack is filled up to p objects with copies of its last one.
        count = max(len(chunk.prompts) for chunk in pack)
        filled = [
            chunk.prompts.take(np.minimum(np.arange(count), len(chunk.prompts) - 1))
            for chunk in pack
        ]
        places = [images[chunk.item] for chunk in pack]
        tensors = to_tensors(filled, [frames[place] for place in places], side, sam.device)
        if click_disks:
            tensors = with_click_disks(tensors, sam.image_size)
        rows = torch.tensor(places, device=embeddings.device)
        several = is_single(filled[0]) if multimask is None else multimask
        output = sam.decode(embeddings[rows], tensors, multimask=several or token_of_class)
        if token_of_class:
            tokens = torch.from_numpy(np.stack([item.class_ids for item in filled]) - 1)
            chosen = tokens.to(output.iou.device)
        else:
            chosen = output.iou.argmax(dim=2)
        iou = output.iou.take_along_dim(chosen[:, :, None], dim=2)[:, :, 0]
        logits = output.logits.take_along_dim(chosen[:, :, None, None, None], dim=2)
        if click_disks:
            logits = obey_clicks(logits, tensors, sam.image_size)
        for row, chunk in enumerate(pack):
            real = len(chunk.prompts)
            parts[chunk.item].append((chunk.start, logits[row, :real], iou[row, :real]))
    found = []
    for position in range(len(prompts)):
        chunks = sorted(parts[position] or [nothing], key=lambda part: part[0])
        _, masks, ious = zip(*chunks, strict=True)
        found.append((torch.cat(masks), torch.cat(ious)))
    return found


def is_single(prompts: ImagePrompts) -> bool:
    """Return whether each object has one prompt: one point, or one box, and no mask."""
    count = 0 if prompts.points is None else prompts.points.shape[1]
    return count + (prompts.boxes is not None) == 1 and not prompts.has_masks


def _packs(prompts: Sequence[ImagePrompts]) -> Iterator[list[_Chunk]]:
    """Divide objects among decoder calls of at most ``OBJECTS_PER_DECODE``, filling included.

    Only prompts of one kind and with one number of points share a call. A padding point is a token
    of its own in the decoder, so padding the points would change the masks a little.
    """
    groups: dict[tuple[bool, int, bool], list[_Chunk]] = defaultdict(list)
    for position, item in enumerate(prompts):
        clicks = 0 if item.points is None else item.points.shape[1]
        kind = item.boxes is not None, clicks, item.has_masks
        bare = replace(item, truth=None)  # chunks are copies; the decoder needs no ground truth
        for start in range(0, len(item), OBJECTS_PER_DECODE):
            rows = np.arange(start, min(start + OBJECTS_PER_DECODE, len(item)))
            groups[kind].append(_Chunk(position, start, bare.take(rows)))
    for chunks in groups.values():
        pack: list[_Chunk] = []
        # Chunks of similar length go together, since the longest one sets the length of all.
        for chunk in sorted(chunks, key=lambda chunk: len(chunk.prompts)):
            if pack and (len(pack) + 1) * len(chunk.prompts) > OBJECTS_PER_DECODE:
                yield pack
                pack = []
            pack.append(chunk)
        yield pack


@torch.no_grad()
def segment_objects(
    sam: SegmentationModel,
    embeddings: Float[Tensor, "b c g g"],
    frames: Sequence[Frame],
    prompts: Sequence[ImagePrompts],
    *,
    threshold: float | None = None,
    multimask: bool | None = False,
) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Segment prompted objects; where objects overlap, the higher logit wins.

    Args:
        sam: the model.
        embeddings: (b, c, g, g).
        frames: the frame of each image.
        prompts: the objects of each image.
        threshold: logit above which a pixel belongs to an object; None: the model's.
        multimask: see ``object_logits``.

    Returns:
        For each image which object 1..p every pixel (h, w) of the original frame belongs to, 0
        for none, and the predicted IoU (p,) of each object. ``ImagePrompts.names`` turns the
        numbers into class ids.

    Raises:
        PromptError: see ``object_logits``.
    """
    limit = sam.mask_threshold if threshold is None else threshold
    decoded = object_logits(sam, embeddings, frames, prompts, multimask=multimask)
    return [
        (object_numbers(sam, logits, frame, limit), iou.float().cpu().numpy())
        for (logits, iou), frame in zip(decoded, frames, strict=True)
    ]


@torch.no_grad()
def object_numbers(
    sam: SegmentationModel, logits: Tensor, frame: Frame, threshold: float
) -> NDArray[np.int32]:
    """Return which object each pixel of an image belongs to.

    At most ``OBJECTS_PER_DECODE`` masks are held at the image's size at a time.

    Args:
        sam: the model.
        logits: (p, 1, 4g, 4g) of the image's objects in the model frame; p may be 0.
        frame: the image's frame.
        threshold: logit that a pixel must exceed.

    Returns:
        (h, w) in the original frame: 1..p, 0 where there is no object.
    """
    planes = (
        sam.postprocess(part[None].float(), frame)[0, :, 0]
        for part in logits.split(OBJECTS_PER_DECODE)
        if len(part)
    )
    return merge_objects(planes, frame.original, threshold)


def merge_objects(
    planes: Iterable[Tensor], shape: tuple[int, int], threshold: float
) -> NDArray[np.int32]:
    """Give each pixel to the object with the highest logit.

    Args:
        planes: logits of the objects in the original frame, some (q, h, w) at a time.
        shape: (h, w).
        threshold: logit that a pixel must exceed.

    Returns:
        (h, w): the number 1..p of the object over all parts, 0 where none exceeds the threshold.
    """
    best = winner = None
    count = 0
    for part in planes:
        if best is None or winner is None:
            best = torch.full(shape, float(threshold), device=part.device)
            winner = torch.zeros(shape, dtype=torch.int64, device=part.device)
        top, index = part.max(dim=0)
        better = top > best
        best = torch.where(better, top, best)
        winner = torch.where(better, index + count + 1, winner)
        count += len(part)
    if winner is None:
        return np.zeros(shape, np.int32)
    numbers: NDArray[np.int32] = winner.to(torch.int32).cpu().numpy()
    return numbers


def class_frame(sam: SegmentationModel, shape: tuple[int, int]) -> Frame:
    """Return where an image of ``shape`` (h, w) lies in the square of the class logits.

    That is the model's square, or the square of the dense head if the model has one.
    """
    head = sam.dense_head
    side = sam.image_size if head is None else head.settings.side
    return make_frame(shape, side, sam.preprocessing.resize)


def image_embedding(
    sam: SegmentationModel, embeddings: Float[Tensor, "b ..."]
) -> Float[Tensor, "b c g g"]:
    """Return what ``Sam.decode`` takes of what ``embed`` returned."""
    if sam.dense_head is None:
        return embeddings
    return unpack_embedding(sam.dense_head, embeddings)[0]


def class_logits(
    sam: SegmentationModel,
    embeddings: Float[Tensor, "b ..."],
    num_classes: int,
    *,
    background_token: bool = False,
) -> Float[Tensor, "b 1 m h w"]:
    """Decode every class without a prompt, in the frame of ``class_frame`` and with gradients.

    Arguments and errors are those of ``semantic_logits``.

    Returns:
        The logits of the K classes. If the model has a watershed, K distances to the centre and K
        to the border follow, as logits.
    """
    head = sam.dense_head
    if head is not None:
        embeddings, dense = unpack_embedding(head, embeddings)
        logits = at_least_fp32(dense[:, None])
        if not head.settings.sam_logits:
            return logits
        own = at_least_fp32(sam.decode_classes(embeddings).logits[:, :, :num_classes])
        side = (head.settings.side,) * 2
        own = functional.interpolate(own[:, 0], side, mode="bilinear")[:, None]
        if head.watershed is None:
            return logits + own
        # SAM's mask tokens know classes and no distances.
        return torch.cat([logits[:, :, :num_classes] + own, logits[:, :, num_classes:]], dim=2)
    logits = sam.decode_classes(embeddings).logits
    if logits.shape[2] < num_classes:
        raise ConfigError(
            f"without prompts each class needs a mask token; got {logits.shape[2]} tokens for "
            f"{num_classes} classes"
        )
    maps = 1 if sam.watershed is None else MAPS_PER_CLASS
    logits = at_least_fp32(logits[:, :, : maps * num_classes])
    # Where classes have tokens of their own, so has the background, and its logit is subtracted.
    if background_token and not sam.has_class_tokens:
        logits = logits - at_least_fp32(sam.decode_background(embeddings))
    return logits


@torch.no_grad()
def semantic_logits(
    sam: SegmentationModel,
    embeddings: Float[Tensor, "b ..."],
    frames: Sequence[Frame],
    num_classes: int,
    *,
    background_token: bool = False,
) -> Iterator[Float[Tensor, "1 1 m h w"]]:
    """Decode every class without a prompt: mask token k - 1 of the multimask output is class k.

    Args:
        sam: a model that was trained so, with at least ``num_classes`` mask tokens.
        embeddings: what ``embed`` returned.
        frames: the frame of each image.
        num_classes: number K of classes.
        background_token: the single-mask token is the background, unless classes have tokens of
            their own. Its logit is subtracted from those of the classes, which changes neither
            their maximum nor a softmax over all.

    Yields:
        For each image (1, 1, K, h, w) in its original frame; the background has the logit 0.
        ``class_logits`` says what follows if the model has a watershed.

    Raises:
        ConfigError: the model has fewer mask tokens than classes.
    """
    logits = class_logits(sam, embeddings, num_classes, background_token=background_token)
    for position, frame in enumerate(frames):
        own_frame = class_frame(sam, frame.original)
        yield sam.postprocess(logits[position : position + 1], own_frame)


def segment_semantic(
    sam: SegmentationModel,
    embeddings: Float[Tensor, "b ..."],
    frames: Sequence[Frame],
    num_classes: int,
    *,
    background_token: bool = False,
    overlapping: bool = False,
) -> list[NDArray[np.uint8]]:
    """Label every pixel without a prompt; arguments and errors as ``semantic_logits``.

    Returns:
        b arrays (h, w) of class ids 0..K in the original frames; (K, h, w), a map for each class,
        if classes are ``overlapping``.
    """
    each = semantic_logits(sam, embeddings, frames, num_classes, background_token=background_token)
    label = region_labels if overlapping else semantic_labels
    return [label(logits, num_classes)[0].cpu().numpy() for logits in each]


def semantic_labels(logits: Float[Tensor, "b 1 m h w"], num_classes: int) -> UInt8[Tensor, "b h w"]:
    """Pick the class with the highest logit for every pixel; the background has the logit 0.

    Args:
        logits: (b, 1, m, h, w) with m >= ``num_classes``, in the original frame.
        num_classes: number K of classes; token k - 1 is class k.

    Returns:
        (b, h, w) uint8 class ids 0..K.
    """
    best, index = logits[:, 0, :num_classes].max(dim=1)
    return torch.where(best > 0, index + 1, 0).to(torch.uint8)


def region_labels(
    logits: Float[Tensor, "b 1 m h w"], num_classes: int
) -> UInt8[Tensor, "b {num_classes} h w"]:
    """Decide for every pixel and class whether the pixel belongs to the class.

    Args:
        logits: (b, 1, m, h, w) with m >= ``num_classes``, in the original frame.
        num_classes: number K of classes; token k - 1 is class k.

    Returns:
        (b, K, h, w) uint8: k in the map of class k, 0 elsewhere.
    """
    ids = torch.arange(1, num_classes + 1, device=logits.device)[:, None, None]
    return torch.where(logits[:, 0, :num_classes] > 0, ids, 0).to(torch.uint8)
