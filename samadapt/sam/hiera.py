"""Hiera, the image encoder of SAM 2 (Ryali et al. 2023, Ravi et al. 2024), with its neck.

Its tensors have SAM 2's state-dict names, except that the MLPs are called as in SAM's ViT. The
tests compare it with timm's ``HieraDet`` and with transformers. Four stages halve the grid and
widen the tokens::

    image (b, 3, s, s)
      |  patch embedding of stride 4, plus positions
      v
    stage 0  (b, 4g, 4g, w)    blocks; the map goes to the neck
    stage 1  (b, 2g, 2g, 2w)   its first block halves the grid: it pools its queries, 2 x 2
    stage 2  (b, g, g, 4w)
    stage 3  (b, g/2, g/2, 8w)
      |  neck: 1x1 convolutions to c channels; stage 3 is enlarged and added to stage 2
      v
    (b, c, g, g), (b, c, 2g, 2g), (b, c, 4g, 4g)

Blocks are counted through all stages. What runs before a block can be stored: the input of the
block, and the maps of the earlier stages, which the neck needs.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.hiera_blocks import HieraBlock
from samadapt.sam.types import AttentionBlock, Level
from samadapt.sam.weights.builds import HIERA_STRIDES, Build

FeatureMaps = tuple[Tensor, Tensor, Tensor]
"""(b, c, g, g), (b, c, 2g, 2g) and (b, c, 4g, 4g)."""


class OverlappingPatchEmbed(nn.Module):
    """Embed patches of 7 x 7 pixels that overlap: (b, 3, s, s) -> (b, s / 4, s / 4, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=7, stride=HIERA_STRIDES[0], padding=3)

    def forward(self, x: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b h h width"]:
        """Embed x (b, 3, s, s)."""
        patches: Tensor = self.proj(x)
        return patches.permute(0, 2, 3, 1).contiguous()


class HieraTrunk(nn.Module):
    """The blocks of all stages, with the patch embedding and the positions.

    Args:
        build: a build whose ``encoder`` is ``"hiera"``.
    """

    def __init__(self, build: Build) -> None:
        super().__init__()
        width, side = build.stage_dims[0], build.position_side
        self.patch_embed = OverlappingPatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, width, side, side))
        window = build.stage_windows[0]
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, window, window))
        self.blocks = nn.ModuleList()
        before, before_window = width, window
        for stage, depth in enumerate(build.stage_depths):
            width, heads = build.stage_dims[stage], build.stage_heads[stage]
            for place in range(depth):
                # The first block of a stage still has the windows of the stage before: it cuts the
                # grid before it pools the queries.
                window = before_window if place == 0 else build.stage_windows[stage]
                window = 0 if len(self.blocks) in build.global_blocks else window
                self.blocks.append(
                    HieraBlock(
                        before,
                        width,
                        heads,
                        build.mlp_ratio,
                        window,
                        is_pooling=place == 0 and stage > 0,
                    )
                )
                before, before_window = width, build.stage_windows[stage]

    def embed(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b h h width"]:
        """Return the tokens that the first block takes."""
        x: Tensor = self.patch_embed(images)
        return x + self._positions(x.shape[1])

    def _positions(self, side: int) -> Tensor:
        """Return the position embedding (1, side, side, width).

        The resized table says where in the image a token is, the repeated one where in a window
        (Bolya et al. 2023, "Window Attention is Bugged").
        """
        image = functional.interpolate(self.pos_embed, (side, side), mode="bicubic")
        count = side // self.pos_embed_window.shape[-1]
        return (image + self.pos_embed_window.tile(1, 1, count, count)).permute(0, 2, 3, 1)


class PyramidNeck(nn.Module):
    """Bring the maps of the four stages to one number of channels.

    Args:
        dims: channels of the stages.
        width: channels c of the results.
    """

    def __init__(self, dims: tuple[int, ...], width: int) -> None:
        super().__init__()
        # The widest map has the first convolution. The names have one part more than they need.
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(dim, width, kernel_size=1)))
            for dim in reversed(dims)
        )

    def lateral(self, x: Float[Tensor, "b h w d"], stage: int) -> Float[Tensor, "b c h w"]:
        """Project the map of a stage."""
        out: Tensor = self.convs[-1 - stage](x.permute(0, 3, 1, 2))
        return out

    def top(
        self, third: Float[Tensor, "b g g d"], last: Float[Tensor, "b h h e"]
    ) -> Float[Tensor, "b c g g"]:
        """Join stages 2 and 3 to the image embedding; the stages before stay as they are."""
        coarse = functional.interpolate(self.lateral(last, 3), scale_factor=2.0, mode="nearest")
        return self.lateral(third, 2) + coarse


