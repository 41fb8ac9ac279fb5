"""A stand-in for a model, which sees the truth in the colours of a picture."""

from __future__ import annotations

import torch
from torch import nn

from samadapt.sam.segmentation_model import SegmentationModel
from samadapt.sam.types import MaskOutput, Preprocessing

STEP = 85
"""Grey values between one class (or object) and the next."""


class Oracle(nn.Module):
    """Says which pixels have the colour of a class, or that of the prompted place.

    Its side is an odd multiple of every image's longer side in these tests, so that the centres
    of the original pixels are pixels of its own, and nothing is lost on the way.
    """

    preprocessing = Preprocessing()
    device = torch.device("cpu")
    dense_head, logits_side = None, 44
    image_size, embedding_size, mask_threshold, input_channels = 45, 11, 0.0, 3
    watershed = None
    postprocess = SegmentationModel.postprocess
    decode_classes = SegmentationModel.decode_classes

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes, self.seen = classes, []

    def preprocess(self, images):
        size = self.image_size
        return torch.stack(
            [nn.functional.pad(i, (0, size - i.shape[2], 0, size - i.shape[1])) for i in images]
        )

    def encode(self, images):
        grey = images[:, :1]  # its embedding is the picture itself
        self.seen += [image.clone() for image in grey]
        return grey

    def decode(self, embeddings, prompts, *, multimask):
        if prompts.boxes is None and prompts.points is None and prompts.masks is None:
            wanted = STEP * torch.arange(1, self.classes + 1).view(1, 1, -1, 1, 1)
            logits = torch.where(embeddings[:, None] == wanted, 1.0, -1.0)
            return MaskOutput(logits, logits.mean((-2, -1)))
        places = self.places(prompts).long().clamp(0, self.image_size - 1)
        rows = torch.arange(len(embeddings))[:, None]
        value = embeddings[rows, 0, places[..., 1], places[..., 0]][..., None, None, None]
        same = (embeddings[:, None] == value) & (value > 0)
        logits = torch.where(same, 1.0, -1.0)
        return MaskOutput(logits, logits.mean((-2, -1)))

    def places(self, prompts):
        if prompts.boxes is not None:
            return (prompts.boxes[..., :2] + prompts.boxes[..., 2:]) / 2
        if prompts.points is not None:
            return prompts.points[:, :, 0]
        best = prompts.masks.flatten(2).argmax(2)
        return torch.stack([best % self.image_size, best // self.image_size], dim=-1)
