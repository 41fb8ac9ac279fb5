"""Learned tokens that every cell attends to: visual prompt tuning in SAM's encoder.

Jia et al. 2022, "Visual Prompt Tuning" (VPT-deep), puts new learned tokens before every block; what
they do there is to be keys and values for the others. As further keys in the same softmax they take
weight from the image's own, so no start would be the identity, and SAM's attention in tiles has no
place for them. So they get a softmax of their own behind a gate that starts at zero, as in Zhang et
al. 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention",
section 3.2: each head gives ``attention(q, image) + tanh(gate) * softmax(q K' / sqrt(d)) V'``, with
K' and V' the frozen projections of the tokens. The tokens have no place in the image, so no
relative position is added to their scores. They are not in the stream: the grid keeps its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import LINEARS, Method, register, require_count
from samadapt.methods.decoder_modules import attentions
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("prompt_tokens")
@dataclass(frozen=True)
class PromptTokens(Method):
    """Tokens as further keys and values of every chosen attention, and a gate for each head.

    With ``decoder=own`` of every attention of the decoder, too. The decoder's own learned tokens
    stay as they are.

    Attributes:
        tokens: how many for each attention.
    """

    summary: ClassVar[str] = "learned tokens as gated keys and values of the attention"
    lr: ClassVar[float] = 1e-3
    can_merge: ClassVar[bool] = False
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = LINEARS
    """It multiplies by the weights of qkv and proj itself, so nothing else may wrap them."""

    tokens: Whole = Field(default=8, description="learned tokens for each attention", ge=1)

    def validate(self) -> None:
        """Check tokens."""
        require_count("tokens", self.tokens)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Hang ``prompt`` on every attention."""
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.prompt_tokens_layer import (
            GatedTokens,
            add_prompt,
            add_prompt_to_decoder,
        )

        for block in blocks:
            by_head = block.qkv_order == "head_qkv"
            child = GatedTokens(self.tokens, block.width, block.heads, by_head=by_head)
            attach(sam.get_submodule(block.attn), "prompt", child, add_prompt)
        build = sam.build
        for path in attentions(sam) if self.decoder == "own" else ():
            child = GatedTokens(self.tokens, build.prompt_width, build.decoder_heads, by_head=False)
            attach(sam.get_submodule(path), "prompt", child, add_prompt_to_decoder)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the tokens and a gate for each head of every block."""
        del sam
        return sum(self.tokens * block.width + block.heads for block in blocks)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the tokens and a gate for each head of every attention."""
        build = sam.build
        count = 3 * build.decoder_depth + 1
        return count * (self.tokens * build.prompt_width + build.decoder_heads)
