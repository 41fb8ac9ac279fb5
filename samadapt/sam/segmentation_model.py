"""What training, evaluation and prediction need of a model: SAM has it, and so has a U-Net.

``embed.py`` and ``decode.py`` go through this interface alone, so a model that takes its place runs
on the same slices, with the same losses and the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.dense_head import DenseHead
from samadapt.sam.types import AttentionBlock, Frame, MaskOutput, Preprocessing, Prompts
from samadapt.sam.watershed import Watershed


class SegmentationModel(nn.Module):
    """A model that maps images in a square of s pixels to the logits of masks.

    Attributes:
        image_size: side s of the model's square in pixels.
        embedding_size: side g of the grid of the image embedding.
        preprocessing: how images are resized and normalised.
        mask_threshold: logit above which a pixel belongs to a mask.
        dense_head: predicts classes at the picture's resolution; None: ``decode`` predicts them.
    """

    image_size: int
    embedding_size: int
    preprocessing: Preprocessing
    mask_threshold: float = 0.0
    dense_head: DenseHead | None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        raise NotImplementedError

    @property
    def input_channels(self) -> int:
        """Number of channels of the images that ``preprocess`` takes."""
        raise NotImplementedError

    @property
    def watershed(self) -> Watershed | None:
        """What separates the objects of a class; None: the model predicts classes alone."""
        return None if self.dense_head is None else self.dense_head.watershed

    @property
    def has_class_tokens(self) -> bool:
        """Whether classes have tokens of their own, so that the mask tokens answer to prompts."""
        return False

    @property
    def gives_object_scores(self) -> bool:
        """Whether ``decode`` says for each prompted object if it is in the image, as SAM 2 does."""
        return False

    @property
    def logits_side(self) -> int:
        """Side of the grid on which the model predicts classes without a prompt."""
        raise NotImplementedError

    def preprocess(
        self, images: Shaped[Tensor, "b n h w"] | Sequence[Shaped[Tensor, "n _ _"]]
    ) -> Float[Tensor, "b c s s"]:
        """Normalise resized images (n, h, w) and pad them to the square: (b, c, s, s)."""
        raise NotImplementedError

    def encode(
        self, images: Float[Tensor, "b n s s"], seen: list[Tensor] | None = None
    ) -> Float[Tensor, "b c g g"]:
        """Embed preprocessed images (b, n, s, s); ``seen`` is that of ``Sam.encode``."""
        raise NotImplementedError

    def encode_prefix(
        self,
        images: Float[Tensor, "b n s s"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Run the frozen part of the encoder; a model without frozen blocks runs nothing."""
        del first_trainable_block, seen
        return images

    def encode_suffix(
        self,
        features: Float[Tensor, "b ..."],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b c g g"]:
        """Run the rest of the encoder on what ``encode_prefix`` returned."""
        del first_trainable_block
        return self.encode(features, seen)

    def prefix_shape(self, first_trainable_block: int) -> tuple[int, ...]:
        """Return the shape of what ``encode_prefix`` returns, without the batch."""
        raise NotImplementedError

    def decode(
        self, embeddings: Float[Tensor, "b c g g"], prompts: Prompts, *, multimask: bool
    ) -> MaskOutput:
        """Decode p objects in each of b images; without a prompt, all classes at once."""
        raise NotImplementedError

    def decode_classes(self, embeddings: Float[Tensor, "b c g g"]) -> MaskOutput:
        """Predict the classes of b images without a prompt; ``iou`` says nothing about them."""
        return self.decode(embeddings, Prompts(), multimask=True)

    def decode_background(self, embeddings: Float[Tensor, "b c g g"]) -> Float[Tensor, "b 1 1 s s"]:
        """Return the logits of the mask token that stands for the background, without a prompt."""
        return self.decode(embeddings, Prompts(), multimask=False).logits

    def attention_blocks(self) -> tuple[AttentionBlock, ...]:
        """Return the attention blocks of the encoder in order; a model may have none."""
        return ()

    def postprocess(
        self, logits: Float[Tensor, "b p m h w"], frame: Frame
    ) -> Float[Tensor, "b p m H W"]:
        """Resize logits to the original images, with the arithmetic of segment-anything.

        Logits are enlarged to the model's square, the padding is cut off, and the rest is resized
        to the original size, all bilinear. A size that stays the same changes no value.

        Args:
            logits: (b, p, m, h, w) in the model frame.
            frame: the frame that all b images share.

        Returns:
            (b, p, m, H, W) logits for the pixels of ``frame.original``, in float32 or wider.

        Raises:
            ValueError: the frame belongs to another image size.
        """
        if frame.size not in (self.image_size, self.logits_side):
            raise ValueError(f"the frame must be of size {self.image_size}; got {frame.size}")
        planes = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        square = functional.interpolate(planes, (frame.size, frame.size), mode="bilinear")
        valid = square[..., : frame.resized[0], : frame.resized[1]]
        original = functional.interpolate(valid, frame.original, mode="bilinear")
        return torch.unflatten(original, 0, logits.shape[:2])
