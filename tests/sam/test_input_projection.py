"""More than three channels in front of SAM: at first their mean, with gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from samadapt.sam.geometry import make_frame, resize_image
from samadapt.sam.model import Sam


@pytest.fixture(params=["tiny_sam", "tiny_t_sam"])
def wide(request: pytest.FixtureRequest) -> tuple[Sam, Sam]:
    base = request.getfixturevalue(request.param)
    projected = copy.deepcopy(base)
    projected.add_input_projection(5)
    return base, projected


def test_equal_channels_are_a_grey_image(wide: tuple[Sam, Sam]) -> None:
    base, projected = wide
    plane = torch.randint(0, 256, (1, 30, 41), generator=torch.Generator().manual_seed(0))
    expected = base.preprocess([plane.expand(3, -1, -1)])
    found = projected.preprocess([plane.expand(5, -1, -1)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[..., 41:] == 0).all()  # the padding is what SAM pads with
    torch.testing.assert_close(projected.encode(found), base.encode(expected), rtol=1e-3, atol=1e-3)


def test_it_learns_and_refuses_other_images(wide: tuple[Sam, Sam]) -> None:
    _, projected = wide
    image = torch.randint(0, 256, (5, 20, 20), generator=torch.Generator().manual_seed(1))
    projected.preprocess([image]).square().sum().backward()
    assert projected.input_projection is not None
    assert (projected.input_projection.weight.grad != 0).all()
    with pytest.raises(ValueError, match=r"must be \(5, h, w\)"):
        projected.preprocess([image[:3]])
    with pytest.raises(ValueError, match="at least 4"):
        projected.add_input_projection(3)


def test_each_channel_is_resized_as_a_colour_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 17, 5), dtype=np.uint8)
    frame = make_frame((13, 17), 64)
    found = resize_image(image, frame)
    assert found.shape == (*frame.resized, 5)
    for start in (0, 2):
        colours = np.ascontiguousarray(image[..., start : start + 3])
        np.testing.assert_array_equal(found[..., start : start + 3], resize_image(colours, frame))
