"""The mask decoder as the model uses it: less work, and on the CPU a few objects at a time.

Compared with the textbook form in ``mask_decoder``:

- The cross-attention projects the tokens instead of the image (``two_way_transformer_fast``).
- Upscaling is a matrix product for each cell, because its kernels do not overlap: the image stays
  (cells, channels) and is reordered once, as masks.
- On the CPU some objects are decoded at a time, so that the image of each stays in the cache.
- ``decode_above`` draws only masks whose estimated IoU is high enough, for automatic masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.class_tokens import ClassTokens
from samadapt.sam.mask_decoder import MaskDecoder
from samadapt.sam.tracing import is_traced
from samadapt.sam.two_way_transformer_fast import FastTwoWayTransformer
from samadapt.sam.types import MaskOutput

# Bytes of one tensor that is held at once on the CPU. With 4 and 8 MiB the decoder was up to a
# tenth slower on a Xeon.
CACHE_BYTES = 16 * 2**20


class CellUpscaling(nn.ConvTranspose2d):
    """A transposed convolution of kernel 2 and stride 2, as one matrix product for each cell."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Project cells (..., c) to their four quarters (..., 4, out), in row-major order."""
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (in, out, 2, 2) -> (4 * out, in)
        bias = None if self.bias is None else self.bias.repeat(4)
        return torch.unflatten(functional.linear(x, weight, bias), -1, (4, -1))


