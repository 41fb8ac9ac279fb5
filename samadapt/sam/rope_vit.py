"""The image encoder of SAM 3 (Carion et al. 2025) with the neck of its tracker.

It is a plain ViT as in ViTDet (Li et al. 2022), with windows and a few global blocks::

    image (b, 3, s, s)
      |  patches of 14 pixels, plus positions, plus a norm
      v
    (b, g, g, w)    blocks; queries and keys are rotated by their places (``RotaryGridAttention``)
      |  neck: transposed convolutions enlarge the map, then a 1x1 and a 3x3 convolution
      v
    (b, c, g, g), (b, c, 2g, 2g), (b, c, 4g, 4g)

Its tensors have sam3's state-dict names, except that the trunk and the tracker's neck
(``sam2_convs`` there) are called as in SAM 2, and the MLPs as in SAM's ViT. The tests compare it
with transformers.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.windows import join_windows, partition_windows
from samadapt.sam.hiera import FeatureMaps
from samadapt.sam.layers_fast import FastMLPBlock
from samadapt.sam.memory_attention import ROTARY_BASE
from samadapt.sam.types import AttentionBlock, Level
from samadapt.sam.weights.builds import Build


def rotate(x: Float[Tensor, "n h w heads d"], unit: float) -> Float[Tensor, "n h w heads d"]:
    """Rotate pairs of channels by the place of their token.

    The first half of the channels turns with the column, the second half with the row (axial
    RoPE, Heo et al. 2024). In each half, pair i of d / 4 turns by ``ROTARY_BASE ** (-4 i / d)`` for
    each unit of distance.

    Args:
        x: (n, h, w, heads, d), queries or keys; d is a multiple of 4.
        unit: distance of neighbouring tokens.

    Returns:
        (n, h, w, heads, d) of the type of x. The angles and the products are in float32.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    _, h, w, _, d = x.shape
    speed = ROTARY_BASE ** (-4 / d * torch.arange(d // 4, device=x.device, dtype=wide))
    columns, rows = (
        unit * torch.arange(side, device=x.device, dtype=wide)[:, None] * speed for side in (w, h)
    )
    # (h, w, 1, 2, d / 4): the angles of both halves
    angles = torch.stack(
        [columns.expand(h, w, -1), rows[:, None].expand(h, w, -1)], dim=-2
    ).unsqueeze(2)
    cos, sin = angles.cos(), angles.sin()
    first, second = torch.unflatten(x.to(wide), -1, (2, -1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-3).to(x.dtype)


class RotaryGridAttention(nn.Module):
    """Multi-head self-attention over a grid of tokens, as a whole or within windows.

    A window that reaches over the edge of the grid is padded. As in SAM's ViT, padding comes after
    the norm and takes part in the softmax, so a padded token is ``qkv(0)`` at its place.

    Args:
        width: channels of the tokens.
        heads: attention heads; the channels of a head must be a multiple of 4.
        window: side of a window in tokens; 0 attends over the whole grid.
        span: distance over which the positions of a side are spread; a window's own side.
    """

    def __init__(self, width: int, heads: int, window: int, span: int) -> None:
        super().__init__()
        if width % (4 * heads):
            raise ValueError(f"4 * heads must divide the width {width}; got {heads} heads")
        self.num_heads, self.window, self.span = heads, window, span
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b h w width"]) -> Float[Tensor, "b h w width"]:
        """Attend within each of the b grids of x (b, h, w, width)."""
        _, h, w, width = x.shape
        side = (self.window, self.window) if self.window else (h, w)
        qkv: Tensor = self.qkv(x)
        fill = None
        if h % side[0] or w % side[1]:
            fill = self.qkv(x.new_zeros(1, 1, 1, width)).flatten().to(qkv)
        cells = partition_windows(qkv, side, fill)  # (n, height, across, 3 * width)
        # each (n, height, across, heads, d)
        q, k, v = torch.unflatten(cells, -1, (3, self.num_heads, -1)).unbind(3)
        q, k = (rotate(part, self.span / side[1]) for part in (q, k))
        # (n, heads, tokens, d)
        q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
        attended = functional.scaled_dot_product_attention(q, k, v)
        joined = torch.unflatten(attended.transpose(1, 2).flatten(2), 1, side)
        out: Tensor = self.proj(join_windows(joined, (h, w)))
        return out


class RotaryBlock(nn.Module):
    """One transformer block: attention and MLP, each after a norm and with a residual.

    Args:
        width: channels of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``width``.
        window: side of an attention window in tokens; 0 attends over the whole grid.
        span: see ``RotaryGridAttention``.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, window: int, span: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = RotaryGridAttention(width, heads, window, span)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FastMLPBlock(width, int(width * mlp_ratio))

    def forward(self, x: Float[Tensor, "b g g width"]) -> Float[Tensor, "b g g width"]:
        """Transform tokens x (b, g, g, width)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchProjection(nn.Module):
    """Project patches without a bias: (b, 3, s, s) -> (b, g, g, width)."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)

    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b g g width"]:
        """Embed x (b, 3, s, s)."""
        patches: Tensor = self.proj(x)
        return patches.permute(0, 2, 3, 1).contiguous()


class RotaryTrunk(nn.Module):
    """Patches, positions and all blocks.

    Args:
        build: a build whose ``encoder`` is ``"rope_vit"``.
    """

    def __init__(self, build: Build) -> None:
        super().__init__()
        width, side = build.embed_dim, build.position_side
        self.patch_embed = PatchProjection(build.patch_size, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, width))
        self.ln_pre = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(
            RotaryBlock(
                width,
                build.num_heads,
                build.mlp_ratio,
                0 if index in build.global_blocks else build.window,
                build.window,
            )
            for index in range(build.depth)
        )

    def embed(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b g g width"]:
        """Return the tokens that the first block takes. The table of positions is repeated."""
        x: Tensor = self.patch_embed(images)
        grid, side = x.shape[1], self.pos_embed.shape[1]
        times = (grid + side - 1) // side
        out: Tensor = self.ln_pre(x + self.pos_embed.tile(1, times, times, 1)[:, :grid, :grid])
        return out


def _level(width: int, out: int, enlarge: int) -> nn.Sequential:
    """Make a level of the neck, which doubles the side ``enlarge`` times."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for step in range(enlarge):
        if step:
            layers["gelu"] = nn.GELU()
        name = f"dconv_2x2_{step}" if enlarge > 1 else "dconv_2x2"
        layers[name] = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
        width //= 2
    layers["conv_1x1"] = nn.Conv2d(width, out, kernel_size=1)
    layers["conv_3x3"] = nn.Conv2d(out, out, kernel_size=3, padding=1)
    return nn.Sequential(layers)


class SimplePyramid(nn.Module):
    """Make maps of three sides from one, the finest first (Li et al. 2022, section 3).

    Args:
        width: channels of the tokens.
        out: channels c of the maps.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_level(width, out, enlarge) for enlarge in (2, 1, 0))

    def forward(self, x: Float[Tensor, "b g g width"]) -> FeatureMaps:
        """Return the maps (b, c, g, g), (b, c, 2g, 2g) and (b, c, 4g, 4g)."""
        planes = x.permute(0, 3, 1, 2)
        # Stored maps come back contiguous, and convolutions round by the layout of their input.
        fine, middle, coarse = (level(planes).contiguous() for level in self.convs)
        return coarse, middle, fine


class RotaryViTEncoder(nn.Module):
    """The ViT of SAM 3 with the neck of its tracker, for one image size.

    Args:
        build: a build whose ``encoder`` is ``"rope_vit"``.
        image_size: side of the input in pixels, a multiple of the patch side. No tensor depends on
            it: the positions follow from the grid.
    """

    def __init__(self, build: Build, image_size: int) -> None:
        super().__init__()
        self.width, self.heads, self.neck_width = (
            build.embed_dim,
            build.num_heads,
            build.prompt_width,
        )
        self.grid = image_size // build.patch_size
        self.trunk = RotaryTrunk(build)
        self.neck = SimplePyramid(build.embed_dim, build.prompt_width)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> FeatureMaps:
        """Return the maps (b, c, g, g), (b, c, 2g, 2g) and (b, c, 4g, 4g)."""
        maps: FeatureMaps = self.neck(self._run(self.trunk.embed(images), 0, self._depth))
        return maps

    def prefix(
        self,
        images: Float[Tensor, "b 3 s s"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Run the patch embedding and all blocks before ``first_trainable_block``.

        Args:
            images: (b, 3, s, s), normalised.
            first_trainable_block: for n blocks, 0 to n: stop before this block (n: before the
                neck); n + 1: run everything.
            seen: receives the features (b, c, g, g) of every level of ``levels`` that is passed.

        Returns:
            (b, g, g, width); for ``n + 1`` the three maps as one tensor (b, 21 c g g).
        """
        stop = min(first_trainable_block, self._depth)
        x = self._run(self.trunk.embed(images), 0, stop, seen)
        if first_trainable_block <= self._depth:
            return x
        return torch.cat([planes.flatten(1) for planes in self.neck(x)], dim=1)

    def suffix(
        self,
        x: Float[Tensor, "b ..."],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> FeatureMaps:
        """Run the remaining blocks and the neck on what ``prefix`` returned.

        ``seen`` receives the features of every level that is passed, as in ``prefix``.
        """
        if first_trainable_block <= self._depth:
            maps: FeatureMaps = self.neck(self._run(x, first_trainable_block, self._depth, seen))
            return maps
        shapes = [(self.neck_width, times * self.grid, times * self.grid) for times in (1, 2, 4)]
        parts = x.split([prod(shape) for shape in shapes], dim=1)
        coarse, middle, fine = (
            part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)
        )
        return coarse, middle, fine

    def levels(self, image_size: int) -> tuple[Level, ...]:
        """Return the features that a dense head can read: after each quarter, and the embedding.

        Earlier ones are enlarged more, as in ``ImageEncoderViT``. The embedding is that of
        ``Sam.encode``, which holds the finer maps as further channels.
        """
        del image_size  # the encoder was made for it
        quarters = [
            Level(self.width, self.grid, self._depth * k // 4, enlarged=3 - k) for k in (1, 2, 3)
        ]
        return (*quarters, Level(4 * self.neck_width, self.grid, self._depth + 1))

    def prefix_shape(self, image_size: int, first_trainable_block: int) -> tuple[int, ...]:
        """Return the shape, without the batch, of what ``prefix`` returns."""
        del image_size
        if first_trainable_block > self._depth:
            return (21 * self.neck_width * self.grid**2,)
        return (self.grid, self.grid, self.width)

    def attention_blocks(self, root: str) -> tuple[AttentionBlock, ...]:
        """Describe each block by the paths of its modules, in order.

        ``root`` is the dotted path of this module, with which the paths start.
        """
        paths = [f"{root}.trunk.blocks.{index}" for index in range(self._depth)]
        return tuple(
            AttentionBlock(
                index=index,
                block=path,
                attn=f"{path}.attn",
                qkv=f"{path}.attn.qkv",
                proj=f"{path}.attn.proj",
                mlp=f"{path}.mlp",
                kind="window" if block.attn.window else "global",  # type: ignore[union-attr]
                width=self.width,
                inputs=self.width,
                heads=self.heads,
                qkv_order="qkv_head",
            )
            for index, (path, block) in enumerate(zip(paths, self.trunk.blocks, strict=True))
        )

    @property
    def _depth(self) -> int:
        return len(self.trunk.blocks)

    def _run(self, x: Tensor, start: int, stop: int, seen: list[Tensor] | None = None) -> Tensor:
        """Run blocks ``start`` to ``stop - 1`` on x (b, g, g, width)."""
        quarters = {self._depth * k // 4 for k in (1, 2, 3)}
        for index, block in islice(enumerate(self.trunk.blocks), start, stop):
            x = block(x)
            if seen is not None and index + 1 in quarters:
                seen.append(x.permute(0, 3, 1, 2))
        return x
