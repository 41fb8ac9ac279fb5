"""TinyViT against timm's own model, and the traps of caches, statistics, strips and padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from samadapt.sam import tiny_vit_blocks, tiny_vit_blocks_fast
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.tiny_vit import TinyViTEncoder
from samadapt.sam.tiny_vit_blocks import ConvNorm
from samadapt.sam.tiny_vit_blocks_fast import fold
from samadapt.sam.weights.builds import BUILDS


def timm_pair(randomise: Any, image_size: int) -> tuple[TinyViTEncoder, Any]:
    """Our encoder with the stem of stride 4, and timm's with the same weights and last stride."""
    from timm.models.tiny_vit import TinyVit

    build = replace(BUILDS["tiny_t"], stem_stride=4)
    ours = TinyViTEncoder(build, image_size).double().eval()
    randomise(ours, 1)
    theirs = TinyVit(
        num_classes=0,
        embed_dims=build.stage_dims,
        depths=build.stage_depths,
        num_heads=build.stage_heads,
        window_sizes=build.stage_windows,
    )
    theirs.double().eval()
    theirs.stages[3].downsample.conv2.conv.stride = (1, 1)
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("neck")}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("head") for key in missing.missing_keys)
    return ours, theirs


@pytest.mark.parametrize("strip", [1, 3000, 10**9])
@pytest.mark.parametrize("image_size", [64, 96])
def test_equals_timm(
    randomise: Any, monkeypatch: pytest.MonkeyPatch, image_size: int, strip: int
) -> None:
    """The encoder runs in strips of one row, in strips of several rows and in whole images."""
    ours, theirs = timm_pair(randomise, image_size)
    monkeypatch.setattr(tiny_vit_blocks_fast, "PART_PER_THREAD", strip)
    images = torch.randn(3, 3, image_size, image_size, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.stages(theirs.patch_embed(images))
        features = ours.prefix(images, sum(BUILDS["tiny_t"].stage_depths[1:]))
    torch.testing.assert_close(features.permute(0, 3, 1, 2), expected, atol=1e-10, rtol=1e-10)


def test_gradients_equal_timms(randomise: Any) -> None:
    """Gradients of the image and of every parameter, convolutions and batch norms included."""
    ours, theirs = timm_pair(randomise, 64)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    features = ours.prefix(images, sum(BUILDS["tiny_t"].stage_depths[1:])).permute(0, 3, 1, 2)
    weights = torch.randn_like(features)
    expected = theirs.stages(theirs.patch_embed(images))
    names = [name for name, _ in ours.named_parameters() if not name.startswith("neck")]
    assert sum("bn" in name or "conv" in name for name in names) > len(names) / 2
    got = torch.autograd.grad(
        (features * weights).sum(), [images, *(ours.get_parameter(name) for name in names)]
    )
    want = torch.autograd.grad(
        (expected * weights).sum(), [images, *(theirs.get_parameter(name) for name in names)]
    )
    for name, ours_grad, theirs_grad in zip(["images", *names], got, want, strict=True):
        scale = float(theirs_grad.abs().max())
        assert scale > 0 or name.endswith("attn.qkv.bias"), name
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-9 * scale, rtol=1e-9)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_folded_equals_convolution_and_norm(
    randomise: Any, dtype: torch.dtype, error: float
) -> None:
    for kernel, stride, groups in ((1, 1, 1), (3, 1, 8), (3, 2, 8), (3, 2, 1)):
        pair = ConvNorm(8, 8, kernel, stride, groups).to(dtype).eval().requires_grad_(False)
        randomise(pair, 5)
        tokens = torch.randn(2, 7, 9, 8, dtype=dtype)
        expected = pair.bn(pair.conv(tokens.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        for got in (fold(pair)(tokens), pair(tokens)):
            assert float((got - expected).norm() / expected.norm()) < error


TEXTBOOK = {
    "FastStem": lambda: tiny_vit_blocks.Stem(16, 4),
    "FastBottleneck": lambda: tiny_vit_blocks.Bottleneck(16, 32, 16, residual=True),
    "FastWindowBlock": lambda: tiny_vit_blocks.WindowBlock(16, 2, 3, 4.0),
}
FAST = {
    "FastStem": lambda: tiny_vit_blocks_fast.FastStem(16, 4),
    "FastBottleneck": lambda: tiny_vit_blocks_fast.FastBottleneck(16, 32, 16, residual=True),
    "FastWindowBlock": lambda: tiny_vit_blocks_fast.FastWindowBlock(16, 2, 3, 4.0),
}


@pytest.mark.parametrize("strip", [1, 3000, 10**9])
@pytest.mark.parametrize("name", FAST)
def test_fast_blocks_equal_the_textbook(
    randomise: Any, monkeypatch: pytest.MonkeyPatch, name: str, strip: int
) -> None:
    """Values and gradients are compared for strips of one and several rows and whole images."""
    monkeypatch.setattr(tiny_vit_blocks_fast, "PART_PER_THREAD", strip)
    textbook, fast = TEXTBOOK[name]().double(), FAST[name]().double()
    randomise(textbook, 6)
    fast.load_state_dict(textbook.state_dict())
    assert type(fast).__name__ == name
    shape = (2, 3, 32, 32) if name == "FastStem" else (2, 7, 8, 16)
    found = []
    for block in (textbook, fast):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).double()
        with torch.no_grad():
            plain = block(x)
        out = block(x.requires_grad_())
        weights = torch.arange(out.numel(), dtype=torch.float64).sin().view_as(out)
        grads = torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])
        found.append([plain, out, *grads])
    for got, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-9)


