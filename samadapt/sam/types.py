"""The values that pass between the model and the code around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from samadapt.errors import PromptError

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.system.arrays import Array


@dataclass(frozen=True)
class Frame:
    """How an image was placed in the model's square; enough to invert it.

    Attributes:
        original: (height, width) of the image as it was read, in pixels.
        resized: (height, width) of the resized image, which lies at the top left of the square, in
            pixels. The rest of the square is zero.
        size: side of the square, in pixels.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    size: int


@dataclass(frozen=True)
class Preprocessing:
    """How pretrained weights expect their images. It is recorded with every adapter.

    Attributes:
        normalization: ``"mean_std"`` is (x - mean) / std on RGB of 0 to 255, as in SAM;
            ``"min_max"`` scales each image to [0, 1] by its own extremes before the padding, as in
            MedSAM and LiteMedSAM.
        resize: ``"longest"`` keeps the aspect and pads on the right and below; ``"shrink"`` does
            so too, but enlarges no image; ``"squash"`` stretches the image to the square.
        mean: mean of each channel, for ``"mean_std"``.
        std: standard deviation of each channel, for ``"mean_std"``.
    """

    normalization: Literal["mean_std", "min_max"] = "mean_std"
    resize: Literal["longest", "shrink", "squash"] = "longest"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class AttentionBlock:
    """Where an attention block of an image encoder is, for the methods that inject into it.

    Attributes:
        index: position among the attention blocks of the encoder, from 0.
        block, attn, qkv, proj, mlp: dotted paths of the modules from the root of ``Sam``.
        kind: ``"window"`` or ``"global"`` attention.
        width: channels of the tokens that the block makes.
        inputs: channels of the tokens that it takes; fewer than ``width`` where a stage of Hiera
            begins.
        heads: number of attention heads.
        qkv_order: order of the rows of the fused projection. ``"qkv_head"`` is (q | k | v, head,
            channel), as in SAM's ViT; ``"head_qkv"`` is (head, q | k | v, channel), as in TinyViT.
    """

    index: int
    block: str
    attn: str
    qkv: str
    proj: str
    mlp: str
    kind: Literal["window", "global"]
    width: int
    inputs: int
    heads: int
    qkv_order: Literal["qkv_head", "head_qkv"]


@dataclass(frozen=True)
class Level:
    """Features that an image encoder offers to a dense head at one depth.

    Attributes:
        channels: channels c.
        grid: side r of the grid of cells that cover the model's square.
        after: number of attention blocks that run before; one more than all of them for the neck.
        enlarged: how often a dense head doubles the grid before it reads the features.
    """

    channels: int
    grid: int
    after: int
    enlarged: int = 0


@dataclass(frozen=True)
class ImagePrompts:
    """Prompts for p objects of one image, in pixels of the original image.

    This is the form in which prompts are simulated, read from annotations and given by users.
    ``decode.to_tensors`` turns it into the tensors of ``Prompts``.

    Attributes:
        class_ids: (p,) int64 class of each object, 1..K.
        truth: (p, h, w) bool ground truth of each object, or None if there is none.
        boxes: (p, 4) float32 XYXY, or None.
        points: (p, k, 2) float32 (x, y), or None.
        point_labels: (p, k) int64; 1 foreground, 0 background, -1 padding; None without points.
        mask_logits: (p, 1, 4g, 4g) float32 mask prompts in the model frame, or None.
        masks: (p, h, w) bool mask prompts, or None. ``mask_logits`` take their place if both are
            given.
        object_numbers: (p,) int64 number of each object in its volume or picture, from 1; None: 1
            to p. See ``numbers``.
    """

    class_ids: Array
    truth: Array | None = None
    boxes: Array | None = None
    points: Array | None = None
    point_labels: Array | None = None
    mask_logits: Array | None = None
    masks: Array | None = None
    object_numbers: Array | None = None

    def __len__(self) -> int:
        """Return the number p of objects."""
        return len(self.class_ids)

    @property
    def numbers(self) -> Array:
        """(p,) int64 number of each object, from 1."""
        if self.object_numbers is None:
            return np.arange(1, len(self) + 1)
        return self.object_numbers

    @property
    def has_masks(self) -> bool:
        """Whether a mask prompts each object."""
        return self.masks is not None or self.mask_logits is not None

    def take(self, indices: Array) -> ImagePrompts:
        """Return the objects at ``indices`` (q,); an index may occur several times."""

        def pick(array: Array | None) -> Array | None:
            return None if array is None else array[indices]

        return ImagePrompts(
            class_ids=self.class_ids[indices],
            truth=pick(self.truth),
            boxes=pick(self.boxes),
            points=pick(self.points),
            point_labels=pick(self.point_labels),
            mask_logits=pick(self.mask_logits),
            masks=pick(self.masks),
            object_numbers=pick(self.object_numbers),
        )

    def of_classes(self, wanted: Iterable[int]) -> ImagePrompts:
        """Return the objects whose class is among ``wanted``."""
        return self.take(np.flatnonzero(np.isin(self.class_ids, list(wanted))))

    def class_ids_at(self, positions: Array) -> Array:
        """Return the class id of each pixel, given its object's position 1..p; 0 stays 0."""
        return np.concatenate([[0], self.class_ids])[positions]

    def check(self, where: str = "") -> None:
        """Check the shapes.

        Args:
            where: what the message starts with.

        Raises:
            PromptError: says what was expected and what was found.
        """
        count = len(self)
        boxes, points, labels = self.boxes, self.points, self.point_labels
        if boxes is not None and boxes.shape != (count, 4):
            raise PromptError(f"{where}boxes must be ({count}, 4) XYXY; got {boxes.shape}")
        if (points is None) != (labels is None):
            raise PromptError(f"{where}points and point_labels must be given together")
        if points is not None and labels is not None:
            if points.ndim != 3 or points.shape[::2] != (count, 2):
                raise PromptError(
                    f"{where}points must be ({count}, k, 2) (x, y); got {points.shape}"
                )
            if labels.shape != points.shape[:2]:
                raise PromptError(
                    f"{where}point_labels must be {points.shape[:2]}; got {labels.shape}"
                )
        if self.masks is not None and (self.masks.ndim != 3 or len(self.masks) != count):
            raise PromptError(f"{where}masks must be ({count}, h, w); got {self.masks.shape}")
        if count and boxes is None and points is None and not self.has_masks:
            raise PromptError(f"{where}{count} objects need boxes, points or masks; got none")
        ids = self.class_ids
        if count and not (ids.min() >= 1 and ids.max() <= 255):
            raise PromptError(f"{where}class_ids must be 1 to 255; got {ids.tolist()}")


