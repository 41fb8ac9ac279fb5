"""Embeddings and prompts to masks and their estimated IoU (SAM, appendix A)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.layers import MLP, is_traced
from samadapt.sam.two_way_transformer import TwoWayTransformer
from samadapt.sam.types import MaskOutput

RowsT = TypeVar("RowsT", nn.Linear, nn.Embedding)
CACHE = 16 * 2**20  # bytes of one tensor; 4 and 8 MiB were up to a tenth slower on a Xeon


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
            Upscaling(width, width // 4, kernel_size=2, stride=2),
            nn.LayerNorm(width // 4, eps=1e-6),
            nn.GELU(),
            Upscaling(width // 4, width // 8, kernel_size=2, stride=2),
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
        chosen = range(1, self.num_multimask + 1) if multimask else range(1)
        logits, iou = [], []
        for tokens, image in self._attended(embeddings, position, sparse, dense):
            logits.append(self._draw(tokens, image, chosen, embeddings.shape[-1]))
            iou.append(self._score(tokens, chosen))
        return MaskOutput(logits=torch.cat(logits, dim=1), iou=torch.cat(iou, dim=1))

    def above(
        self, embeddings: Tensor, position: Tensor, sparse: Tensor, dense: Tensor, least: float
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Decode p objects in one image, and draw the masks whose estimated IoU is high enough.

        Args:
            embeddings: (1, c, g, g).
            position: (c, g, g), of the embedding's cells.
            sparse: (1, p, n, c).
            dense: (1, p, c, g, g), or anything that broadcasts to it.
            least: draw masks of a multimask output with a higher IoU; 0 draws all.

        Yields:
            For some objects after the other, k masks: logits (k, 4g, 4g), IoU (k,) and the index
            (k,) of each one's object.
        """
        chosen = range(1, self.num_multimask + 1)
        start = 0
        for tokens, image in self._attended(embeddings, position, sparse, dense):
            iou = self._score(tokens, chosen)[0]
            good = iou > least if least > 0 else torch.ones_like(iou, dtype=torch.bool)
            some = good.any(dim=1)
            if not some.all():
                tokens, image = tokens[:, some], image[:, some]
            logits = self._draw(tokens, image, chosen, embeddings.shape[-1])
            yield logits[0][good[some]], iou[good], start + good.nonzero()[:, 0]
            start += len(iou)

    def _attended(
        self, embeddings: Tensor, position: Tensor, sparse: Tensor, dense: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens (b, p, t, c) and image (b, p, n, c) of some objects after the other."""
        batch, count = sparse.shape[:2]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, count, -1, -1), sparse], dim=2)
        image = (embeddings[:, None] + dense).flatten(-2).transpose(-2, -1).contiguous()
        places = position.flatten(-2).t().contiguous()
        some = _at_once(image, image[:, :1].numel())
        images = (image,) if image.shape[1] == 1 else _split(image, 1, some)
        for part, around in zip(_split(tokens, 1, some), cycle(images), strict=False):
            yield self.transformer(around, places, part)

    def _draw(self, tokens: Tensor, image: Tensor, chosen: range, side: int) -> Tensor:
        """Draw the chosen masks (b, p, m, 4g, 4g) where g is ``side``."""
        kernels = torch.stack(
            [self.output_hypernetworks_mlps[i](tokens[:, :, 1 + i]) for i in chosen], dim=-1
        )
        some = _at_once(image, 2 * image[:1, :1].numel())  # of the upscaled image
        pairs = (_split(x.flatten(0, 1), 0, some) for x in (image, kernels))
        cells = torch.cat(
            [
                self.output_upscaling(part).flatten(1, 3) @ kernel
                for part, kernel in zip(*pairs, strict=True)
            ]
        )
        shape = (*image.shape[:2], side, side, 2, 2, 2, 2, len(chosen))  # y, x, twice their halves
        return cells.view(shape).permute(0, 1, 8, 2, 4, 6, 3, 5, 7).flatten(6, 8).flatten(3, 5)

    def _score(self, tokens: Tensor, chosen: range) -> Tensor:
        """Estimate the IoU of the chosen masks: (b, p, m)."""
        iou: Tensor = self.iou_prediction_head(tokens[:, :, 0])
        return iou[..., chosen.start : chosen.stop]

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


def _at_once(image: Tensor, numbers: int) -> int | None:
    """Say how many indices, each of ``numbers`` like the image's, stay in a CPU's cache; None: all.

    Tensors that go together are split by one count: under autocast they differ in type.
    """
    if image.device.type != "cpu" or is_traced(image):
        return None
    return max(1, CACHE // max(1, numbers * image.element_size()))


def _split(x: Tensor, dim: int, count: int | None) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = (x,) if count is None else x.split(count, dim)
    return parts


class Upscaling(nn.ConvTranspose2d):
    """A transposed convolution whose kernels do not overlap, as one product for each cell."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Project cells (..., c) to their four quarters (..., 4, out), by rows."""
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = None if self.bias is None else self.bias.repeat(4)
        return torch.unflatten(functional.linear(x, weight, bias), -1, (4, -1))


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
