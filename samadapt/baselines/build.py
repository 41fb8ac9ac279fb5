"""The shape of a U-Net: its square, its resolutions and its filters, from the pictures it sees."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from samadapt.errors import ConfigError

MAX_SIDE = 512
"""Largest square that is chosen without ``baseline.image_size``; larger pictures are resized."""

STRIDE = 16
"""The square of a U-Net is a multiple of this many pixels."""

ENCODER_STRIDE = 32
"""The same for ImageNet encoders, whose last feature map has this stride."""

LEAST_SIDE = 6
"""The lowest resolution has at least so many pixels a side; nnU-Net stops at 4 to 8."""

MAX_FILTERS = 256
"""Filters double from one resolution to the next up to this number."""

FEWEST_LEVELS, MOST_LEVELS = 3, 7
"""Resolutions of a U-Net: MONAI's needs three, and 512 pixels leave eight at the seventh."""


@dataclass(frozen=True)
class UNetBuild:
    """Everything that shapes a U-Net.

    Attributes:
        image_size: side s of its square in pixels.
        channels: channels n of an image.
        classes: number K of classes.
        filters: filters at the full resolution.
        encoder: name of a timm model; empty for a plain U-Net.
        pretrained: the encoder starts from weights that were trained on ImageNet.
        mean: mean of each channel, of values of 0 to 255.
        std: standard deviation of each channel.
        maps: maps that are predicted of each class: its logit, and with ``MAPS_PER_CLASS`` also the
            distances that a watershed needs.
    """

    image_size: int
    channels: int
    classes: int
    filters: int = 32
    encoder: str = ""
    pretrained: bool = False
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)
    maps: int = 1

    @property
    def outputs(self) -> int:
        """Number of maps of all classes together."""
        return self.maps * self.classes

    @property
    def levels(self) -> int:
        """Number of resolutions: halved while whole and at least ``LEAST_SIDE`` pixels are left."""
        levels, side = 1, self.image_size
        while side % 2 == 0 and levels < MOST_LEVELS and side // 2 >= LEAST_SIDE:
            levels, side = levels + 1, side // 2
        return max(FEWEST_LEVELS, levels)

    @property
    def widths(self) -> list[int]:
        """Filters of each resolution, from the full one down."""
        return [min(self.filters * 2**level, MAX_FILTERS) for level in range(self.levels)]

    @property
    def title(self) -> str:
        """What tables call the model."""
        if not self.encoder:
            return "U-Net from scratch"
        return f"U-Net, {self.encoder} " + ("from ImageNet" if self.pretrained else "from scratch")

    def to_dict(self) -> dict[str, Any]:
        """Return all entries as plain values; ``maps`` only if there are several."""
        values = asdict(self)
        if self.maps == 1:  # as in the records of earlier versions
            del values["maps"]
        return values


def fitting_side(longest: int, encoder: str = "") -> int:
    """Return the square for pictures whose longest side is ``longest`` pixels.

    It is rounded up to a multiple of 16, of 32 above 128 pixels and of 64 above 256 pixels, so that
    it can be halved often enough; and it is at most ``MAX_SIDE``.
    """
    step = STRIDE if longest <= 128 else 32 if longest <= 256 else 64
    step = max(step, ENCODER_STRIDE) if encoder else step
    return min(MAX_SIDE, -(-longest // step) * step)


def check_side(side: int, encoder: str = "") -> None:
    """Refuse a square that the network cannot halve.

    Raises:
        ConfigError: naming the multiple.
    """
    step = ENCODER_STRIDE if encoder else STRIDE
    if side % step:
        below = max(step, side // step * step)
        raise ConfigError(
            f"baseline.image_size must be a multiple of {step}; got {side}; "
            f"use {below} or {below + step}"
        )
