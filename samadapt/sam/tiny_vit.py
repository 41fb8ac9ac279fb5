"""TinyViT encoder of MobileSAM and LiteMedSAM (Wu et al. 2022).

The modules have timm's names; the patch embedding, the stride of the last merge and the neck are
SAM's. The convolutional stage belongs to the patch embedding, and each merge to the
stage before it, so that the units of the encoder are the attention blocks. There is no absolute
position, so any image size that the strides divide will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from torch import Tensor, nn

from samadapt.sam.layers import make_neck
from samadapt.sam.tiny_vit_blocks import Bottleneck, Stem, WindowBlock
from samadapt.sam.types import AttentionBlock
from samadapt.sam.weights.builds import Build


class _Stage(nn.Module):
    """Blocks of one width, behind the merge that enters it."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        if downsample is not None:
            self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)


class TinyViTEncoder(nn.Module):
    """TinyViT with SAM's neck.

    BatchNorm always uses its stored statistics, in training too: they belong to the frozen base,
    and the batches of fine-tuning are too small to estimate them.

    Args:
        build: a build whose ``encoder`` is ``"tiny_vit"``.
        image_size: side of the input in pixels, a multiple of ``build.stride``.
    """

    def __init__(self, build: Build, image_size: int) -> None:
        """Make the layers."""
        super().__init__()
        del image_size  # nothing here depends on it
        dims = build.stage_dims
        self.patch_embed = Stem(dims[0], build.stem_stride)
        first = range(build.stage_depths[0])
        stages = [
            _Stage([Bottleneck(dims[0], 4 * dims[0], dims[0], residual=True) for _ in first], None)
        ]
        for i, (before, width) in enumerate(pairwise(dims), 1):
            stride = 2 if i + 1 < len(dims) else 1
            heads, window = build.stage_heads[i], build.stage_windows[i]
            blocks: list[nn.Module] = [
                WindowBlock(width, heads, window, build.mlp_ratio)
                for _ in range(build.stage_depths[i])
            ]
            stages.append(_Stage(blocks, Bottleneck(before, width, width, stride)))
        self.stages = nn.ModuleList(stages)
        self.neck = make_neck(dims[-1], build.prompt_width)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, s, s) as (b, c, g, g)."""
        return self.prefix(images, self._depth + 1)

    def prefix(self, images: Tensor, first_trainable_block: int) -> Tensor:
        """Run everything before ``first_trainable_block``; ``n + 1`` includes the neck.

        Returns:
            (b, h, w, width) with the stage's own side and width, or (b, c, g, g) for ``n + 1``.
        """
        convolutional, first, *_ = self.stages
        x = first.downsample(convolutional.blocks(self.patch_embed(images)))  # type: ignore[operator]
        x = self._run(x, 0, first_trainable_block)
        return self._neck(x) if first_trainable_block > self._depth else x

    def suffix(self, x: Tensor, first_trainable_block: int) -> Tensor:
        """Run the blocks from ``first_trainable_block``, and the neck, on ``prefix``'s output."""
        if first_trainable_block > self._depth:
            return x
        return self._neck(self._run(x, first_trainable_block, self._depth))

    def attention_blocks(self, root: str) -> tuple[AttentionBlock, ...]:
        """List the attention blocks in order; ``root`` is this module's dotted path."""
        found = []
        for index, (stage, place, block) in enumerate(self._blocks()):
            path = f"{root}.stages.{stage}.blocks.{place}"
            found.append(
                AttentionBlock(
                    index=index,
                    block=path,
                    attn=f"{path}.attn",
                    qkv=f"{path}.attn.qkv",
                    proj=f"{path}.attn.proj",
                    mlp=f"{path}.mlp",
                    kind="window",
                    width=block.attn.norm.weight.shape[0],
                    heads=block.attn.num_heads,
                    qkv_order="head_qkv",
                )
            )
        return tuple(found)

    @property
    def _depth(self) -> int:
        return sum(1 for _ in self._blocks())

    def _blocks(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (stage, place in the stage, block) of the attention blocks, in order."""
        for number, stage in islice(enumerate(self.stages), 1, None):
            for place, block in enumerate(stage.blocks):  # type: ignore[arg-type]
                yield number, place, block

    def _run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run blocks ``start`` to ``stop - 1`` on (b, h, w, width), and the merges behind them."""
        for stage, place, block in islice(self._blocks(), start, stop):
            x = block(x)
            last_of_stage = place + 1 == len(self.stages[stage].blocks)  # type: ignore[arg-type]
            if last_of_stage and stage + 1 < len(self.stages):
                x = self.stages[stage + 1].downsample(x)  # type: ignore[operator]
        return x

    def _neck(self, x: Tensor) -> Tensor:
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out


def tiny_vit_key(name: str) -> str:
    """Translate a state-dict name of MobileSAM or LiteMedSAM into ours.

    With or without the prefix ``image_encoder.``; names outside the encoder come back unchanged,
    as do MobileSAM's ``norm_head`` and ``head``, which the encoder does not have.
    """
    prefix, encoder, rest = name.rpartition("image_encoder.")
    if not encoder and not rest.startswith(("patch_embed.seq.", "layers.")):
        return name
    rest = re.sub(r"^patch_embed\.seq\.(0|2)\.", _stem_name, rest)
    rest = re.sub(r"^layers\.(\d+)\.downsample\.", _merge_name, rest)
    rest = re.sub(r"^layers\.", "stages.", rest)
    rest = re.sub(r"\.c\.(?=weight$)", ".conv.", rest)
    return prefix + encoder + rest


def published_key(name: str) -> str:
    """Undo ``tiny_vit_key`` for a name of ``Sam.state_dict()``."""
    if not name.startswith("image_encoder."):
        return name
    name = re.sub(
        r"\.patch_embed\.conv(1|2)\.", lambda m: f".patch_embed.seq.{2 * int(m[1]) - 2}.", name
    )
    name = re.sub(
        r"\.stages\.(\d+)\.downsample\.", lambda m: f".layers.{int(m[1]) - 1}.downsample.", name
    )
    return re.sub(r"\.conv\.(?=weight$)", ".c.", name.replace(".stages.", ".layers."))


def _stem_name(match: re.Match[str]) -> str:
    return f"patch_embed.conv{1 + int(match[1]) // 2}."


def _merge_name(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) + 1}.downsample."
