"""The two graphs that AnyLabeling and X-AnyLabeling run, which prepare pictures and choose masks.

These programs scale every picture into a frame of 684 x 1024 pixels, fill the rest with black, and
give the encoder that frame as (684, 1024, 3) values of 0 to 255. A prompt always ends with a point
at (0, 0) labelled -1. The first mask of the first output is drawn where it is above 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.export.onnx_decoder import PromptAndMaskDecoder
from samadapt.sam.model import Sam


class FrameEncoder(nn.Module):
    """Embeds a frame of these programs.

    Args:
        sam: the model, whose layers are used without a copy.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sam: Sam) -> None:
        """Keep the encoder and the rule of the pixels."""
        super().__init__()
        self.encoder, self.side = sam.image_encoder, sam.image_size
        self.min_max = sam.preprocessing.normalization == "min_max"
        self.register_buffer("mean", torch.tensor(sam.preprocessing.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(sam.preprocessing.std).view(3, 1, 1))

    def forward(self, frame: Tensor) -> Tensor:
        """Return embeddings (1, c, g, g) of a frame (h, w, 3) of 0 to 255.

        The black rows at the bottom and columns on the right are padding. SAM pads with zeros after
        the normalisation, so they are set to zero here.
        """
        pixels = frame.permute(2, 0, 1)
        seen = (pixels.amax(0) > 0).to(frame.dtype)  # (h, w)
        inside = _until_last(seen.amax(1))[:, None] * _until_last(seen.amax(0))[None]
        if self.min_max:
            low = torch.where(inside > 0, pixels, pixels.amax()).amin()
            pixels = (pixels - low) / (pixels.amax() - low).clamp(min=1e-8)
        else:
            pixels = (pixels - self.mean) / self.std
        height, width = frame.shape[0], frame.shape[1]
        square = functional.pad(pixels * inside, (0, self.side - width, 0, self.side - height))
        # The size is a number again, so that all sizes in the graph of the encoder are.
        embeddings: Tensor = self.encoder(square.reshape(1, 3, self.side, self.side))
        return embeddings


class FrameDecoder(PromptAndMaskDecoder):
    """Predicts the mask that answers the prompts of one object.

    Args:
        sam: the model, whose layers are used without a copy.
        several_for_points: whether the best of several masks answers points; None: a single point.
        several_for_boxes: the same for boxes without points.
        threshold: logit above which a pixel belongs to an object.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        several_for_points: bool | None,
        several_for_boxes: bool | None,
        threshold: float,
    ) -> None:
        """Keep references to the layers."""
        super().__init__(sam)
        self.rules = several_for_points, several_for_boxes
        self.threshold = threshold

    def example(self) -> tuple[Tensor, ...]:
        """Return example inputs for tracing: one object with two points."""
        coords, labels = torch.rand(1, 3, 2) * self.size, torch.tensor([[1.0, 0.0, -1.0]])
        embeddings, _, _, *rest = super().example()
        return (embeddings, coords, labels, *rest)

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """Predict the masks; arguments as ``PromptAndMaskDecoder.forward``, for one object.

        Returns:
            Logits (1, 1, height, width) of the answer, above 0 where the object is; IoU estimates
            (1, m) and logits (1, m, 4g, 4g) of all m mask tokens.
        """
        boxes = (point_labels == 2).sum()
        # A model has never seen the point that is not used beside a box.
        unused = (boxes > 0) & ((point_labels[:, -1:] == -1).sum() > 0)
        count = point_labels.shape[1] - unused.to(torch.int64)
        points, labels = point_coords[:, :count], point_labels[:, :count]
        low, iou = self.predict(image_embeddings, points, labels, mask_input, has_mask_input)
        clicks = ((labels == 0) | (labels == 1)).sum()
        single = ((clicks + boxes) == 1).to(torch.int64)
        rules = [single if rule is None else 0 * single + int(rule) for rule in self.rules]
        several = torch.where(clicks > 0, rules[0], rules[1])
        token = several * (1 + iou[0, 1:].argmax())
        mask = low.index_select(1, token.view(1))
        return self._resize(mask, orig_im_size) - self.threshold, iou, low


def _until_last(line: Tensor) -> Tensor:
    """Return 1 up to the last place of a line (n) that is above 0, and 0 after it."""
    return (line.flip(0).cumsum(0).flip(0) > 0).to(line.dtype)