def change_in_place(sam: Sam) -> None:
    with torch.no_grad():
        sam.get_parameter("image_encoder.stages.1.downsample.conv2.conv.weight").mul_(1.5)


def change_behind_autograd(sam: Sam) -> None:
    """An edit through ``data`` does not raise the tensor's version."""
    sam.get_parameter("image_encoder.stages.0.blocks.0.conv1.bn.weight").data.mul_(1.5)


def change_statistics(sam: Sam) -> None:
    sam.get_buffer("image_encoder.stages.2.blocks.0.local_conv.bn.running_mean").add_(1)


def change_biases(sam: Sam) -> None:
    with torch.no_grad():
        sam.get_submodule(sam.attention_blocks()[0].attn).attention_biases.add_(
            torch.linspace(0, 3, 9)
        )


def load_others(sam: Sam) -> None:
    sam.load_state_dict({k: 0.9 * v for k, v in sam.state_dict().items()})


@pytest.mark.parametrize(
    "change",
    [change_in_place, change_behind_autograd, change_statistics, change_biases, load_others],
)
def test_no_value_is_stale(tiny_t_sam: Sam, change: Callable[[Sam], None]) -> None:
    """timm caches attention biases in evaluation. Our encoder derives them anew each time."""
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tiny_t_sam.encode(images)
        copied = copy.deepcopy(tiny_t_sam)
        change(tiny_t_sam)
        after = tiny_t_sam.encode(images)
        fresh = build_sam("tiny_t").eval()
        fresh.load_state_dict(tiny_t_sam.state_dict())
        assert not torch.allclose(after, before, atol=1e-3)
        torch.testing.assert_close(after, fresh.encode(images))
        torch.testing.assert_close(copied.encode(images), before)
        doubled = tiny_t_sam.double().encode(images.double())
    torch.testing.assert_close(doubled.float(), after, atol=1e-4, rtol=1e-4)


def test_statistics_never_change(tiny_t_sam: Sam) -> None:
    images = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in tiny_t_sam.state_dict().items()}
    expected = tiny_t_sam.encode(images)
    torch.testing.assert_close(tiny_t_sam.train().encode(images), expected, atol=0, rtol=0)
    for name, value in tiny_t_sam.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_strips_give_what_one_graph_gives(tiny_t_sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in strips without a graph, and on whole images where a graph is recorded."""
    monkeypatch.setattr(tiny_vit_blocks_fast, "PART_PER_THREAD", 2000)
    images = torch.randn(2, 3, 64, 64)
    recorded = tiny_t_sam.encode(images)
    assert recorded.requires_grad
    tiny_t_sam.requires_grad_(False)
    torch.testing.assert_close(tiny_t_sam.encode(images), recorded, atol=2e-5, rtol=2e-5)


def test_bf16_autocast(tiny_t_sam: Sam) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = tiny_t_sam.encode(images)
        with torch.autocast("cpu", torch.bfloat16):
            got = tiny_t_sam.encode(images).float()
    assert float((got - expected).norm() / expected.norm()) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        tiny_t_sam.encode(images).float().square().sum().backward()
    for name, parameter in tiny_t_sam.image_encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_size_that_the_stride_divides(tiny_t_sam: Sam) -> None:
    for size in (32, 60, 96):
        other = build_sam("tiny_t", image_size=size)
        other.load_state_dict(tiny_t_sam.state_dict())
        assert other.encode(torch.zeros(1, 3, size, size)).shape == (1, 64, size // 4, size // 4)


def test_two_backward_passes(tiny_t_sam: Sam) -> None:
    """The second backward pass would fail with timm's cached biases."""
    images = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        tiny_t_sam.encode(images).sum().backward()


def test_lite_medsam_has_ten_blocks_and_64_cells() -> None:
    with torch.device("meta"):
        for name, size in (("vit_t", 1024), ("lite_medsam", 256)):
            sam = build_sam(name)
            assert (sam.image_size, sam.embedding_size) == (size, 64)
            assert [block.width for block in sam.attention_blocks()] == [128] * 2 + [160] * 6 + [
                320
            ] * 2
            assert [block.heads for block in sam.attention_blocks()] == [4] * 2 + [5] * 6 + [10] * 2
            assert {block.qkv_order for block in sam.attention_blocks()} == {"head_qkv"}
