"""A decoder for dense prediction: a U-Net on the picture that reads SAM's features.

SAM's mask decoder draws masks on a grid of a quarter of the model's square, from one scale of
features. That is enough for objects and too coarse for thin structures and small crops. The dense
head has a path of its own from the picture, at the picture's resolution, to the logits of the
classes. On that path it reads the features that the image encoder made at several depths, and SAM's
own class logits are added to its output::

    picture (b, n, d, d) --- stem --- down --- down --- down
                              |        |        |        |    + features of the encoder, each at
                              |        |        |        |      the scale nearest to its own
    logits (b, K, d, d) --- out --- up --- up --- up ---+
        + SAM's mask tokens, enlarged to (b, K, d, d)

The blocks are MONAI's, those of its DynUNet, so that the head without any feature of SAM is the
U-Net that ``baseline=unet`` trains from scratch. With ``depth`` above 1 the head sees that many
neighbouring slices of a volume together: on the way down every scale adds a convolution across
slices (3 x 1 x 1), which starts at zero. With ``patch`` above 1 its finest scale takes blocks of
``patch`` x ``patch`` pixels as channels (space to depth) and gives their logits the same way, so
that large pictures cost less and no pixel is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_class
from torch import Tensor, nn
from torch.nn import functional

from samadapt.errors import ConfigError
from samadapt.sam.types import Level
from samadapt.sam.watershed import MAPS_PER_CLASS, Watershed
from samadapt.system.settings import Settings

HEAD_NAME = "unet"

FINEST = 2
"""Features of the encoder enter at this stride of the picture's pixels or a coarser one. Finer
detail comes from the picture itself, and features at stride 1 would take four times the room."""


@settings_class(frozen=True)
class HeadSettings(Settings):
    """The sizes of a dense head; an adapter records them.

    Attributes:
        side: side d of the square that the picture is resized to for the head, in pixels; it can be
            halved for every scale but the first, after the division by ``patch``.
        width: channels at the finest scale; they double with every scale.
        scales: number of scales, the finest included.
        sam_logits: whether SAM's class logits are added to those of the head.
        channels: channels of the picture.
        depth: neighbouring slices of a volume that the head sees together; 1: each alone.
        patch: side of the blocks of pixels that are one cell of the finest scale.
        jitter: probability of each random change of a picture's intensities in training.

    Raises:
        SettingsError: a value is out of range.
        ConfigError: the side does not fit the scales.
    """

    section: ClassVar[str] = "head"

    side: int = Field(ge=16, le=2048)
    width: int = Field(default=32, ge=4, le=256)
    scales: int = Field(default=4, ge=2, le=6)
    sam_logits: bool = True
    channels: int = Field(default=3, ge=3, le=64)
    depth: int = Field(default=1, ge=1, le=64)
    patch: int = Field(default=1, ge=1, le=8)
    jitter: float = Field(default=0.0, ge=0, le=1)

    def __post_init__(self) -> None:
        """Check the side."""
        unit = self.patch * 2 ** (self.scales - 1)
        if self.side % unit:
            raise ConfigError(
                f"head.size: expected a multiple of {unit} for head.scales={self.scales} and "
                f"head.patch={self.patch}; got {self.side}"
            )


class DenseHead(nn.Module):
    """Predicts K classes for every pixel of a picture from the picture and SAM's features.

    Args:
        levels: the features that the encoder offers, the image embedding last.
        classes: number K of classes.
        settings: the sizes.
        watershed: separates the objects of each class by their distances, which the head then
            predicts too: K logits, K distances to the centre and K to the border. None: K logits.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        classes: int,
        settings: HeadSettings,
        watershed: Watershed | None = None,
    ) -> None:
        super().__init__()
        from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock

        self.levels, self.classes, self.settings = tuple(levels), classes, settings
        self.watershed = watershed
        widths = [settings.width * 2**scale for scale in range(settings.scales)]
        norm = ("instance", {"affine": True})
        act = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})

        def block(kind: type[nn.Module], before: int, after: int, stride: int) -> nn.Module:
            sizes = {"kernel_size": 3, "stride": stride}
            if kind is UnetUpBlock:
                sizes["upsample_kernel_size"] = stride
            return kind(2, before, after, **sizes, norm_name=norm, act_name=act)

        self.jitter = PictureJitter(settings.jitter, settings.depth)
        self.down = nn.ModuleList(
            block(UnetBasicBlock, before, after, 1 if scale == 0 else 2)
            for scale, (before, after) in enumerate(
                zip([settings.channels * settings.patch**2, *widths], widths, strict=False)
            )
        )
        self.up = nn.ModuleList(
            block(UnetUpBlock, widths[scale + 1], widths[scale], 2)
            for scale in reversed(range(settings.scales - 1))
        )
        self.across = nn.ModuleList(
            AcrossSlices(width, settings.depth) for width in (widths if settings.depth > 1 else [])
        )
        self.maps = classes * (1 if watershed is None else MAPS_PER_CLASS)
        self.out = nn.Conv2d(widths[0], self.maps * settings.patch**2, kernel_size=1)
        # The scale of features differs by orders of magnitude between depths, hence the norm.
        self.readers = nn.ModuleList(
            _make_reader(level, widths[self.scale_of(level)]) for level in self.levels
        )

    def describe(self) -> dict[str, Any]:
        """Return name and sizes as plain values, as ``samadapt.json`` holds them."""
        if self.watershed is None:
            return {"name": HEAD_NAME, **asdict(self.settings)}
        return {**self.watershed.to_dict(), **asdict(self.settings)}

    def scale_of(self, level: Level) -> int:
        """Return the scale, from 0 on, at which a level enters: the nearest one to its own."""
        grid = level.grid * 2**level.enlarged
        patch = self.settings.patch
        nearest = round(math.log2(max(1, self.settings.side / patch / grid)))
        finest = round(math.log2(max(1, FINEST / patch)))
        return min(max(nearest, finest), self.settings.scales - 1)

    def grid_of(self, level: Level) -> int:
        """Return the side of the grid at which a level is kept: never finer than it is read."""
        read = self.settings.side // self.settings.patch >> self.scale_of(level) >> level.enlarged
        return min(level.grid, max(1, read))

    def forward(
        self, picture: Float[Tensor, "b n d d"], features: Sequence[Float[Tensor, "b _ _ _"]]
    ) -> Float[Tensor, "b m d d"]:
        """Return the logits of the classes; the background has the logit 0.

        With a watershed these are the first K of 3K maps; the sigmoid of the others is a distance.

        Args:
            picture: (b, n, d, d), normalised. With a depth above 1, b is a multiple of it and each
                ``depth`` slices in a row are neighbours.
            features: one tensor (b, c, r, r) for each level, on any grid.
        """
        read: dict[int, list[Tensor]] = {}
        for level, reader, x in zip(self.levels, self.readers, features, strict=True):
            read.setdefault(self.scale_of(level), []).append(reader(x))
        skips: list[Tensor] = []
        x = functional.pixel_unshuffle(self.jitter(picture), self.settings.patch)
        for scale, down in enumerate(self.down):
            x = down(x)
            for extra in read.get(scale, ()):
                x = x + functional.interpolate(extra, x.shape[-2:], mode="bilinear")
            if self.across:
                x = self.across[scale](x)
            skips.append(x)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        return functional.pixel_shuffle(self.out(x), self.settings.patch)


