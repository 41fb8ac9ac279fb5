"""The shape of a U-Net follows from the pictures."""

from __future__ import annotations

import pytest

from samadapt.baselines.build import UNetBuild, check_side, fitting_side
from samadapt.errors import ConfigError


@pytest.mark.parametrize(
    ("longest", "side", "levels", "widths"),
    [
        (10, 16, 3, [32, 64, 128]),
        (51, 64, 4, [32, 64, 128, 256]),
        (84, 96, 5, [32, 64, 128, 256, 256]),
        (130, 160, 5, [32, 64, 128, 256, 256]),
        (300, 320, 6, [32, 64, 128, 256, 256, 256]),
        (490, 512, 7, [32, 64, 128, 256, 256, 256, 256]),
        (4000, 512, 7, [32, 64, 128, 256, 256, 256, 256]),
    ],
)
def test_its_depth_follows_from_the_pictures(
    longest: int, side: int, levels: int, widths: list[int]
) -> None:
    build = UNetBuild(fitting_side(longest), channels=1, classes=1)
    assert (build.image_size, build.levels, build.widths) == (side, levels, widths)
    assert build.image_size % 2 ** (build.levels - 1) == 0


def test_a_square_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 16; got 100; use 96 or 112"):
        check_side(100)
    with pytest.raises(ConfigError, match="multiple of 32; got 48; use 32 or 64"):
        check_side(48, "resnet34")
    check_side(96, "resnet34")


@pytest.mark.parametrize(
    ("encoder", "pretrained", "title"),
    [
        ("", False, "U-Net from scratch"),
        ("resnet34", False, "U-Net, resnet34 from scratch"),
        ("resnet34", True, "U-Net, resnet34 from ImageNet"),
    ],
)
def test_tables_say_where_the_weights_come_from(encoder: str, pretrained: bool, title: str) -> None:
    assert UNetBuild(32, 3, 1, encoder=encoder, pretrained=pretrained).title == title
