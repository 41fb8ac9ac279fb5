"""The models that can be built, as numbers. This file imports no torch, so listing them is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from samadapt.sam.types import Preprocessing


@dataclass(frozen=True)
class Build:
    """The sizes of the parts of one Segment Anything model.

    Attributes:
        name: key in ``BUILDS``.
        encoder: ``"vit"`` (SAM's) or ``"tiny_vit"`` (MobileSAM's and LiteMedSAM's).
        image_size: side of the square that the weights were trained on, in pixels.
        patch_size: ViT only: side of a patch, in pixels.
        embed_dim: ViT only: channels of the tokens.
        depth: ViT only: number of blocks.
        num_heads: ViT only: attention heads.
        global_blocks: ViT only: indices, from 0, of the blocks that attend over the whole image.
        window: ViT only: side of an attention window, in tokens.
        mlp_ratio: hidden width of the MLPs of the encoder over the width of the tokens.
        stage_dims: TinyViT only: channels of the four stages (the first one is convolutional).
        stage_depths: TinyViT only: blocks of the four stages.
        stage_heads: TinyViT only: attention heads of the four stages.
        stage_windows: TinyViT only: sides of the windows of the four stages, in tokens.
        stem_stride: TinyViT only: 4 is two 3x3 convolutions of stride 2, 1 is two 1x1 convolutions.
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
    encoder: Literal["vit", "tiny_vit"]
    image_size: int
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
        return self.patch_size if self.encoder == "vit" else 4 * self.stem_stride


_MEDSAM = Preprocessing(normalization="min_max", resize="squash")
_LITE_MEDSAM = Preprocessing(normalization="min_max", resize="longest")

# SAM's three sizes are those of the paper (Kirillov et al. 2023, appendix A). MedSAM is its ViT-B
# with another preprocessing. TinyViT is as MobileSAM and LiteMedSAM publish it. ``tiny`` and
# ``tiny_t`` are for tests.
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
)

BUILDS: dict[str, Build] = {build.name: build for build in _ALL}

TEST_BUILDS = frozenset({"tiny", "tiny_t"})
"""Builds without pretrained weights, small enough to test the whole program with."""

FITTING_GRIDS = {"tiny_vit": (21, 42), "vit": (16, 32)}
"""Sides of the embedding, in cells, that ``model.image_size=fit`` chooses from. TinyViT's windows
fill multiples of 21 without padding. The cost grows with the square of the side, and few labels do
not pay for more than the largest."""


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
