"""Segment objects on one slice of a volume after another with the memory of SAM 2.

The objects of a call are prompted on the same slices, so that their memories lie equally far away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from samadapt.errors import ConfigError
from samadapt.sam.model import Sam
from samadapt.sam.prompt_encoder import Sam2PromptEncoder
from samadapt.sam.sam2_mask_decoder import Sam2MaskDecoder
from samadapt.sam.types import MaskOutput, Prompts
from samadapt.sam.video_memory import NO_OBJECT, MemoryBank, SliceMemory, VideoMemory, make_memory

if TYPE_CHECKING:
    from samadapt.sam.segmentation_model import SegmentationModel


@dataclass(frozen=True)
class TrackedObjects:
    """n objects on one slice.

    Attributes:
        logits: (n, 1, 4g, 4g) of the best mask of each, ``NO_OBJECT`` if it is not there.
        iou: (n,), the predicted IoU of that mask.
        masks: everything that the decoder found: logits (n, 1, m, 4g, 4g), IoU (n, 1, m) and the
            score (n, 1, 1) of each object, above 0 if it is there.
        memory: what the slice leaves.
    """

    logits: Float[Tensor, "n 1 s s"]
    iou: Float[Tensor, " n"]
    masks: MaskOutput
    memory: SliceMemory


def why_no_memory(sam: SegmentationModel) -> str:
    """Return why a model cannot carry objects by memory; empty if it can."""
    if not isinstance(sam, Sam):
        return "this model is no SAM 2"
    if sam.build.version == "1":
        return f"{sam.build.name} has none; only SAM 2 has"
    if sam.build.version == "3":
        return f"that of SAM 3 is not supported, so {sam.build.name} has none; only SAM 2 has"
    if not sam.memory:
        return (
            f"the weights of {sam.build.name} were loaded from a file without it; expected a file "
            "of sam2, as Meta publishes it, or a directory of transformers' Sam2VideoModel"
        )
    return ""


def open_memory(sam: SegmentationModel) -> VideoMemory:
    """Return the memory of a model on its device: the one that trains, if there is one.

    Otherwise it is frozen and shares the tensors of the model.

    Raises:
        ConfigError: the model has none.
    """
    if (reason := why_no_memory(sam)) or not isinstance(sam, Sam):
        raise ConfigError(f"propagate=memory needs the memory of SAM 2: {reason}")
    if sam.video_memory is not None:
        return sam.video_memory
    memory = make_memory(sam.build, sam.memory)
    return memory.to(sam.device, sam.dtype).requires_grad_(False).eval()


class Tracker:
    """Segments objects with a model and its memory, with gradients.

    Args:
        sam: a SAM 2.
        slices: number of slices of the volume or clip.
        training: keep the gradient of memories: neither turn prompted masks to 0 and 1 nor round
            maps to bfloat16, which sam2 does in predictions.

    Raises:
        ConfigError: the model has no memory.
    """

    def __init__(self, sam: SegmentationModel, slices: int, *, training: bool = False) -> None:
        self.memory = open_memory(sam)
        self.slices, self.training = slices, training
        model: Any = sam  # a model with a memory is a SAM 2
        self._encoder: Sam2PromptEncoder = model.prompt_encoder
        self._decoder: Sam2MaskDecoder = model.mask_decoder

    def prompted(
        self, embeddings: Float[Tensor, "n e g g"], prompts: Prompts, *, multimask: bool
    ) -> TrackedObjects:
        """Segment an object on each of n images by its prompt.

        Args:
            embeddings: (n, e, g, g), what ``Sam.encode`` returned, once for each object.
            prompts: one object for each.
            multimask: choose the best of several masks.
        """
        return self._decode(embeddings, embeddings, prompts, is_prompted=True, multimask=multimask)

    def tracked(
        self,
        embeddings: Float[Tensor, "n e g g"],
        bank: MemoryBank,
        index: int,
        step: int,
        *,
        multimask: bool = True,
    ) -> TrackedObjects:
        """Segment n objects on a slice by their memories, and keep what the slice leaves.

        Args:
            embeddings: (n, e, g, g), that of the slice once for each object.
            bank: their memories.
            index: the slice.
            step: 1 upwards, -1 downwards.
            multimask: choose the best of several masks, as sam2 does.
        """
        plain = self._without_condition(embeddings)
        conditioned = self.memory.condition(plain, bank, index, step, self.slices)
        shown = torch.cat([conditioned.to(plain.dtype), embeddings[:, plain.shape[1] :]], dim=1)
        found = self._decode(embeddings, shown, Prompts(), is_prompted=False, multimask=multimask)
        bank.add(index, found.memory)
        return found

    def _decode(
        self,
        embeddings: Tensor,
        shown: Tensor,
        prompts: Prompts,
        *,
        is_prompted: bool,
        multimask: bool,
    ) -> TrackedObjects:
        encoder, decoder = self._encoder, self._decoder
        sparse, dense = encoder(prompts, len(shown))
        masks, tokens = decoder.decode_with_tokens(
            shown, encoder.dense_position(), sparse, dense, multimask=multimask
        )
        if masks.object_score is None:
            raise TypeError("the mask decoder of SAM 2 gives each object a score")
        scores = masks.object_score[:, 0]  # (n, 1)
        best = masks.iou[:, 0].argmax(dim=1)  # (n,)
        rows = torch.arange(len(best), device=best.device)
        logits = masks.logits[rows, 0, best][:, None]
        logits = torch.where(scores[..., None, None] > 0, logits, NO_OBJECT)
        token = tokens[rows, 0, best if multimask else torch.zeros_like(best)]
        binary = is_prompted and not self.training
        plain = self._without_condition(embeddings)
        maps = self.memory.encode(plain, logits, scores, binary=binary)
        if not self.training:
            maps = maps.to(torch.bfloat16)
        memory = SliceMemory(maps, self.memory.point(token, scores))
        return TrackedObjects(logits, masks.iou[rows, 0, best], masks, memory)

    def _without_condition(self, embeddings: Tensor) -> Float[Tensor, "n c g g"]:
        """Return the first c channels without what marks the embedding of a still image."""
        decoder = self._decoder
        return embeddings[:, : decoder.width] - decoder.no_mem_embed.view(1, -1, 1, 1)
