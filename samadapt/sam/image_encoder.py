"""SAM's image encoder: a ViT with window and global attention (Kirillov et al. 2023, appendix A).

Tokens are (b, g, g, width) on a grid of g = image side / patch side. This file also resamples the
position tables to another image size.
"""

from __future__ import annotations

from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.layer import RelativePositionAttention
from samadapt.sam.layers import make_neck
from samadapt.sam.layers_fast import FastMLPBlock
from samadapt.sam.types import AttentionBlock, Level
from samadapt.sam.weights.builds import Build


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each: (b, 3, s, s) -> (b, g, g, width)."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b g g width"]:
        """Embed x (b, 3, s, s)."""
        patches: Tensor = self.proj(x)
        # (b, width, g, g) -> (b, g, g, width), contiguous, because every norm reads the channels.
        return patches.permute(0, 2, 3, 1).contiguous()


class Block(nn.Module):
    """One transformer block: attention and MLP, each after a norm and with a residual.

    Args:
        width: channels of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``width``.
        grid: (g, g) tokens of the image.
        window: side of an attention window in tokens; 0 attends over the whole image.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, grid: tuple[int, int], window: int
    ) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = RelativePositionAttention(
            width, heads, (window, window) if window else grid, windowed=window > 0
        )
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FastMLPBlock(width, int(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "b g g width"]) -> Float[Tensor, "b g g width"]:
        """Transform x (b, g, g, width)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ImageEncoderViT(nn.Module):
    """SAM's ViT for one image size. Its tensors have the official state-dict names.

    The encoder can be run in two halves, so that the output of its frozen blocks can be stored.

    Args:
        build: a build whose ``encoder`` is ``"vit"``.
        image_size: side of the input in pixels, a multiple of the patch side. The position tables
            have the length that it needs.
    """

    def __init__(self, build: Build, image_size: int) -> None:
        super().__init__()
        side = image_size // build.patch_size
        self.heads, self.neck_width = build.num_heads, build.prompt_width
        self.patch_embed = PatchEmbed(build.patch_size, build.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, build.embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                build.embed_dim,
                build.num_heads,
                build.mlp_ratio,
                (side, side),
                0 if index in build.global_blocks else build.window,
            )
            for index in range(build.depth)
        )
        self.neck = make_neck(build.embed_dim, build.prompt_width)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Embed images (b, 3, s, s) as (b, c, g, g)."""
        return self.prefix(images, len(self.blocks) + 1)

    def prefix(
        self,
        images: Float[Tensor, "b 3 s s"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Run the patch embedding and all blocks before ``first_trainable_block``.

        Args:
            images: (b, 3, s, s), normalised and padded.
            first_trainable_block: for n blocks, 0 to n: stop before this block (n: before the
                neck); n + 1: run everything, neck included.
            seen: receives the features (b, c, g, g) of every level of ``levels`` that is passed.

        Returns:
            (b, g, g, width), or (b, c, g, g) for ``n + 1``.
        """
        embedded: Tensor = self.patch_embed(images)
        x = self._run(embedded + self.pos_embed, 0, first_trainable_block, seen)
        return self._neck(x) if first_trainable_block > len(self.blocks) else x

    def suffix(
        self,
        x: Float[Tensor, "b ..."],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b c g g"]:
        """Run the remaining blocks and the neck on what ``prefix`` returned: (b, c, g, g).

        ``seen`` receives the features of every level that is passed, as in ``prefix``.
        """
        if first_trainable_block > len(self.blocks):
            return x
        return self._neck(self._run(x, first_trainable_block, len(self.blocks), seen))

    def levels(self, image_size: int) -> tuple[Level, ...]:
        """Return the features that a dense head can read: after each quarter, and the neck.

        All lie on the same grid. As in the simple feature pyramid of ViTDet (Li et al. 2022),
        earlier ones are enlarged more: they hold the finer detail.
        """
        del image_size  # the model was built for it
        _, grid, _, width = self.pos_embed.shape
        depth = len(self.blocks)
        quarters = [Level(width, grid, depth * k // 4, enlarged=3 - k) for k in (1, 2, 3)]
        return (*quarters, Level(self.neck_width, grid, depth + 1))

    def prefix_shape(self, image_size: int, first_trainable_block: int) -> tuple[int, ...]:
        """Return the shape, without the batch, of what ``prefix`` returns."""
        *_, quarter, neck = self.levels(image_size)
        if first_trainable_block > len(self.blocks):
            return (neck.channels, neck.grid, neck.grid)
        return (quarter.grid, quarter.grid, quarter.channels)

    def _run(self, x: Tensor, start: int, stop: int, seen: list[Tensor] | None = None) -> Tensor:
        """Run blocks ``start`` to ``stop - 1`` on x (b, g, g, width)."""
        depth = len(self.blocks)
        for index, block in islice(enumerate(self.blocks), start, stop):
            x = block(x)
            if seen is not None and index + 1 in {depth * k // 4 for k in (1, 2, 3)}:
                seen.append(x.permute(0, 3, 1, 2))
        return x

    def _neck(self, x: Tensor) -> Tensor:
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out

    def attention_blocks(self, root: str) -> tuple[AttentionBlock, ...]:
        """Describe each block by the paths of its modules, in order.

        ``root`` is the dotted path of this module, with which the paths start.
        """
        paths = [f"{root}.blocks.{index}" for index in range(len(self.blocks))]
        return tuple(
            AttentionBlock(
                index=index,
                block=path,
                attn=f"{path}.attn",
                qkv=f"{path}.attn.qkv",
                proj=f"{path}.attn.proj",
                mlp=f"{path}.mlp",
                kind="window" if block.window else "global",
                width=self.pos_embed.shape[-1],
                inputs=self.pos_embed.shape[-1],
                heads=self.heads,
                qkv_order="qkv_head",
            )
            for index, (path, block) in enumerate(zip(paths, self.blocks, strict=True))
        )


def resample_pos_embed(
    pos_embed: Float[Tensor, "1 _ _ c"], size: tuple[int, int]
) -> Float[Tensor, "1 h w c"]:
    """Resample an absolute position embedding (1, h, w, c) to ``size`` = (h, w) tokens.

    Bicubic with antialiasing, as timm's ``resample_abs_pos_embed_nhwc``.
    """
    if tuple(pos_embed.shape[1:3]) == size:
        return pos_embed
    planes = pos_embed.permute(0, 3, 1, 2).float()
    resized = functional.interpolate(planes, size, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).to(pos_embed.dtype).contiguous()


def resample_rel_pos(table: Float[Tensor, "_ d"], length: int) -> Float[Tensor, "{length} d"]:
    """Resample a relative position table (2n - 1, d) to (length, d).

    Linear, as ``get_rel_pos`` of segment-anything.
    """
    if table.shape[0] == length:
        return table
    resized = functional.interpolate(table.float().t()[None], size=length, mode="linear")
    return resized[0].t().to(table.dtype).contiguous()
