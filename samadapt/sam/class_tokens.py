"""Mask tokens that predict classes without a prompt, beside the four of the promptable decoder.

SAM's decoder has four mask tokens: one for a single mask, three for the masks of an ambiguous
prompt. SAMed trains the three to predict classes, which takes their meaning away. These tokens come
after them instead. They enter the decoder as the tokens of a prompt do, and only where classes are
asked for, so a prompted object is decoded exactly as without them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from samadapt.sam.mask_decoder import MaskDecoder


class ClassTokens(nn.Module):
    """A token and a hypernetwork for each of K classes.

    They start as copies of the decoder's multimask tokens, cycling through them, and that of the
    background as a copy of the token of the single mask.

    Args:
        decoder: the decoder that they belong to.
        count: number K of classes.
        background: the background has a token too. Logits are those of the classes minus that of
            the background, so it has the logit 0 either way.

    Raises:
        ValueError: ``count`` is less than 1.
    """

    background: nn.Embedding | None
    background_hypernetwork: nn.Module | None

    def __init__(self, decoder: MaskDecoder, count: int, *, background: bool = False) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"the number of class tokens must be at least 1; got {count}")
        own = decoder.mask_tokens.weight
        rows = [1 + i % decoder.num_multimask for i in range(count)]
        self.tokens = nn.Embedding(count, own.shape[1], device=own.device, dtype=own.dtype)
        with torch.no_grad():
            self.tokens.weight.copy_(own[rows])
        networks = decoder.output_hypernetworks_mlps
        self.hypernetworks = nn.ModuleList(copy.deepcopy(networks[row]) for row in rows)
        self.register_module("background", None)
        self.register_module("background_hypernetwork", None)
        if background:
            self.background = nn.Embedding(1, own.shape[1], device=own.device, dtype=own.dtype)
            with torch.no_grad():
                self.background.weight.copy_(own[:1])
            self.background_hypernetwork = copy.deepcopy(networks[0])

    @property
    def count(self) -> int:
        """Number K of classes."""
        return self.tokens.num_embeddings

    def expanded(self, batch: int) -> Float[Tensor, "b 1 t c"]:
        """Return the tokens (b, 1, t, c) of ``batch`` = b images, that of the background last."""
        weight = self.tokens.weight
        if self.background is not None:
            weight = torch.cat([weight, self.background.weight])
        return weight.expand(batch, 1, -1, -1)

    def kernels(self, tokens: Float[Tensor, "b 1 t c"]) -> Float[Tensor, "b 1 d K"]:
        """Return the kernel of each class from decoded tokens, of which the last are these."""
        first = tokens.shape[2] - self.count - (0 if self.background is None else 1)
        made = [network(tokens[:, :, first + k]) for k, network in enumerate(self.hypernetworks)]
        kernels = torch.stack(made, dim=-1)
        if self.background_hypernetwork is None:
            return kernels
        # A logit is a product with the kernel, so a difference of kernels is one of logits.
        background: Tensor = self.background_hypernetwork(tokens[:, :, -1])
        return kernels - background[..., None]
