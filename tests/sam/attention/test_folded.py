"""Position folded into the channels of a head: exact on any grid, and no tensor of all scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samadapt.sam.attention.folded import attend_folded, folded_channels
from samadapt.sam.attention.fused import attend_fused
from samadapt.sam.attention.position import relative_tables
from samadapt.sam.attention.reference import attend_reference


def made(
    grid: tuple[int, int], side: tuple[int, int], heads: int, d: int, dtype=torch.float64
) -> list[Tensor]:
    """Return qkv of two images, the padding and the two tables, of realistic size."""
    generator = torch.Generator().manual_seed(sum(grid) + d)
    shapes = [(2, *grid, 3, heads, d), (3, heads, d), *[(2 * length - 1, d) for length in side]]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    scaled = [drawn[0], drawn[1], 0.3 * drawn[2], 0.3 * drawn[3]]
    return [one.to(dtype).requires_grad_() for one in scaled]


def rounded(inputs: list[Tensor]) -> list[Tensor]:
    """Return the same numbers in float64, so that an error is one of the arithmetic alone."""
    return [one.detach().double().requires_grad_() for one in inputs]


def results(form, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and all gradients, in fp64."""
    qkv, fill, *tables = inputs
    side = tuple((len(table) + 1) // 2 for table in tables)
    own = [table.to(qkv.dtype) for table in relative_tables(*tables, side)]
    padded = fill if any(n % m for n, m in zip(qkv.shape[1:3], side, strict=True)) else None
    out = form(qkv, padded, *own)
    weights = torch.arange(out.numel(), dtype=torch.float64).sin().view_as(out).to(out.dtype)
    (out * weights).sum().backward()
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in inputs]
    return [one.detach().double() for one in (out, *gradients)]


class Sizes(TorchDispatchMode):
    """Records the number of elements of every tensor that an operator takes or returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        self.seen |= {leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)}
        return out


SHAPES = st.tuples(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
    st.sampled_from([1, 4, 7, 16, 80]),
)
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5}


@settings(max_examples=25, deadline=None, derandomize=True)
@example(shapes=((1, 4), (4, 1), 1, 80), dtype=torch.float32)
@given(shapes=SHAPES, dtype=st.sampled_from([*LIMITS]))
def test_values_and_gradients_are_those_of_the_reference(shapes, dtype: torch.dtype) -> None:
    inputs = made(*shapes, dtype)
    found, exact = results(attend_folded, inputs), results(attend_reference, rounded(inputs))
    # A gradient may be 0 because large terms cancel, so all of them share a scale.
    largest = max(1.0, *(float(one.abs().max()) for one in exact))
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= LIMITS[dtype] * largest


@pytest.mark.slow
@pytest.mark.parametrize("d", [64, 80])
@pytest.mark.parametrize("side", [14, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_exact_at_the_size_of_sam(dtype: torch.dtype, side: int, d: int) -> None:
    """Heads of ViT-B and ViT-L (64 channels) and of ViT-H (80), in windows and over the image."""
    inputs = [
        one.detach()[:1] if one.ndim == 6 else one
        for one in made((64, 64), (side, side), 1, d, dtype)
    ]
    for one in inputs:
        one.requires_grad_()
    low = results(attend_folded, inputs)
    for found, one in zip(low, results(attend_reference, rounded(inputs)), strict=True):
        assert (found - one).abs().max() <= LIMITS[dtype] * max(1, float(one.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [64, 80])
@pytest.mark.parametrize("side", [(14, 14), (20, 24)])
def test_half_precision_is_as_exact_as_with_a_mask(dtype, d: int, side: tuple[int, int]) -> None:
    """The error of values and of every gradient against fp64, beside that of the fused form."""
    inputs = made((20, 24), side, 2, d, dtype)
    exact = results(attend_reference, rounded(inputs))
    errors = []
    for form in (attend_folded, attend_fused):
        own = [one.detach().clone().requires_grad_() for one in inputs]
        found = results(form, own)
        errors.append([float((a - b).norm()) for a, b in zip(found, exact, strict=True)])
    for folded, masked in zip(*errors, strict=True):
        assert folded <= 1.5 * masked + 1e-12


@pytest.mark.parametrize("side", [(12, 12), (24, 24)])
def test_no_tensor_holds_all_scores(side: tuple[int, int]) -> None:
    """In windows and over the image, forward and backward."""
    scores = 2 * 24 * 24 * side[0] * side[1]  # of two images and one head
    largest = []
    for form in (attend_folded, attend_fused):
        with Sizes() as sizes:
            results(form, made((24, 24), side, 1, 16, torch.float32))
        largest.append(max(sizes.seen))
    assert largest[0] < scores
    assert largest[1] >= scores  # it would be seen


def test_the_channels_are_those_that_flash_kernels_take() -> None:
    sizes = {(d, g): folded_channels(d, (g, g)) for d in (64, 80) for g in (14, 64)}
    assert sizes == {(64, 14): 96, (64, 64): 192, (80, 14): 112, (80, 64): 208}