class FastMaskDecoder(MaskDecoder):
    """``MaskDecoder`` with the same tensors and results, computed faster."""

    def make_transformer(
        self, depth: int, width: int, heads: int, mlp: int
    ) -> FastTwoWayTransformer:
        """Make the transformer between tokens and image."""
        return FastTwoWayTransformer(depth, width, heads, mlp)

    def make_upscaling(self, width: int) -> nn.Sequential:
        """Make the layers that enlarge the image: (..., c) -> (..., 4, 4, c / 8) for each cell."""
        return nn.Sequential(
            CellUpscaling(width, width // 4, kernel_size=2, stride=2),
            nn.LayerNorm(width // 4, eps=1e-6),
            nn.GELU(),
            CellUpscaling(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )

    def forward(
        self,
        embeddings: Float[Tensor, "b e g g"],
        position: Float[Tensor, "c g g"],
        sparse: Float[Tensor, "b p n c"],
        dense: Float[Tensor, "#b #p c #g #g"],
        *,
        multimask: bool,
    ) -> MaskOutput:
        """Decode p objects in each of b images; see ``MaskDecoder.forward``."""
        embedding, details = self.split_embeddings(embeddings)
        chosen = self.chosen_masks(multimask)
        parts = [
            self._decode(tokens, image, details, embeddings.shape[-1], chosen)
            for tokens, image in self._attend(embedding, position, sparse, dense)
        ]
        return join_objects(parts)

    def split_embeddings(
        self, embeddings: Float[Tensor, "b e g g"]
    ) -> tuple[Float[Tensor, "b c g g"], Tensor | None]:
        """Return the image that tokens attend to, and details that only the drawing adds."""
        return embeddings, None

    def _decode(
        self, tokens: Tensor, image: Tensor, details: Tensor | None, side: int, chosen: range
    ) -> MaskOutput:
        """Return the chosen masks of decoded tokens (b, p, t, c) in images (b, p, n, c)."""
        logits = self._draw(self._kernels(tokens, chosen), image, details, side)
        return MaskOutput(logits=logits, iou=self._score(tokens, chosen))

    def decode_classes(
        self,
        classes: ClassTokens,
        embeddings: Float[Tensor, "b e g g"],
        position: Float[Tensor, "c g g"],
        dense: Float[Tensor, "1 1 c 1 1"],
    ) -> Float[Tensor, "b 1 K s s"]:
        """Decode the classes of b images with class tokens, which take a prompt's place.

        Args:
            classes: the tokens.
            embeddings: (b, c, g, g).
            position: (c, g, g), the position embedding of the image's cells.
            dense: the embedding of no mask.

        Returns:
            (b, 1, K, s, s) logits, s = 4g.
        """
        sparse = classes.expanded(len(embeddings))
        embedding, details = self.split_embeddings(embeddings)
        ((tokens, image),) = self._attend(embedding, position, sparse, dense)
        return self._draw(classes.kernels(tokens), image, details, embeddings.shape[-1])

    def decode_above(
        self,
        embeddings: Float[Tensor, "1 e g g"],
        position: Float[Tensor, "c g g"],
        sparse: Float[Tensor, "1 p n c"],
        dense: Float[Tensor, " 1 #p c #g #g"],
        min_iou: float,
        *,
        multimask: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Decode p objects in one image and draw only the masks with a high estimated IoU.

        Args:
            embeddings: (1, c, g, g).
            position: (c, g, g), the position embedding of the image's cells.
            sparse: (1, p, n, c).
            dense: (1, p, c, g, g), or anything that broadcasts to it.
            min_iou: draw masks with a higher IoU; 0 draws all of them.
            multimask: choose among the masks of the multimask output; else there is the single one.

        Yields:
            k masks of some of the objects at a time: logits (k, 4g, 4g), IoU (k,) and the index
            (k,) of the object that each mask belongs to.
        """
        chosen, side = self.chosen_masks(multimask), embeddings.shape[-1]
        embedding, details = self.split_embeddings(embeddings)
        start = 0
        for tokens, image in self._attend(embedding, position, sparse, dense):
            iou = self._score(tokens, chosen)[0]
            good = iou > min_iou if min_iou > 0 else torch.ones_like(iou, dtype=torch.bool)
            kept = good.any(dim=1)  # objects with at least one good mask
            if not kept.all():
                tokens, image = tokens[:, kept], image[:, kept]
            logits = self._draw(self._kernels(tokens, chosen), image, details, side)
            yield logits[0][good[kept]], iou[good], start + good.nonzero()[:, 0]
            start += len(iou)

    def _attend(
        self, embeddings: Tensor, position: Tensor, sparse: Tensor, dense: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the transformer; yield tokens (b, p, t, c) and image (b, p, n, c) of some objects."""
        tokens = self.object_tokens(sparse)
        image = (embeddings[:, None] + dense).flatten(-2).transpose(-2, -1).contiguous()
        places = position.flatten(-2).t().contiguous()
        count = _count_in_cache(image, image[:, :1].numel())
        # Without mask prompts all objects share one image, (b, 1, n, c).
        images = (image,) if image.shape[1] == 1 else _split(image, 1, count)
        for some_tokens, some_image in zip(_split(tokens, 1, count), cycle(images), strict=False):
            yield self.transformer(some_image, places, some_tokens)

    def _kernels(self, tokens: Tensor, chosen: range) -> Tensor:
        """Make the kernels (b, p, c / 8, m) of the chosen masks of decoded tokens."""
        first = self.tokens_before_iou + 1
        return torch.stack(
            [self.output_hypernetworks_mlps[i](tokens[:, :, first + i]) for i in chosen], dim=-1
        )

    def _draw(self, kernels: Tensor, image: Tensor, details: Tensor | None, side: int) -> Tensor:
        """Draw a mask for each of the kernels (b, p, c / 8, m): (b, p, m, 4g, 4g)."""
        # The upscaled image has 16 times the cells and an eighth of the channels.
        count = _count_in_cache(image, 2 * image[:1, :1].numel())
        if details is None:
            pairs = (_split(x.flatten(0, 1), 0, count) for x in (image, kernels))
            drawn = [
                self.output_upscaling(part).flatten(1, 3) @ kernel
                for part, kernel in zip(*pairs, strict=True)
            ]
        else:  # all objects of an image share its details
            drawn = [
                self.upscale_with(part, detail).flatten(1, 3) @ kernel
                for one, kernels_of, detail in zip(image, kernels, details, strict=True)
                for part, kernel in zip(
                    _split(one, 0, count), _split(kernels_of, 0, count), strict=True
                )
            ]
        cells = torch.cat(drawn)
        # Cells (y, x), their quarters (2, 2), and the quarters of those (2, 2):
        # (b, p, y, x, 2, 2, 2, 2, m) -> (b, p, m, y, 2, 2, x, 2, 2) -> (b, p, m, 4g, 4g)
        shape = (*image.shape[:2], side, side, 2, 2, 2, 2, kernels.shape[-1])
        return cells.view(shape).permute(0, 1, 8, 2, 4, 6, 3, 5, 7).flatten(6, 8).flatten(3, 5)

    def upscale_with(self, image: Tensor, details: Tensor) -> Tensor:
        """Enlarge cells (p, n, c) and add the details of the image on the way; SAM 2 alone."""
        raise NotImplementedError

    def _score(self, tokens: Tensor, chosen: range) -> Tensor:
        """Estimate the IoU of the chosen masks: (b, p, m)."""
        iou = self.estimate_iou(tokens)
        return iou[..., chosen.start : chosen.stop]


def join_objects(parts: Sequence[MaskOutput]) -> MaskOutput:
    """Put masks of some objects after those of others."""
    if len(parts) == 1:
        return parts[0]
    scores = [part.object_score for part in parts if part.object_score is not None]
    return MaskOutput(
        logits=torch.cat([part.logits for part in parts], dim=1),
        iou=torch.cat([part.iou for part in parts], dim=1),
        object_score=torch.cat(scores, dim=1) if scores else None,
    )


def _count_in_cache(image: Tensor, numbers: int) -> int | None:
    """Return how many objects, each of ``numbers`` values, stay in a CPU's cache; None means all.

    Tensors that belong together are split by one count, because under autocast their types differ.
    """
    if image.device.type != "cpu" or is_traced(image):
        return None
    return max(1, CACHE_BYTES // max(1, numbers * image.element_size()))


def _split(x: Tensor, dim: int, count: int | None) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = (x,) if count is None else x.split(count, dim)
    return parts
