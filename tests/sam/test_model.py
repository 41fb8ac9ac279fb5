"""Preprocessing, the encoder's boundaries, postprocessing and the messages for wrong input."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch

from samadapt.errors import ConfigError, PromptError
from samadapt.sam.geometry import make_frame
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.types import Preprocessing, Prompts
from samadapt.sam.weights.builds import BUILDS


def test_prefix_and_suffix_compose_at_every_boundary(any_sam: Sam) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole = any_sam.encode(images)
        for first_trainable_block in range(len(any_sam.attention_blocks()) + 2):
            features = any_sam.encode_prefix(images, first_trainable_block)
            assert len(features) == 2
            assert torch.equal(any_sam.encode_suffix(features, first_trainable_block), whole)
            one = any_sam.encode_suffix(features[1:], first_trainable_block)
            torch.testing.assert_close(one, whole[1:], atol=1e-5, rtol=1e-5)


def test_a_boundary_lies_before_its_block(any_sam: Sam) -> None:
    """A change of block k changes the suffix from k on, and no prefix up to k."""
    images = torch.randn(1, 3, 64, 64)
    for site in any_sam.attention_blocks():
        prefix = any_sam.encode_prefix(images, site.index)
        behind = any_sam.encode_prefix(images, site.index + 1)
        with torch.no_grad():
            any_sam.get_submodule(site.proj).bias.add_(1.0)
        assert torch.equal(any_sam.encode_prefix(images, site.index), prefix)
        assert not torch.equal(any_sam.encode_prefix(images, site.index + 1), behind)


def test_attention_blocks_name_modules_of_the_model(any_sam: Sam) -> None:
    for index, site in enumerate(any_sam.attention_blocks()):
        assert site.index == index
        block, qkv = any_sam.get_submodule(site.block), any_sam.get_submodule(site.qkv)
        assert block.attn is any_sam.get_submodule(site.attn)
        assert any_sam.get_submodule(site.mlp) is block.mlp
        assert qkv.weight.shape == (3 * site.width, site.inputs)
        assert any_sam.get_submodule(site.proj).weight.shape == (site.width, site.width)
        assert site.width % site.heads == 0


def test_preprocess_by_mean_and_std(tiny_sam: Sam) -> None:
    image = torch.randint(0, 256, (3, 40, 64), dtype=torch.uint8)
    out = tiny_sam.preprocess([image])
    assert out.shape == (1, 3, 64, 64)
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (tiny_sam.preprocessing.mean, tiny_sam.preprocessing.std)
    )
    torch.testing.assert_close(out[0, :, :40], (image - mean) / std)
    assert not out[0, :, 40:].any()


def test_preprocess_by_own_extremes() -> None:
    build = replace(BUILDS["tiny"], preprocessing=Preprocessing(normalization="min_max"))
    sam = build_sam(build)
    images = [torch.full((3, 64, 32), 77), torch.randint(50, 120, (3, 20, 64))]
    out = sam.preprocess(images)
    assert not out[0].any()  # a constant image is zero, not NaN
    low, high = images[1].min(), images[1].max()
    torch.testing.assert_close(out[1, :, :20], (images[1] - low) / (high - low))
    assert not out[1, :, 20:].any()


def test_preprocess_takes_a_batch_as_it_takes_a_list(tiny_sam: Sam) -> None:
    images = torch.rand(2, 3, 64, 50) * 255
    assert torch.equal(tiny_sam.preprocess(images), tiny_sam.preprocess(list(images)))


@pytest.mark.parametrize("shape", [(37, 91), (91, 37), (64, 64), (200, 201), (1, 50)])
def test_postprocess_equals_segment_anything(
    tiny_sam: Sam, as_segment_anything: Any, shape: tuple[int, int]
) -> None:
    frame = make_frame(shape, 64)
    logits = torch.randn(2, 2, 3, 32, 32)
    out = tiny_sam.postprocess(logits, frame)
    assert out.shape == (2, 2, 3, *shape)
    reference = as_segment_anything(tiny_sam)
    for i in range(2):
        expected = reference.postprocess_masks(logits[i], frame.resized, frame.original)
        torch.testing.assert_close(out[i], expected)


@pytest.mark.parametrize("name", ["tiny", "tiny_t"])
@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_other_image_sizes(name: str, image_size: int) -> None:
    sam = build_sam(name, image_size=image_size)
    g = image_size // sam.build.stride
    assert sam.embedding_size == g
    output = sam(torch.randn(1, 3, image_size, image_size), Prompts(), multimask=True)
    assert output.logits.shape == (1, 1, 3, 4 * g, 4 * g)


def test_official_names_of_the_state(tiny_sam: Sam, as_segment_anything: Any) -> None:
    assert tiny_sam.state_dict().keys() == as_segment_anything(tiny_sam).state_dict().keys()


def test_frozen_model_trains_nothing_but_gradients_reach_the_image(any_sam: Sam) -> None:
    any_sam.requires_grad_(False)
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    any_sam(images, Prompts(), multimask=True).logits.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in any_sam.parameters())


def test_training_mode_changes_neither_output_nor_state(any_sam: Sam) -> None:
    images = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in any_sam.state_dict().items()}
    expected = any_sam.encode(images)
    any_sam.train()
    assert torch.equal(any_sam.encode(images), expected)
    assert all(torch.equal(value, before[name]) for name, value in any_sam.state_dict().items())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda s: s.encode(torch.zeros(3, 64, 64)),
            ValueError,
            r"\(b, 3, 64, 64\).*\(3, 64, 64\)",
        ),
        (lambda s: s.encode_prefix(torch.zeros(1, 3, 64, 64), 6), ValueError, "0 to 5; got 6"),
        (lambda s: s.encode_suffix(torch.zeros(1, 8, 8, 32), -1), ValueError, "0 to 5; got -1"),
        (lambda s: s.preprocess(torch.zeros(3, 64, 64)), ValueError, r"\(3, h, w\)"),
        (lambda s: s.preprocess([torch.zeros(3, 65, 64)]), ValueError, r"1 to 64.*65"),
        (
            lambda s: s.decode(torch.zeros(1, 64, 9, 9), Prompts(), multimask=True),
            PromptError,
            r"\(b, 64, 8, 8\).*\(1, 64, 9, 9\)",
        ),
        (
            lambda s: s.postprocess(torch.zeros(1, 1, 1, 32, 32), make_frame((9, 9), 128)),
            ValueError,
            "size 64; got 128",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_wrong_input_is_named(tiny_sam: Sam, call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(tiny_sam)


def test_wrong_builds_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'vitb'.*did you mean 'vit_b'"):
        build_sam("vitb")
    with pytest.raises(ConfigError, match="multiple of 8 for tiny; got 60"):
        build_sam("tiny", image_size=60)


def test_listing_the_builds_imports_no_torch() -> None:
    code = "import sys; import samadapt.sam.weights.builds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tests_check_annotated_shapes(tiny_sam: Sam) -> None:
    """The option --jaxtyping-packages in pyproject.toml is in effect."""
    with pytest.raises(jaxtyping.TypeCheckError, match=r"b e g g"):
        tiny_sam.decode(torch.zeros(1, 64, 8, 9), Prompts(), multimask=True)
