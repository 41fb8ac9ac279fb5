"""Position folded into the channels of a head: exact on any grid, and no tensor of all scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import profile

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


SHAPES = st.tuples(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
    st.sampled_from([1, 4, 7, 16, 80]),
)


@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES)
def test_values_and_gradients_are_those_of_the_reference(shapes) -> None:
    pairs = zip(
        results(attend_folded, made(*shapes)), results(attend_reference, made(*shapes)), strict=True
    )
    for found, exact in pairs:
        assert (found - exact).abs().max() <= 1e-9 * max(1, float(exact.abs().max()))


@pytest.mark.parametrize("side", [(14, 14), (20, 24)])
def test_fp32_is_exact_to_its_digits(side: tuple[int, int]) -> None:
    shape = (20, 24), side, 2, 64
    exact = results(attend_reference, made(*shape))
    low = results(attend_folded, made(*shape, torch.float32))
    for found, one in zip(low, exact, strict=True):
        assert (found - one).abs().max() <= 1e-5 * max(1, float(one.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [64, 80])
@pytest.mark.parametrize("side", [(14, 14), (20, 24)])
def test_half_precision_is_as_exact_as_with_a_mask(dtype, d: int, side: tuple[int, int]) -> None:
    """The error of values and of every gradient against fp64, beside that of the fused form."""
    shape = (20, 24), side, 2, d
    exact = results(attend_reference, made(*shape))
    errors = [
        [
            float((found - one).norm())
            for found, one in zip(results(form, made(*shape, dtype)), exact, strict=True)
        ]
        for form in (attend_folded, attend_fused)
    ]
    for own, with_mask in zip(*errors, strict=True):
        assert own <= 1.5 * with_mask + 1e-12


def test_no_tensor_holds_all_scores() -> None:
    """In windows and over the image, forward and backward."""
    for side in ((12, 12), (24, 24)):
        inputs = made((24, 24), side, 2, 16, torch.float32)
        with profile(record_shapes=True) as seen:
            results(attend_folded, inputs)
        tokens = side[0] * side[1]
        shapes = [shape for event in seen.events() for shape in event.input_shapes]
        assert len(shapes) > 50
        assert not [shape for shape in shapes if shape[-2:] == [tokens, tokens]]
        with profile(record_shapes=True) as seen:
            results(attend_fused, made((24, 24), side, 2, 16, torch.float32))
        shapes = [shape for event in seen.events() for shape in event.input_shapes]
        assert [shape for shape in shapes if shape[-2:] == [tokens, tokens]]  # it would be seen


def test_the_channels_are_those_that_flash_kernels_take() -> None:
    sizes = {(d, g): folded_channels(d, (g, g)) for d in (64, 80) for g in (14, 64)}
    assert sizes == {(64, 14): 96, (64, 64): 192, (80, 14): 112, (80, 64): 208}
