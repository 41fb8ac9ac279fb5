"""TinyViT, the image encoder of MobileSAM and LiteMedSAM (Wu et al. 2022).

The modules have timm's names. The patch embedding, the stride of the last merge and the neck are
those of MobileSAM. Blocks are counted as in the ViT: only attention blocks count. The convolutional
first stage belongs to the patch embedding, and each merge belongs to the stage before it. There is
no absolute position, so any image size works that the stride divides.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from samadapt.sam.layers import make_neck
from samadapt.sam.tiny_vit_blocks_fast import FastBottleneck, FastStem, FastWindowBlock
from samadapt.sam.types import AttentionBlock, Level
from samadapt.sam.weights.builds import Build


class _Stage(nn.Module):
    """Blocks of one width, after the merge (``downsample``) that leads to it."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        if downsample is not None:
            self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)


class TinyViTEncoder(nn.Module):
    """TinyViT with SAM's neck.

    Batch norms always use their stored statistics, also in training: the statistics belong to the
    frozen base, and the batches of fine-tuning are too small to estimate them.

    Args:
        build: a build whose ``encoder`` is ``"tiny_vit"``.
        image_size: side of the input in pixels, a multiple of ``build.stride``.
    """

    def __init__(self, build: Build, image_size: int) -> None:
        super().__init__()
        del image_size  # nothing here depends on it
        self.dims = dims = build.stage_dims
        self.stem_stride, self.neck_width = build.stem_stride, build.prompt_width
        self.patch_embed = FastStem(dims[0], build.stem_stride)
        first = range(build.stage_depths[0])
        stages = [
            _Stage(
                [FastBottleneck(dims[0], 4 * dims[0], dims[0], residual=True) for _ in first], None
            )
        ]
        for i, (before, width) in enumerate(pairwise(dims), 1):
            stride = 2 if i + 1 < len(dims) else 1
            heads, window = build.stage_heads[i], build.stage_windows[i]
            blocks: list[nn.Module] = [
                FastWindowBlock(width, heads, window, build.mlp_ratio)
                for _ in range(build.stage_depths[i])
            ]
            stages.append(_Stage(blocks, FastBottleneck(before, width, width, stride)))
        self.stages = nn.ModuleList(stages)
        self.neck = make_neck(dims[-1], build.prompt_width)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Embed images (b, 3, s, s) as (b, c, g, g)."""
        return self.prefix(images, self._depth + 1)

    def prefix(
        self,
        images: Float[Tensor, "b 3 s s"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Run everything before attention block ``first_trainable_block``.

        Args:
            images: (b, 3, s, s), normalised and padded.
            first_trainable_block: for n attention blocks, 0 to n: stop before this block (n: before
                the neck); n + 1: run everything, neck included.
            seen: receives the features (b, c, r, r) of every level of ``levels`` that is passed.

        Returns:
            (b, h, w, width) with the side and width of the block's stage, or (b, c, g, g) for
            ``n + 1``.
        """
        convolutional, first, *_ = self.stages
        x = convolutional.blocks(self.patch_embed(images))  # type: ignore[operator]
        if seen is not None:
            seen.append(x.permute(0, 3, 1, 2))
        x = first.downsample(x)  # type: ignore[operator]
        x = self._run(x, 0, first_trainable_block, seen)
        return self._neck(x) if first_trainable_block > self._depth else x

    def suffix(
        self,
        x: Float[Tensor, "b ..."],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b c g g"]:
        """Run the remaining blocks and the neck on what ``prefix`` returned: (b, c, g, g).

        ``seen`` receives the features of every level that is passed, as in ``prefix``.
        """
        if first_trainable_block > self._depth:
            return x
        return self._neck(self._run(x, first_trainable_block, self._depth, seen))

    def levels(self, image_size: int) -> tuple[Level, ...]:
        """Return the features that a dense head can read: each stage but the last, and the neck.

        The neck reads the last stage, on the same grid.
        """
        grid, blocks, found = image_size // self.stem_stride, 0, []
        for number, stage in enumerate(self.stages[:-1]):
            grid = grid if number == 0 else grid // 2  # a merge leads to every further stage
            blocks += len(stage.blocks) if number else 0  # type: ignore[arg-type]
            found.append(Level(self.dims[number], grid, blocks))
        return (*found, Level(self.neck_width, grid, self._depth + 1))

    def prefix_shape(self, image_size: int, first_trainable_block: int) -> tuple[int, ...]:
        """Return the shape, without the batch, of what ``prefix`` returns."""
        *stages, neck = self.levels(image_size)
        if first_trainable_block > self._depth:
            return (neck.channels, neck.grid, neck.grid)
        # Attention starts in stage 1; the merge after a stage belongs to that stage.
        stage = 1 + sum(first_trainable_block >= level.after for level in stages[1:])
        grid = stages[stage].grid if stage < len(stages) else neck.grid
        return (grid, grid, self.dims[stage])

    def attention_blocks(self, root: str) -> tuple[AttentionBlock, ...]:
        """Describe each block by the paths of its modules, in order.

        ``root`` is the dotted path of this module, with which the paths start.
        """
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
                    inputs=block.attn.norm.weight.shape[0],
                    heads=block.attn.num_heads,
                    qkv_order="head_qkv",
                )
            )
        return tuple(found)

    @property
    def _depth(self) -> int:
        return sum(1 for _ in self._blocks())

    def _blocks(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (stage, index in the stage, block) of each attention block, in order."""
        for number, stage in islice(enumerate(self.stages), 1, None):
            for place, block in enumerate(stage.blocks):  # type: ignore[arg-type]
                yield number, place, block

    def _run(self, x: Tensor, start: int, stop: int, seen: list[Tensor] | None = None) -> Tensor:
        """Run blocks ``start`` to ``stop - 1`` and the merges after them on x (b, h, w, width)."""
        for stage, place, block in islice(self._blocks(), start, stop):
            x = block(x)
            last_of_stage = place + 1 == len(self.stages[stage].blocks)  # type: ignore[arg-type]
            if last_of_stage and stage + 1 < len(self.stages):
                if seen is not None:
                    seen.append(x.permute(0, 3, 1, 2))
                x = self.stages[stage + 1].downsample(x)  # type: ignore[operator]
        return x

    def _neck(self, x: Tensor) -> Tensor:
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out
