"""The values that pass between the model and everything around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from samadapt.errors import PromptError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """How an image was placed in the model's square: enough to invert it.

    Attributes:
        original: (height, width) of the image as it was read, in pixels.
        resized: (height, width) after the resize, at the top left of the square, in pixels.
        size: side of the square that the model sees, in pixels; zero beyond ``resized``.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    size: int


@dataclass(frozen=True)
class Preprocessing:
    """What a set of weights expects of its input; recorded with every adapter.

    Attributes:
        normalization: ``"mean_std"``: (x - mean) / std on 0-255 RGB, as SAM; ``"min_max"``: each
            image scaled to [0, 1] by its own extremes before padding, as MedSAM and LiteMedSAM.
        resize: ``"longest"``: keep the aspect, pad right and below; ``"squash"``: to the square.
        mean: per channel, on 0-255 RGB; used by ``"mean_std"`` only.
        std: per channel, on 0-255 RGB; used by ``"mean_std"`` only.
    """

    normalization: Literal["mean_std", "min_max"] = "mean_std"
    resize: Literal["longest", "squash"] = "longest"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class AttentionBlock:
    """One attention block of an image encoder, as the methods see it.

    Attributes:
        index: 0-based position among the encoder's attention blocks.
        block, attn, qkv, proj, mlp: dotted module paths from the root of ``Sam``.
        kind: ``"window"`` or ``"global"`` attention.
        width: channels of the token stream.
        heads: attention heads.
        qkv_order: order of the fused projection's rows: ``"qkv_head"`` is (q | k | v, head,
            channel), as SAM's ViT; ``"head_qkv"`` is (head, q | k | v, channel), as TinyViT.
    """

    index: int
    block: str
    attn: str
    qkv: str
    proj: str
    mlp: str
    kind: Literal["window", "global"]
    width: int
    heads: int
    qkv_order: Literal["qkv_head", "head_qkv"]


@dataclass(frozen=True)
class Prompts:
    """Prompts for b images, p objects each, in the model frame; (x, y) in pixels.

    Attributes:
        points: (b, p, k, 2) or None.
        point_labels: (b, p, k); 1 foreground, 0 background, -1 padding; None without points.
        boxes: (b, p, 4) XYXY or None.
        masks: (b, p, 1, 4g, 4g) logits (not probabilities, not binary) or None.

    With everything None there is one unprompted object per image (p = 1).

    Raises:
        PromptError: for a wrong shape, or points without labels.
    """

    points: Tensor | None = None
    point_labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

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
    def count(self) -> int:
        """Number p of objects per image; 1 when there is no prompt at all."""
        for tensor in (self.points, self.boxes, self.masks):
            if tensor is not None:
                return int(tensor.shape[1])
        return 1


@dataclass(frozen=True)
class MaskOutput:
    """What the decoder returns for b images and p prompts.

    Attributes:
        logits: (b, p, m, 4g, 4g) in the model frame; m = 1, or the number of mask tokens.
        iou: (b, p, m) the model's own estimate of each mask's IoU.
    """

    logits: Tensor
    iou: Tensor


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
