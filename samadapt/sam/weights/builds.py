"""The models that can be built, as numbers. This file imports no torch, so listing them is fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from samadapt.sam.types import Preprocessing


@dataclass(frozen=True)
class Build:
    """The sizes of the parts of one Segment Anything model.

    Attributes:
        name: key in ``BUILDS``.
        encoder: ``"vit"`` (SAM's), ``"tiny_vit"`` (MobileSAM's and LiteMedSAM's), ``"hiera"``
            (SAM 2's) or ``"rope_vit"`` (SAM 3's).
        image_size: side of the model's square if nobody gives another one, in pixels. The weights
            were trained on it, but those of SAM 2 on 1024.
        version: version of SAM, which decides about prompt encoder and mask decoder. 2.0 and 2.1
            differ in their weights and in the memory that videos need; 3 is the tracker of SAM 3,
            whose prompt encoder and mask decoder are those of SAM 2.
        patch_size: both ViTs: side of a patch, in pixels.
        embed_dim: both ViTs: channels of the tokens.
        depth: both ViTs: number of blocks.
        num_heads: both ViTs: attention heads.
        global_blocks: all but TinyViT: indices, from 0, of the blocks that attend over the whole
            image.
        window: both ViTs: side of an attention window, in tokens.
        mlp_ratio: hidden width of the MLPs of the encoder over the width of the tokens.
        stage_dims: TinyViT and Hiera: channels of the four stages (TinyViT's first one is
            convolutional).
        stage_depths: TinyViT and Hiera: blocks of the four stages.
        stage_heads: TinyViT and Hiera: attention heads of the four stages.
        stage_windows: TinyViT and Hiera: sides of the windows of the four stages, in tokens.
        stem_stride: TinyViT only: 4 is two 3x3 convolutions of stride 2, 1 is two 1x1 convolutions.
        position_side: side of the learned position table that Hiera resizes to the image and
            SAM 3's ViT repeats over it, in tokens.
        prompt_width: channels of the image embedding, the prompts and the decoder.
        mask_channels: hidden channels of the mask prompt's convolutions.
        decoder_depth: layers of the two-way transformer.
        decoder_heads: attention heads of the two-way transformer.
        decoder_mlp: hidden width of the two-way transformer's MLPs.
        iou_width: hidden width of the IoU head.
        num_multimask: masks of a multimask output; one more token gives the single mask.
        preprocessing: how the weights expect their images.
    """

    name: str
    encoder: Literal["vit", "tiny_vit", "hiera", "rope_vit"]
    image_size: int
    version: Literal["1", "2.0", "2.1", "3"] = "1"
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    global_blocks: tuple[int, ...] = ()
    window: int = 14
    mlp_ratio: float = 4.0
    stage_dims: tuple[int, int, int, int] = (64, 128, 160, 320)
    stage_depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    stage_heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    stage_windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    stem_stride: Literal[1, 4] = 4
    position_side: int = 7
    prompt_width: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    iou_width: int = 256
    num_multimask: int = 3
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def stride(self) -> int:
        """Side of a cell of the image embedding, in pixels of the model frame."""
        if self.encoder == "hiera":
            return HIERA_STRIDES[2]
        return 4 * self.stem_stride if self.encoder == "tiny_vit" else self.patch_size

    @property
    def blocks(self) -> int:
        """Number of attention blocks of the encoder."""
        if self.encoder in ("vit", "rope_vit"):
            return self.depth
        # TinyViT's first stage is convolutional.
        return sum(self.stage_depths[1 if self.encoder == "tiny_vit" else 0 :])

    @property
    def side_step(self) -> int:
        """Image sides must be multiples of this number of pixels."""
        if self.encoder != "hiera":
            return self.stride
        # The last stage halves the grid once more, and the position table of a window is repeated
        # over the tokens of the first stage.
        return math.lcm(HIERA_STRIDES[3], HIERA_STRIDES[0] * self.stage_windows[0])


HIERA_STRIDES = (4, 8, 16, 32)
"""Side of a token of each stage of Hiera, in pixels."""


_MEDSAM = Preprocessing(normalization="min_max", resize="squash")
_LITE_MEDSAM = Preprocessing(normalization="min_max", resize="longest")

# SAM 2 squashes images to a square. Its mean and deviation are SAM's. SAM 3 has others.
_SAM2 = Preprocessing(resize="squash")
_SAM3 = Preprocessing(resize="squash", mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))


def _sam2(
    name: str,
    width: int,
    heads: int,
    depths: tuple[int, int, int, int],
    global_blocks: tuple[int, int, int],
    windows: tuple[int, int, int, int] = (8, 4, 14, 7),
    position_side: int = 7,
) -> tuple[Build, Build]:
    """Return a size of SAM 2.1, and the same of SAM 2.0; widths and heads double at each stage."""
    newer = Build(
        f"sam2_{name}",
        "hiera",
        512,
        version="2.1",
        global_blocks=global_blocks,
        stage_dims=(width, 2 * width, 4 * width, 8 * width),
        stage_depths=depths,
        stage_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
        stage_windows=windows,
        position_side=position_side,
        preprocessing=_SAM2,
    )
    return newer, replace(newer, name=f"sam2.0_{name}", version="2.0")


_SAM2_SIZES = (
    _sam2("t", 96, 1, (1, 2, 7, 2), (5, 7, 9)),
    _sam2("s", 96, 1, (1, 2, 11, 2), (7, 10, 13)),
    _sam2("b+", 112, 2, (2, 3, 16, 3), (12, 16, 20), position_side=14),
    _sam2("l", 144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
)

# SAM's three sizes are those of the paper (Kirillov et al. 2023, appendix A). MedSAM is its ViT-B
# with another preprocessing. TinyViT is as MobileSAM and LiteMedSAM publish it, and the four sizes
# of SAM 2 are those of Ravi et al. 2024. ``sam3_tracker`` is the part of SAM 3 (Carion et al. 2025)
# that points, boxes and masks prompt. ``tiny`` and the three after it are for tests.
_VIT_B_GLOBAL = (2, 5, 8, 11)
_ALL = (
    Build("vit_b", "vit", 1024, global_blocks=_VIT_B_GLOBAL),
    Build(
        "vit_l", "vit", 1024, embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)
    ),
    Build(
        "vit_h", "vit", 1024, embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)
    ),
    Build("vit_t", "tiny_vit", 1024),
    Build("medsam", "vit", 1024, global_blocks=_VIT_B_GLOBAL, preprocessing=_MEDSAM),
    Build("lite_medsam", "tiny_vit", 256, stem_stride=1, preprocessing=_LITE_MEDSAM),
    *(newer for newer, _ in _SAM2_SIZES),
    *(older for _, older in _SAM2_SIZES),
    Build(
        "sam3_tracker",
        "rope_vit",
        1008,
        version="3",
        patch_size=14,
        embed_dim=1024,
        depth=32,
        num_heads=16,
        global_blocks=(7, 15, 23, 31),
        window=24,
        mlp_ratio=4.625,
        position_side=24,
        preprocessing=_SAM3,
    ),
    Build(
        "tiny",
        "vit",
        64,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        global_blocks=(1, 2),
        window=3,
        prompt_width=64,
        mask_channels=16,
        decoder_heads=4,
        decoder_mlp=128,
        iou_width=64,
    ),
    Build(
        "tiny_t",
        "tiny_vit",
        64,
        stage_dims=(8, 16, 24, 32),
        stage_depths=(1, 1, 2, 1),
        stage_heads=(1, 2, 2, 2),
        stage_windows=(3, 3, 5, 3),
        stem_stride=1,
        prompt_width=64,
        mask_channels=16,
        decoder_heads=4,
        decoder_mlp=128,
        iou_width=64,
    ),
    Build(
        "tiny_h",
        "hiera",
        64,
        version="2.1",
        global_blocks=(4,),
        stage_dims=(8, 16, 32, 64),
        stage_depths=(1, 2, 2, 1),
        stage_heads=(1, 2, 4, 8),
        stage_windows=(4, 2, 6, 3),
        position_side=3,
        prompt_width=64,
        mask_channels=16,
        decoder_heads=4,
        decoder_mlp=128,
        iou_width=64,
        preprocessing=_SAM2,
    ),
    Build(
        "tiny_r",
        "rope_vit",
        64,
        version="3",
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        global_blocks=(1, 2),
        window=3,
        mlp_ratio=4.625,
        position_side=3,
        prompt_width=64,
        mask_channels=16,
        decoder_heads=4,
        decoder_mlp=128,
        iou_width=64,
        preprocessing=_SAM3,
    ),
)

BUILDS: dict[str, Build] = {build.name: build for build in _ALL}

TEST_BUILDS = frozenset({"tiny", "tiny_t", "tiny_h", "tiny_r"})
"""Builds without pretrained weights, small enough to test the whole program with."""

FITTING_GRIDS = {"tiny_vit": (21, 42), "vit": (16, 32), "hiera": (16, 32), "rope_vit": (24, 48)}
"""Sides of the embedding, in cells, that ``model.image_size=fit`` chooses from. TinyViT's windows
fill multiples of 21 without padding, and those of SAM 3 multiples of 24. The cost grows with the
square of the side, and few labels do not pay for more than the largest."""


def fitting_image_size(name: str, longest: int) -> int:
    """Return the smallest fitting side that holds pictures of ``longest`` pixels, or the largest.

    Args:
        name: the build.
        longest: longest side of the training pictures, in pixels.
    """
    build = BUILDS[name]
    sides = [grid * build.stride for grid in FITTING_GRIDS[build.encoder]]
    return min(build.image_size, next((side for side in sides if side >= longest), sides[-1]))


def embedding_grid(name: str, side: int | None) -> int:
    """Return the side of the image embedding in cells.

    Args:
        name: the build.
        side: side of the model's square in pixels; None: the one of the pretraining.
    """
    build = BUILDS[name]
    return (side or build.image_size) // build.stride