class PictureJitter(nn.Module):
    """Changes gamma, brightness and noise of pictures at random, in training mode alone.

    The features that the head reads beside a picture are cached and stay as they are. They lie at
    the same place, since intensities move no pixel, and so every step sees a new picture for free.
    The ranges are those of ``train.augment=[intensity,noise]``.

    Args:
        chance: probability of each of the three changes.
        depth: slices of a stack, which change alike but for the noise.

    Attributes:
        seeds: a number for each stack, from which its changes follow; empty: they are drawn from
            torch's own generator.
    """

    GAMMA, BRIGHTNESS, NOISE = 1.5, 1.2, 0.05
    follows_training: ClassVar[bool] = True

    def __init__(self, chance: float, depth: int) -> None:
        super().__init__()
        self.chance, self.depth = chance, depth
        self.seeds: Sequence[int] = ()

    def forward(self, picture: Float[Tensor, "b n d d"]) -> Float[Tensor, "b n d d"]:
        """Return the pictures, whose values of -2 to 2 stand for black to white."""
        if not self.training or self.chance == 0:
            return picture
        stacks = len(picture) // self.depth
        # For each stack and change: whether it happens, and how strong it is.
        chances, strengths, noises = self._drawn(picture, stacks)
        strength = (strengths * 2 - 1) * (chances < self.chance)
        gamma, brightness, noise = strength.repeat_interleave(self.depth, dim=1)[
            ..., None, None, None
        ]
        values = ((picture.float() + 2) / 4).clamp(0, 1)
        values = values ** (self.GAMMA**gamma) * self.BRIGHTNESS**brightness
        values = values + self.NOISE * noise.abs() * noises
        jittered: Tensor = (values.clamp(0, 1) * 4 - 2).to(picture)
        return jittered

    def _drawn(self, picture: Tensor, stacks: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return two tensors (3, stacks) of 0 to 1, and noise for each pixel."""
        where = picture.device
        if not self.seeds:
            chances, strengths = (torch.rand(3, stacks, device=where) for _ in range(2))
            return chances, strengths, torch.randn(picture.shape, device=where)
        shape = self.depth, *picture.shape[1:]
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        numbers = [torch.rand(2, 3, generator=rng) for rng in generators]
        noises = [torch.randn(shape, generator=rng) for rng in generators]
        both = torch.stack(numbers, dim=-1).to(where)  # (2, 3, stacks)
        return both[0], both[1], torch.cat(noises).to(where)


class AcrossSlices(nn.Module):
    """Adds to every slice a mix of itself and its two neighbours, zero at the start.

    Args:
        width: channels.
        depth: slices of a stack. Before the first and after the last one lies zero.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        # A 3 x 1 x 1 convolution, written as 1 x 1 over the channels of three slices: the 2-D form
        # is the fast one on a CPU.
        self.mix = nn.Conv2d(3 * width, width, kernel_size=1)
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Mix the slices of each stack."""
        stacks = x.unflatten(0, (-1, self.depth))
        before = functional.pad(stacks[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)).flatten(0, 1)
        after = functional.pad(stacks[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1)).flatten(0, 1)
        mixed: Tensor = self.mix(torch.cat([before, x, after], dim=1))
        return x + mixed


def _make_reader(level: Level, width: int) -> nn.Sequential:
    """Make what brings a level to the width of its scale, and onto a finer grid if it should be."""
    # The values of features differ by orders of magnitude between depths, hence the norm.
    layers: list[nn.Module] = [nn.GroupNorm(1, level.channels)]
    before = level.channels
    for _ in range(level.enlarged):
        layers += [nn.ConvTranspose2d(before, width, kernel_size=2, stride=2), nn.GELU()]
        before = width
    return nn.Sequential(*layers, nn.Conv2d(before, width, kernel_size=1))