class HieraEncoder(nn.Module):
    """Hiera with the neck of SAM 2, for one image size.

    Args:
        build: a build whose ``encoder`` is ``"hiera"``.
        image_size: side of the input in pixels, a multiple of ``build.side_step``.
    """

    def __init__(self, build: Build, image_size: int) -> None:
        super().__init__()
        self.dims, self.heads = build.stage_dims, build.stage_heads
        self.width, self.image_size = build.prompt_width, image_size
        self.ends = tuple(accumulate(build.stage_depths))
        self.trunk = HieraTrunk(build)
        self.neck = PyramidNeck(build.stage_dims, build.prompt_width)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> FeatureMaps:
        """Return the maps (b, c, g, g), (b, c, 2g, 2g) and (b, c, 4g, 4g)."""
        return self._finish(self._run([self.trunk.embed(images)], 0, self._depth, None))

    def prefix(
        self,
        images: Float[Tensor, "b 3 s s"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Run the patch embedding and all blocks before ``first_trainable_block``.

        Args:
            images: (b, 3, s, s), normalised.
            first_trainable_block: for n blocks, 0 to n: stop before this block (n: before the
                neck); n + 1: run everything.
            seen: receives the features (b, c, r, r) of every level of ``levels`` that is passed.

        Returns:
            Several maps as one tensor (b, n), for ``suffix``. For ``n + 1`` the neck has not yet
            projected stages 0 and 1, which takes less room and little time.
        """
        stop = min(first_trainable_block, self._depth)
        maps = self._run([self.trunk.embed(images)], 0, stop, seen)
        if first_trainable_block > self._depth:
            maps = [*maps[:2], self.neck.top(maps[2], maps[3])]
        return torch.cat([x.flatten(1) for x in maps], dim=1)

    def suffix(
        self,
        x: Float[Tensor, "b n"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> FeatureMaps:
        """Run the remaining blocks and the neck on what ``prefix`` returned.

        ``seen`` receives the features of every level that is passed, as in ``prefix``.
        """
        shapes = self._shapes(first_trainable_block)
        parts = x.split([prod(shape) for shape in shapes], dim=1)
        maps = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
        if first_trainable_block > self._depth:
            first, second, top = maps
            return top, self.neck.lateral(second, 1), self.neck.lateral(first, 0)
        return self._finish(self._run(maps, first_trainable_block, self._depth, seen))

    def levels(self, image_size: int) -> tuple[Level, ...]:
        """Return the features that a dense head can read: three stages, and the embedding.

        The embedding is that of ``Sam.encode``, which holds the finer maps as further channels.
        """
        stages = zip(self.dims[:3], HIERA_STRIDES, self.ends, strict=False)
        found = [Level(dim, image_size // stride, end) for dim, stride, end in stages]
        return (*found, Level(4 * self.width, image_size // HIERA_STRIDES[2], self._depth + 1))

    def prefix_shape(self, image_size: int, first_trainable_block: int) -> tuple[int, ...]:
        """Return the shape, without the batch, of what ``prefix`` returns."""
        del image_size  # the encoder was made for it
        return (sum(prod(shape) for shape in self._shapes(first_trainable_block)),)

    def attention_blocks(self, root: str) -> tuple[AttentionBlock, ...]:
        """Describe each block by the paths of its modules, in order.

        ``root`` is the dotted path of this module, with which the paths start.
        """
        found = []
        for index, block in enumerate(self.trunk.blocks):
            path = f"{root}.trunk.blocks.{index}"
            stage = sum(index >= end for end in self.ends)
            found.append(
                AttentionBlock(
                    index=index,
                    block=path,
                    attn=f"{path}.attn",
                    qkv=f"{path}.attn.qkv",
                    proj=f"{path}.attn.proj",
                    mlp=f"{path}.mlp",
                    kind="window" if block.attn.window else "global",  # type: ignore[union-attr]
                    width=self.dims[stage],
                    inputs=self.dims[max(0, stage - (index in self.ends))],
                    heads=self.heads[stage],
                    qkv_order="qkv_head",
                )
            )
        return tuple(found)

    @property
    def _depth(self) -> int:
        return self.ends[-1]

    def _run(
        self, maps: list[Tensor], start: int, stop: int, seen: list[Tensor] | None
    ) -> list[Tensor]:
        """Run blocks ``start`` to ``stop - 1`` on the last of ``maps``.

        Returns:
            The maps of the stages that ended before block ``stop - 1``, then the output of that
            block; all are (b, h, w, width).
        """
        *done, x = maps
        for index in range(start, stop):
            if index in self.ends:  # a stage ended: the neck will need its map
                done.append(x)
            x = self.trunk.blocks[index](x)
            if seen is not None and index + 1 in self.ends[:3]:
                seen.append(x.permute(0, 3, 1, 2))
        return [*done, x]

    def _finish(self, maps: list[Tensor]) -> FeatureMaps:
        first, second, third, last = maps
        top = self.neck.top(third, last)
        return top, self.neck.lateral(second, 1), self.neck.lateral(first, 0)

    def _shapes(self, first_trainable_block: int) -> list[tuple[int, ...]]:
        """Return the shapes, without the batch, of the maps that ``prefix`` packs."""
        sides = [self.image_size // stride for stride in HIERA_STRIDES]
        stages: list[tuple[int, ...]] = [
            (side, side, dim) for side, dim in zip(sides, self.dims, strict=True)
        ]
        if first_trainable_block > self._depth:
            return [*stages[:2], (self.width, sides[2], sides[2])]
        ended = sum(end < first_trainable_block for end in self.ends)
        return stages[: ended + 1]
