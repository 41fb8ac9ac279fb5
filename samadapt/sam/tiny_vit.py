"""TinyViT encoder of MobileSAM and LiteMedSAM, on timm's blocks (Wu et al. 2022).

timm has the structure under other names; the patch embedding, the stride of the last merge and
the neck are SAM's. The convolutional stage belongs to the patch embedding, and each merge to the
stage before it, so that the units of the encoder are the attention blocks. There is no absolute
position, so any image size that the strides divide will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from samadapt.sam.builds import Build
from samadapt.sam.layers import make_neck
from samadapt.sam.types import BlockSite


class WindowBiasAttention(nn.Module):
    """Multi-head self-attention in one window, with a bias for each pair of distances.

    Normalises inside, after the padding: a padded token is the norm's bias. timm's own keeps the
    biases of an evaluation cached, which goes stale when weights are loaded or trained meanwhile.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        window: side of the window in tokens.
    """

    distance: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        """Make the layers."""
        super().__init__()
        self.num_heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        place = torch.arange(window)
        apart = (place[:, None] - place[None, :]).abs()
        index = apart[:, None, :, None] * window + apart[None, :, None, :]
        self.register_buffer("distance", index.reshape(window**2, window**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window of x (b, window * window, width)."""
        qkv: Tensor = self.qkv(self.norm(x))
        # rows of qkv: (head, q | k | v, channel)
        split = torch.unflatten(qkv, -1, (self.num_heads, 3, -1))
        q, k, v = split.permute(3, 0, 2, 1, 4).unbind(0)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.attention_biases[:, self.distance]
        heads = scores.softmax(dim=-1).to(v.dtype) @ v
        out: Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return out


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
        from timm.models import tiny_vit as timm_tiny_vit  # 1 s to import

        del image_size  # nothing here depends on it
        dims, act = build.stage_dims, nn.GELU
        self.patch_embed = _patch_embed(timm_tiny_vit, dims[0], build.stem_stride)
        stages: list[nn.Module] = [
            timm_tiny_vit.ConvLayer(dims[0], build.stage_depths[0], act, conv_expand_ratio=4.0)
        ]
        for i in range(1, len(dims)):
            stage = timm_tiny_vit.TinyVitStage(
                dims[i - 1],
                dims[i],
                build.stage_depths[i],
                build.stage_heads[i],
                build.stage_windows[i],
                mlp_ratio=build.mlp_ratio,
                downsample=timm_tiny_vit.PatchMerging,
                act_layer=act,
            )
            for block in stage.blocks:
                block.attn = WindowBiasAttention(
                    dims[i], build.stage_heads[i], build.stage_windows[i]
                )
            stages.append(stage)
        stages[-1].get_submodule("downsample.conv2.conv").stride = (1, 1)  # type: ignore[assignment]
        self.stages = nn.ModuleList(stages)
        self.neck = make_neck(dims[-1], build.prompt_width)
        self.train()

    def train(self, mode: bool = True) -> TinyViTEncoder:
        """Set the mode of every module but BatchNorm, which stays in evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, s, s) as (b, c, g, g)."""
        return self.prefix(images, self._depth + 1)

    def prefix(self, images: Tensor, boundary: int) -> Tensor:
        """Run everything before block ``boundary``, merges included; ``n + 1`` includes the neck.

        Returns:
            (b, h, w, width) with the stage's own side and width, or (b, c, g, g) for ``n + 1``.
        """
        # Tokens are (b, h, w, width): with channels last, convolutions read them as they lie.
        x = images.contiguous(memory_format=torch.channels_last)
        x = self._merge(self.stages[0](self.patch_embed(x)), 1)
        x = self._run(x, 0, boundary)
        return self._neck(x) if boundary > self._depth else x

    def suffix(self, x: Tensor, boundary: int) -> Tensor:
        """Run block ``boundary`` and everything behind it on the output of ``prefix``."""
        if boundary > self._depth:
            return x
        return self._neck(self._run(x, boundary, self._depth))

    def sites(self, root: str) -> tuple[BlockSite, ...]:
        """List the attention blocks in order; ``root`` is this module's dotted path."""
        found = []
        for index, (stage, place, block) in enumerate(self._blocks()):
            path = f"{root}.stages.{stage}.blocks.{place}"
            found.append(
                BlockSite(
                    index=index,
                    block=path,
                    attn=f"{path}.attn",
                    qkv=f"{path}.attn.qkv",
                    proj=f"{path}.attn.proj",
                    mlp=f"{path}.mlp",
                    kind="window",
                    width=block.dim,
                    heads=block.num_heads,
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
                x = self._merge(x.permute(0, 3, 1, 2), stage + 1)
        return x

    def _merge(self, x: Tensor, stage: int) -> Tensor:
        """Enter a stage: (b, width, h, w) to (b, h', w', width')."""
        merged: Tensor = self.stages[stage].downsample(x)  # type: ignore[operator]
        return merged.permute(0, 2, 3, 1)

    def _neck(self, x: Tensor) -> Tensor:
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out


def _patch_embed(timm_tiny_vit: Any, width: int, stride: int) -> nn.Module:
    """Build the stem: two 3x3 convolutions of stride 2, or two 1x1 of stride 1 (LiteMedSAM)."""
    stem: nn.Module = timm_tiny_vit.PatchEmbed(3, width, nn.GELU)
    if stride == 1:
        stem.conv1 = timm_tiny_vit.ConvNorm(3, width // 2, 1, 1, 0)
        stem.conv2 = timm_tiny_vit.ConvNorm(width // 2, width, 1, 1, 0)
    return stem


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


def _stem_name(match: re.Match[str]) -> str:
    return f"patch_embed.conv{1 + int(match[1]) // 2}."


def _merge_name(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) + 1}.downsample."
