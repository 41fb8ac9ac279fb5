"""The predictor against segment-anything's, with the same weights, on photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from torch import nn

from samadapt.errors import PromptError
from samadapt.sam.model import Sam
from samadapt.sam.predictor import SamPredictor
from samadapt.sam.weights.loading import load_sam

Image = NDArray[np.uint8]
Reference = Callable[[Sam], nn.Module]


def _camera() -> Image:
    return np.repeat(skimage.data.camera()[..., None], 3, axis=2)


PHOTOGRAPHS = {
    "astronaut": skimage.data.astronaut,
    "chelsea": skimage.data.chelsea,  # 300 x 451
    "camera": _camera,
    "tall": lambda: skimage.data.coffee()[:, 100:300],  # 400 x 200
    "small": lambda: skimage.data.chelsea()[100:130, 150:203],  # enlarged
}
POINTS = {"point_coords": np.array([[90, 70], [150, 20]]), "point_labels": np.array([1, 0])}
BOX = {"box": np.array([20, 10, 160, 150])}
PROMPTS: dict[str, dict[str, Any]] = {
    "points": POINTS,
    "box": BOX,
    "both": POINTS | BOX,
    "none": {},
}


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_equal_to_segment_anything(
    tiny_sam: Sam, as_segment_anything: Reference, photograph: str
) -> None:
    from segment_anything import SamPredictor as Theirs

    image = PHOTOGRAPHS[photograph]()
    ours, theirs = SamPredictor(tiny_sam), Theirs(as_segment_anything(tiny_sam))
    image_format = "BGR" if photograph == "camera" else "RGB"
    ours.set_image(image, image_format)
    theirs.set_image(image, image_format)
    np.testing.assert_allclose(ours.get_image_embedding(), theirs.get_image_embedding(), atol=1e-4)
    assert (ours.original_size, ours.input_size) == (theirs.original_size, theirs.input_size)
    varied = False
    for prompts in PROMPTS.values():
        for multimask in (True, False):
            found = ours.predict(**prompts, multimask_output=multimask)
            wanted = theirs.predict(**prompts, multimask_output=multimask)
            _compare(found, wanted)
            varied = varied or 0.01 < float(wanted[0].mean()) < 0.99
            again = {**prompts, "mask_input": wanted[2][:1]}
            _compare(
                ours.predict(**again, multimask_output=multimask, return_logits=True),
                theirs.predict(**again, multimask_output=multimask, return_logits=True),
            )
    assert varied  # masks that are all or nothing prove little


def _compare(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    if wanted[0].dtype == bool:
        assert float((found[0] != wanted[0]).mean()) <= 0.001
    else:
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-3)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-4)
    np.testing.assert_allclose(found[2], wanted[2], atol=1e-3)


def test_torch_calls_equal_to_segment_anything(
    tiny_sam: Sam, as_segment_anything: Reference
) -> None:
    from segment_anything import SamPredictor as Theirs

    ours, theirs = SamPredictor(tiny_sam), Theirs(as_segment_anything(tiny_sam))
    picture = torch.randint(0, 256, (1, 3, 48, 64), generator=torch.Generator().manual_seed(0))
    for predictor in (ours, theirs):
        predictor.set_torch_image(picture, (96, 128))
    boxes = torch.tensor([[4.0, 5, 30, 40], [10, 2, 60, 30], [0, 0, 63, 47]])
    points = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1)) * 48
    labels = torch.tensor([[1, 0], [1, -1], [0, 1]])
    mask = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    for call in ((None, None, boxes), (points, labels), (points, labels, boxes, mask)):
        found, wanted = ours.predict_torch(*call), theirs.predict_torch(*call)
        _compare(*(tuple(t.numpy() for t in got) for got in (found, wanted)))
        assert found[0].shape == (3, 3, 96, 128)


def test_transform_equal_to_segment_anything(tiny_sam: Sam) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    ours, theirs = SamPredictor(tiny_sam).transform, ResizeLongestSide(64)
    image, size = skimage.data.chelsea(), (300, 451)
    np.testing.assert_array_equal(ours.apply_image(image), theirs.apply_image(image))
    points = np.array([[3, 5], [450, 299]])
    np.testing.assert_array_equal(
        ours.apply_coords(points, size), theirs.apply_coords(points, size)
    )
    boxes = np.array([[3, 5, 40, 50], [1, 2, 450, 299]])
    np.testing.assert_array_equal(ours.apply_boxes(boxes, size), theirs.apply_boxes(boxes, size))
    assert ours.target_length == theirs.target_length


def test_tiny_vit_takes_the_same_calls(tiny_t_sam: Sam, as_segment_anything: Reference) -> None:
    from segment_anything import SamPredictor as Theirs

    ours, theirs = SamPredictor(tiny_t_sam), Theirs(as_segment_anything(tiny_t_sam))
    for predictor in (ours, theirs):
        predictor.set_image(skimage.data.chelsea())
    _compare(ours.predict(**BOX), theirs.predict(**BOX))


def test_squashed_images_come_back_in_their_own_frame() -> None:
    from dataclasses import replace

    sam = load_sam("tiny")
    sam.preprocessing = replace(sam.preprocessing, normalization="min_max", resize="squash")
    predictor = SamPredictor(sam)
    predictor.set_image(skimage.data.chelsea())
    assert predictor.input_size == (64, 64)
    assert predictor.predict(**BOX)[0].shape == (3, 300, 451)


def test_reset_forgets_the_image(tiny_sam: Sam) -> None:
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(skimage.data.chelsea())
    assert predictor.is_image_set
    assert predictor.device == torch.device("cpu")
    predictor.reset_image()
    assert not predictor.is_image_set
    for call in (predictor.predict, predictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="set_image"):
            call()
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict_torch(None, None)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"point_coords": np.ones((1, 2))}, "together"),
        ({"point_labels": np.ones(1)}, "together"),
        ({"point_coords": np.ones(2), "point_labels": np.ones(1)}, r"\(n, 2\).*\(2,\)"),
        ({"point_coords": np.ones((2, 2)), "point_labels": np.ones(1)}, "point_labels"),
        ({"box": np.ones((2, 4))}, r"one box.*\(2, 4\).*predict_torch"),
        ({"mask_input": np.ones((32, 32))}, "mask_input must be"),
        ({"mask_input": np.ones((1, 64, 64))}, r"mask_input must be.*32, 32"),
    ],
)
def test_wrong_prompts_are_explained(tiny_sam: Sam, prompts: dict[str, Any], message: str) -> None:
    predictor = SamPredictor(tiny_sam)
    predictor.set_image(skimage.data.chelsea())
    with pytest.raises(PromptError, match=message):
        predictor.predict(**prompts)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        [[0]],
    ],
)
def test_wrong_images_are_explained(tiny_sam: Sam, image: Any) -> None:
    with pytest.raises(PromptError, match=r"\(h, w, 3\) of uint8"):
        SamPredictor(tiny_sam).set_image(image)


def test_wrong_format_and_size_are_explained(tiny_sam: Sam) -> None:
    predictor = SamPredictor(tiny_sam)
    with pytest.raises(PromptError, match="RGB"):
        predictor.set_image(np.zeros((8, 8, 3), np.uint8), "rgb")
    with pytest.raises(PromptError, match=r"resized to \(64, 32\)"):
        predictor.set_torch_image(torch.zeros(1, 3, 64, 64), (100, 50))
    with pytest.raises(PromptError, match=r"\(1, 3, h, w\)"):
        predictor.set_torch_image(torch.zeros(3, 64, 64), (100, 50))
