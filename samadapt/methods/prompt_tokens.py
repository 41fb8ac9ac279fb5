"""Learned tokens that every image token attends to: visual prompt tuning in SAM's encoder.

Jia et al. 2022, "Visual Prompt Tuning" (VPT-deep), adds new learned tokens before every block,
where they act as keys and values for the others. As further keys in the same softmax they would
take weight from the image tokens, so the model could not start at the base, and SAM's tiled
attention has no place for them. Here they have a softmax of their own and a gate that starts at
zero, as in Zhang et al. 2023, "LLaMA-Adapter: Efficient Fine-tuning of Language Models with
Zero-init Attention", section 3.2. Each head computes
``attention(q, image) + tanh(gate) * softmax(q K' / sqrt(d)) V'``, where K' and V' are the frozen
projections of the learned tokens. These have no place in the image, so no relative position is
added to their scores, and in SAM 3 neither they nor the queries are rotated for them. They are not
part of the token stream, so the grid keeps its shape. Where Hiera pools its queries, the learned
tokens answer to the pooled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import LINEARS, Method, register
from samadapt.methods.decoder_modules import attentions
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock


@register("prompt_tokens")
@dataclass(frozen=True)
class PromptTokens(Method):
    """Learned tokens as further keys and values of the attentions, and a gate for each head.

    ``decoder=own`` also adds them to every attention of the decoder. The decoder's own learned
    tokens stay as they are.

    Attributes:
        tokens: number of learned tokens for each attention.
    """

    takes_quantized: ClassVar[bool] = False  # its keys and values follow from qkv
    summary: ClassVar[str] = "learned tokens as gated keys and values of the attention"
    lr: ClassVar[float] = 1e-3
    can_merge: ClassVar[bool] = False
    takes_decoder: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = LINEARS
    """It uses the weights of qkv and proj directly, so no other method may wrap these linears."""

    tokens: Whole = Field(default=8, description="learned tokens for each attention", ge=1)

    def inject(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> None:
        """Attach ``prompt`` to every attention."""
        from samadapt.methods.attached_layer import attach
        from samadapt.methods.prompt_tokens_layer import (
            GatedTokens,
            add_prompt,
            add_prompt_to_decoder,
        )

        for block in blocks:
            by_head = block.qkv_order == "head_qkv"
            child = GatedTokens(self.tokens, block.inputs, block.heads, by_head=by_head)
            attach(sam.get_submodule(block.attn), "prompt", child, add_prompt)
        build = sam.build
        for path in attentions(sam) if self.decoder == "own" else ():
            child = GatedTokens(self.tokens, build.prompt_width, build.decoder_heads, by_head=False)
            attach(sam.get_submodule(path), "prompt", child, add_prompt_to_decoder)

    def count_parameters(self, sam: Sam, blocks: Sequence[AttentionBlock]) -> int:
        """Return the size of the tokens and gates of every block."""
        del sam
        return sum(self.tokens * block.inputs + block.heads for block in blocks)

    def count_own_decoder_parameters(self, sam: Sam) -> int:
        """Return the size of the tokens and gates of every attention of the decoder."""
        build = sam.build
        count = 3 * build.decoder_depth + 1  # three attentions a layer, and the final one
        return count * (self.tokens * build.prompt_width + build.decoder_heads)
