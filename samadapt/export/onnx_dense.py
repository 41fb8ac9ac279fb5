"""A model with a dense head as one graph: from the picture to the logits of its classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.errors import ConfigError
from samadapt.export.onnx_decoder import PromptAndMaskDecoder
from samadapt.sam.dense_features import PICTURE_MEAN, PICTURE_STD, reduce_levels
from samadapt.sam.model import Sam

INPUTS, OUTPUTS = ("input_image", "picture"), ("class_logits",)


class ClassPredictor(nn.Module):
    """Predicts the classes of one picture without a prompt.

    These are the layers of ``class_logits`` in plain form; see ``PromptAndMaskDecoder``.

    Args:
        sam: a model with a dense head, whose layers are used without a copy.

    Raises:
        ConfigError: the model has no dense head.
    """

    def __init__(self, sam: Sam) -> None:
        """Keep references to the layers."""
        super().__init__()
        if sam.dense_head is None:
            raise ConfigError("expected a model with a dense head; this one has none")
        self.sam, self.head = sam, sam.dense_head
        self.decoder = PromptAndMaskDecoder(sam)
        self.size = sam.image_size

    def example(self) -> tuple[Tensor, Tensor]:
        """Return example inputs for tracing."""
        settings = self.head.settings
        picture = torch.zeros(1, settings.channels, settings.side, settings.side)
        return torch.randn(1, 3, self.size, self.size), picture

    def forward(self, input_image: Tensor, picture: Tensor) -> Tensor:
        """Predict the classes.

        Args:
            input_image: (1, 3, s, s), resized, normalised and padded for the image encoder.
            picture: (1, n, d, d) values of 0 to 255, resized to the square of the head and padded
                with zeros on the right and below.

        Returns:
            Logits (1, K, d, d); the background has the logit 0.
        """
        seen: list[Tensor] = []
        embedding = self.sam.encode(input_image, seen)
        levels = [*reduce_levels(self.head, seen), embedding]
        logits: Tensor = self.head((picture - PICTURE_MEAN) / PICTURE_STD, levels)
        if not self.head.settings.sam_logits:
            return logits
        own = self.decoder.class_logits(embedding)[:, : self.head.classes]
        side = (self.head.settings.side,) * 2
        return logits + functional.interpolate(own, side, mode="bilinear")
