"""Embeddings and prompts to masks and their estimated IoU (SAM, appendix A)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from samadapt.sam.layers import MLP, LayerNorm2d
from samadapt.sam.two_way_transformer import TwoWayTransformer
from samadapt.sam.types import MaskOutput

RowsT = TypeVar("RowsT", nn.Linear, nn.Embedding)


class MaskDecoder(nn.Module):
    """SAM's mask decoder with the official state-dict names, batched over images and objects.

    Args:
        width: channels c of embeddings and prompts.
        depth: layers of the two-way transformer.
        heads: its attention heads.
        mlp: hidden width of its MLPs.
        iou_width: hidden width of the IoU head.
        num_multimask: masks of a multimask output; token 0 besides them gives the single mask.
    """

    def __init__(
        self, width: int, *, depth: int, heads: int, mlp: int, iou_width: int, num_multimask: int
    ) -> None:
        """Make the layers."""
        super().__init__()
        tokens = num_multimask + 1
        self.transformer = TwoWayTransformer(depth, width, heads, mlp)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(tokens, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8) for _ in range(tokens)
        )
        self.iou_prediction_head = MLP(width, iou_width, tokens)

    @property
    def num_multimask(self) -> int:
        """Masks of a multimask output."""
        return self.mask_tokens.num_embeddings - 1

    def forward(
        self,
        embeddings: Tensor,
        position: Tensor,
        sparse: Tensor,
        dense: Tensor,
        *,
        multimask: bool,
    ) -> MaskOutput:
        """Decode p objects in each of b images.

        Only the mask tokens that are asked for go through their hypernetwork; the others get no
        gradient there.

        Args:
            embeddings: (b, c, g, g).
            position: (c, g, g), of the embedding's cells.
            sparse: (b, p, n, c) prompt tokens, n may be 0.
            dense: (b, p, c, g, g), or anything that broadcasts to it.
            multimask: give the ``num_multimask`` masks, or the single one.
        """
        batch, count = sparse.shape[:2]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, count, -1, -1), sparse], dim=2)
        image = (embeddings[:, None] + dense).flatten(-2).transpose(-2, -1)
        tokens, image = self.transformer(image, position.flatten(-2).t(), tokens)

        image = image.expand(batch, count, -1, -1).transpose(-2, -1)
        image = torch.unflatten(image, -1, embeddings.shape[-2:]).flatten(0, 1)
        upscaled: Tensor = self.output_upscaling(image)
        pixels = torch.unflatten(upscaled, 0, (batch, count))
        chosen = range(1, self.num_multimask + 1) if multimask else range(1)
        kernels = torch.stack(
            [self.output_hypernetworks_mlps[i](tokens[:, :, 1 + i]) for i in chosen], dim=2
        )
        logits = torch.unflatten(kernels @ pixels.flatten(-2), -1, pixels.shape[-2:])
        iou = self.iou_prediction_head(tokens[:, :, 0])[..., chosen.start : chosen.stop]
        return MaskOutput(logits=logits, iou=iou)

    def resize_mask_tokens(self, count: int) -> None:
        """Set the number of multimask outputs; new ones copy the present ones in turn.

        Tokens, hypernetworks and rows of the IoU head are copied alike. The parameters are new
        objects with the old ones' ``requires_grad``.

        Raises:
            ValueError: if ``count`` is less than 1.
        """
        if count < 1:
            raise ValueError(f"the number of mask outputs must be at least 1; got {count}")
        rows = [0, *(1 + i % self.num_multimask for i in range(count))]
        head = self.iou_prediction_head.layers[-1]
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the IoU head must end in nn.Linear; got {type(head).__name__}")
        networks = []
        for row in rows:
            old = self.output_hypernetworks_mlps[row]
            networks.append(copy.deepcopy(old) if old in networks else old)
        self.output_hypernetworks_mlps = nn.ModuleList(networks)
        self.mask_tokens = _take_rows(self.mask_tokens, rows)
        self.iou_prediction_head.layers[-1] = _take_rows(head, rows)


def _take_rows(module: RowsT, rows: list[int]) -> RowsT:
    """Copy a module whose parameters are the old one's rows."""
    taken = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        value = nn.Parameter(parameter.detach()[rows].clone(), parameter.requires_grad)
        setattr(taken, name, value)
    if isinstance(taken, nn.Embedding):
        taken.num_embeddings = len(rows)
    else:
        taken.out_features = len(rows)
    return taken