def joined_prompts(prompts: Sequence[ImagePrompts]) -> ImagePrompts:
    """Return objects that are prompted in the same way as those of one image."""

    def joined(name: str) -> Array | None:
        parts = [getattr(prompt, name) for prompt in prompts]
        return None if parts[0] is None else np.concatenate(parts)

    return ImagePrompts(
        class_ids=np.concatenate([prompt.class_ids for prompt in prompts]),
        truth=joined("truth"),
        boxes=joined("boxes"),
        points=joined("points"),
        point_labels=joined("point_labels"),
        mask_logits=joined("mask_logits"),
        masks=joined("masks"),
        object_numbers=joined("object_numbers"),
    )


@dataclass(frozen=True)
class Prompts:
    """Prompts for b images with p objects each, as tensors in pixels of the model frame.

    If everything is None, there is one object without a prompt in each image (p = 1).

    Attributes:
        points: (b, p, k, 2) float (x, y), or None.
        point_labels: (b, p, k); 1 foreground, 0 background, -1 padding; None without points.
        boxes: (b, p, 4) float XYXY, or None.
        masks: (b, p, 1, 4g, 4g) logits, neither probabilities nor binary, or None.
        is_complete: the points hold everything: labels 2 and 3 are the two corners of a box, as in
            segment-anything's ONNX model, and no padding point is added. So objects with a box and
            objects with points fit into one tensor.

    Raises:
        PromptError: a tensor has a wrong shape, or there are points without labels.
    """

    points: Tensor | None = None
    point_labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    is_complete: bool = False

    def __post_init__(self) -> None:
        if (self.points is None) != (self.point_labels is None):
            raise PromptError("points and point_labels must be given together")
        if self.points is not None and self.point_labels is not None:
            if self.points.ndim != 4 or self.points.shape[-1] != 2:
                raise PromptError(f"points must be (b, p, k, 2) pixels; got {_shape(self.points)}")
            if self.point_labels.shape != self.points.shape[:3]:
                raise PromptError(
                    f"point_labels must be (b, p, k) = {tuple(self.points.shape[:3])}; "
                    f"got {_shape(self.point_labels)}"
                )
        if self.boxes is not None and (self.boxes.ndim != 3 or self.boxes.shape[-1] != 4):
            raise PromptError(f"boxes must be (b, p, 4) XYXY pixels; got {_shape(self.boxes)}")
        if self.masks is not None and (self.masks.ndim != 5 or self.masks.shape[2] != 1):
            raise PromptError(f"masks must be (b, p, 1, h, w) logits; got {_shape(self.masks)}")
        given = (self.points, self.boxes, self.masks)
        leading = {tuple(t.shape[:2]) for t in given if t is not None}
        if len(leading) > 1:
            raise PromptError(f"points, boxes and masks must share (b, p); got {sorted(leading)}")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is prompted."""
        return self.points is None and self.boxes is None and self.masks is None

    @property
    def count(self) -> int:
        """Number p of objects in each image; 1 if there is no prompt at all."""
        for tensor in (self.points, self.boxes, self.masks):
            if tensor is not None:
                return int(tensor.shape[1])
        return 1


@dataclass(frozen=True)
class MaskOutput:
    """What the mask decoder returns for b images with p objects each.

    Attributes:
        logits: (b, p, m, 4g, 4g) in the model frame; m is 1, or the number of multimask outputs.
        iou: (b, p, m), the IoU that the model estimates for each mask.
        object_score: (b, p, 1), SAM 2's logit of whether the object is in the image; None for the
            first SAM.
    """

    logits: Tensor
    iou: Tensor
    object_score: Tensor | None = None


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Return a tensor in fp32 if its type is shorter; fp64 stays."""
    return tensor if tensor.itemsize > 4 else tensor.float()
