"""The mask decoder of SAM 2 (Ravi et al. 2024, appendix D).

It differs from SAM's in four points:

- Maps of strides 4 and 8 of the image encoder are added while the image is enlarged.
- One more token estimates whether the object is in the image at all.
- The estimated IoU goes through a sigmoid.
- A single mask that is unstable is replaced by the best of the multimask output, outside of
  training.

The maps of the encoder become one image embedding (b, 4c, g, g). A cell holds what is computed for
its pixels, so that embeddings are kept, indexed and joined as those of the first SAM::

    c channels     the embedding that the tokens attend to
    c channels     4 quarters of the cell, each with c / 4 channels       (stride 8)
    2c channels    16 sixteenths of the cell, each with c / 8 channels    (stride 4)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.layers import MLP
from samadapt.sam.mask_decoder_fast import FastMaskDecoder, join_objects
from samadapt.sam.types import MaskOutput


class StableMask(nn.Module):
    """Chooses among mask 0 and the multimask output; in training mode it keeps mask 0.

    A mask is stable if it hardly changes between two thresholds. Values are those of sam2.
    """

    OFFSET, LEAST = 0.05, 0.98

    follows_training: ClassVar[bool] = True
    """``Injection.set_training`` switches it, although all else stays in evaluation mode."""

    def forward(self, output: MaskOutput) -> MaskOutput:
        """Return one of the masks (b, p, m, h, w) of each object."""
        logits, iou = output.logits, output.iou
        single = MaskOutput(logits[:, :, :1], iou[:, :, :1], output.object_score)
        if self.training:
            return single
        flat = single.logits.flatten(2)
        inner = (flat > self.OFFSET).sum(dim=-1).float()
        outer = (flat > -self.OFFSET).sum(dim=-1).float()
        is_stable = torch.where(outer > 0, inner / outer, 1.0) >= self.LEAST  # (b, p)
        best = 1 + iou[:, :, 1:].argmax(dim=-1)
        chosen = torch.where(is_stable, 0, best)[..., None]  # (b, p, 1)
        # ``gather``, because ONNX has no ``take_along_dim``.
        place = chosen[..., None, None].expand(-1, -1, -1, *logits.shape[3:])
        return MaskOutput(
            logits=logits.gather(2, place),
            iou=iou.gather(2, chosen),
            object_score=output.object_score,
        )


class Sam2MaskDecoder(FastMaskDecoder):
    """Decodes p objects in each of b images. Arguments are those of ``MaskDecoder``.

    Its tensors have the names of sam2, except that ``no_mem_embed`` is part of it. It is added to
    the embedding of an image that no memory of a video conditions.
    """

    tokens_before_iou: ClassVar[int] = 1

    def __init__(self, width: int, **sizes: int) -> None:
        super().__init__(width, **sizes)
        self.width = width
        self.obj_score_token = nn.Embedding(1, width)
        self.pred_obj_score_head = MLP(width, width, 1)
        self.conv_s0 = nn.Conv2d(width, width // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(width, width // 4, kernel_size=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, width))
        # With another number of outputs than SAM's three, they are classes: no choice among them.
        self.stable_mask = StableMask() if self.num_multimask == 3 else None

    def own_tokens(self) -> Sequence[Tensor]:
        """Return the token of the object's score, the IoU token and the mask tokens."""
        return self.obj_score_token.weight, *super().own_tokens()

    def estimate_iou(self, tokens: Float[Tensor, "*b t c"]) -> Float[Tensor, "*b m"]:
        """Estimate the IoU of the mask of every mask token from decoded tokens."""
        return super().estimate_iou(tokens).sigmoid()

    def embed_maps(self, maps: Any) -> Float[Tensor, "b e g g"]:
        """Return the embedding (b, 4c, g, g) of maps (b, c, g, g), (b, c, 2g, 2g), (b, c, 4g, 4g).

        The two convolutions belong to the decoder, which may be trained, so this is not part of
        the frozen encoder.
        """
        embedding, middle, fine = maps
        embedding = embedding + self.no_mem_embed.view(1, -1, 1, 1)
        # (b, k, y, 2, x, 2) -> (b, 2, 2, k, y, x)
        quarters = self.conv_s1(middle).unflatten(-1, (-1, 2)).unflatten(2, (-1, 2))
        # (b, k, y, 2, 2, x, 2, 2) -> (b, 2, 2, 2, 2, k, y, x): quarters, and their quarters
        small = self.conv_s0(fine).unflatten(-1, (-1, 2, 2)).unflatten(2, (-1, 2, 2))
        parts = (
            embedding,
            quarters.permute(0, 3, 5, 1, 2, 4).flatten(1, 3),
            small.permute(0, 3, 6, 4, 7, 1, 2, 5).flatten(1, 5),
        )
        return torch.cat([part.to(embedding.dtype) for part in parts], dim=1)

    def split_embeddings(
        self, embeddings: Float[Tensor, "b e g g"]
    ) -> tuple[Float[Tensor, "b c g g"], Tensor | None]:
        """Return the first c channels, and the others as details (b, g * g, 3c)."""
        details = embeddings[:, self.width :].flatten(2).transpose(1, 2)
        return embeddings[:, : self.width], details.contiguous()

    def upscale_with(self, image: Tensor, details: Tensor) -> Tensor:
        """Enlarge cells (p, n, c) to (p, n, 4, 4, c / 8), with details (n, 3c) added."""
        first, norm, activate, second = (self.output_upscaling[i] for i in range(4))
        quarters = details[:, : self.width].unflatten(-1, (4, -1))  # (n, 4, c / 4)
        small = details[:, self.width :].unflatten(-1, (4, 4, -1))  # (n, 4, 4, c / 8)
        x = activate(norm(first(image) + quarters))
        out: Tensor = functional.gelu(second(x) + small)
        return out

    def chosen_masks(self, multimask: bool) -> range:
        """Return the indices of the mask tokens whose masks are computed.

        Outside of training all of them are needed to choose a stable single mask.
        """
        if not multimask and self.stable_mask is not None and not self.stable_mask.training:
            return range(self.num_multimask + 1)
        return super().chosen_masks(multimask)

    def decode_single(self, *inputs: Tensor) -> Float[Tensor, "b p 1 s s"]:
        """Return the logits of mask token 0, also where another mask would be chosen for it."""
        embeddings, position, sparse, dense = inputs
        embedding, details = self.split_embeddings(embeddings)
        side = embeddings.shape[-1]
        drawn = [
            self._draw(self._kernels(tokens, range(1)), image, details, side)
            for tokens, image in self._attend(embedding, position, sparse, dense)
        ]
        return torch.cat(drawn, dim=1)

    def decode_with_tokens(
        self,
        embeddings: Float[Tensor, "b e g g"],
        position: Float[Tensor, "c g g"],
        sparse: Float[Tensor, "b p n c"],
        dense: Float[Tensor, "#b #p c #g #g"],
        *,
        multimask: bool,
    ) -> tuple[MaskOutput, Float[Tensor, "b p m c"]]:
        """Decode objects, and return the decoded tokens that their masks came from.

        Arguments are those of ``MaskDecoder.forward``. A single mask has token 0, also where
        another mask is chosen for it, as in sam2.
        """
        embedding, details = self.split_embeddings(embeddings)
        chosen = self.chosen_masks(multimask)
        first = self.tokens_before_iou + 1
        named = (
            slice(first + 1, first + 1 + self.num_multimask)
            if multimask
            else slice(first, first + 1)
        )
        parts, mask_tokens = [], []
        for tokens, image in self._attend(embedding, position, sparse, dense):
            parts.append(self._decode(tokens, image, details, embeddings.shape[-1], chosen))
            mask_tokens.append(tokens[:, :, named])
        return join_objects(parts), torch.cat(mask_tokens, dim=1)

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
        """Return only masks with a high estimated IoU; see ``FastMaskDecoder.decode_above``.

        Which single mask is stable is known when all are drawn, so then none are left out before.
        """
        if multimask or not self.chooses_stable_mask:
            yield from super().decode_above(
                embeddings, position, sparse, dense, min_iou, multimask=multimask
            )
            return
        output: MaskOutput = self(embeddings, position, sparse, dense, multimask=False)
        iou = output.iou[0]  # (p, 1)
        good = iou > min_iou if min_iou > 0 else torch.ones_like(iou, dtype=torch.bool)
        yield output.logits[0][good], iou[good], good.nonzero()[:, 0]

    def resize_mask_tokens(self, count: int) -> None:
        """Set the number of multimask outputs, which then are classes: no choice among them.

        Raises:
            ValueError: ``count`` is less than 1.
        """
        super().resize_mask_tokens(count)
        self.stable_mask = None

    @property
    def chooses_stable_mask(self) -> bool:
        """Whether the single mask may be one of the multimask output, outside of training."""
        return self.stable_mask is not None

    def _decode(
        self, tokens: Tensor, image: Tensor, details: Tensor | None, side: int, chosen: range
    ) -> MaskOutput:
        """Return the chosen masks of decoded tokens (b, p, t, c) in images (b, p, n, c)."""
        found = super()._decode(tokens, image, details, side, chosen)
        score: Tensor = self.pred_obj_score_head(tokens[:, :, 0])
        output = MaskOutput(found.logits, found.iou, score)
        has_all = len(chosen) == self.num_multimask + 1
        return self.stable_mask(output) if has_all and self.stable_mask is not None else output
