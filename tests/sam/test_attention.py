"""Chunked attention against the plain form and against segment-anything's module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samadapt.sam.attention import (
    RelativePositionAttention,
    attend_global,
    attend_window,
    relative_scores,
)

GRID = (3, 5)


def make_inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v and the two tables, for two images of two heads."""
    generator = torch.Generator().manual_seed(0)
    n, d = GRID[0] * GRID[1], 4
    shapes = [(2, 2, n, d)] * 3 + [(2 * side - 1, d) for side in GRID]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("chunk_scores", [1, 130, 240, 2**22])
def test_chunks_equal_the_plain_form_with_all_gradients(chunk_scores: int) -> None:
    results = []
    for attend in (attend_window, lambda *a: attend_global(*a, chunk_scores=chunk_scores)):
        q, k, v, table_h, table_w = inputs = make_inputs()
        out = attend(q, k, v, *relative_scores(q, table_h, table_w, GRID))
        (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()).sum().backward()
        results.append([out.detach(), *(t.grad for t in inputs)])
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-11, rtol=1e-11)


def test_gradcheck_of_the_chunked_form() -> None:
    inputs = make_inputs()

    def attend(q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
        return attend_global(q, k, v, *relative_scores(q, table_h, table_w, GRID), chunk_scores=130)

    assert torch.autograd.gradcheck(attend, inputs)


def test_no_grad_gives_the_same_values() -> None:
    q, k, v, table_h, table_w = make_inputs()
    rel = relative_scores(q, table_h, table_w, GRID)
    with_grad = attend_global(q, k, v, *rel, chunk_scores=130)
    with torch.no_grad():
        assert torch.equal(attend_global(q, k, v, *rel, chunk_scores=130), with_grad)


def test_large_scores_do_not_overflow() -> None:
    q, k, v, table_h, table_w = make_inputs(torch.float32)
    rel = relative_scores(q * 1e3, table_h, table_w, GRID)
    out = attend_global(q * 1e3, k, v, *rel, chunk_scores=130)
    torch.testing.assert_close(out, attend_window(q * 1e3, k, v, *rel), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_bf16_accumulates_in_fp32() -> None:
    exact = make_inputs()
    low = [t.detach().to(torch.bfloat16).requires_grad_() for t in exact]
    outs = []
    for q, k, v, table_h, table_w in (exact, low):
        outs.append(attend_global(q, k, v, *relative_scores(q, table_h, table_w, GRID)))
        outs[-1].sum().backward()
    assert outs[1].dtype == torch.bfloat16
    assert (outs[0] - outs[1].double()).abs().max() < 0.05
    for one, other in zip(exact, low, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert other.grad.dtype == torch.bfloat16
        assert (one.grad - other.grad.double()).norm() <= 0.05 * one.grad.norm() + 0.1


@pytest.mark.parametrize("kind_global", [False, True])
def test_module_equals_segment_anything(kind_global: bool, randomise) -> None:
    from segment_anything.modeling.image_encoder import Attention

    ours = RelativePositionAttention(16, 4, GRID, kind_global=kind_global).double()
    randomise(ours, 3)
    theirs = Attention(16, 4, use_rel_pos=True, input_size=GRID).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, *GRID, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


def test_position_matters(randomise) -> None:
    attention = RelativePositionAttention(16, 4, GRID, kind_global=True)
    randomise(attention, 3)
    x = torch.randn(1, *GRID, 16)
    before = attention(x)
    torch.nn.init.zeros_(attention.rel_pos_w)
    assert (attention(x) - before).abs().mean() > 0.01


def test_a_table_of_another_length_is_refused() -> None:
    attention = RelativePositionAttention(16, 4, (4, 4), kind_global=True)
    with pytest.raises(ValueError, match=r"for 5 tokens needs 9 rows; got 7"):
        attention(torch.zeros(1, 5, 5, 16))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide the width 16; got 3"):
        RelativePositionAttention(16, 3, GRID, kind_global=True)
