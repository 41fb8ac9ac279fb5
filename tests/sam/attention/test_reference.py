"""Every backend against the textbook form, the formula and segment-anything's module."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samadapt.sam.attention import dispatch
from samadapt.sam.attention.folded import attend_folded
from samadapt.sam.attention.fused import attend_fused
from samadapt.sam.attention.layer import RelativePositionAttention
from samadapt.sam.attention.position import relative_tables
from samadapt.sam.attention.reference import attend_reference
from samadapt.sam.attention.tiled import attend_tiled
from samadapt.sam.attention.windows import join_windows, partition_windows
from samadapt.sam.layers import MLPBlock
from samadapt.sam.layers_fast import FastMLPBlock

GRID = (3, 5)
SIDES = [
    GRID,
    (2, 2),
    (3, 2),
    (4, 7),
]  # the whole grid; tiles that divide it in no, one axis; larger


def make_inputs(side: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return qkv of two images with two heads, the padding and the two tables."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, *GRID, 3, 2, 4), (3, 2, 4), *[(2 * length - 1, 4) for length in side]]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


def wave(like: Tensor) -> Tensor:
    """Return weights for an output that differ from cell to cell."""
    return torch.arange(like.numel(), dtype=torch.float64).sin().view_as(like).to(like.dtype)


def plain(qkv: Tensor, fill: Tensor, table_h: Tensor, table_w: Tensor) -> Tensor:
    """Attend by the formula, cell by cell of every window."""
    th, tw = (len(table_h) + 1) // 2, (len(table_w) + 1) // 2
    b, h, w = qkv.shape[:3]
    out = torch.zeros_like(qkv[:, :, :, 0])
    for image in range(b):
        for i in range(h):
            for j in range(w):
                top, left = i // th * th, j // tw * tw
                scores, values = [], []
                q = qkv[image, i, j, 0]
                for y in range(top, top + th):
                    for x in range(left, left + tw):
                        cell = qkv[image, y, x] if y < h and x < w else fill
                        place = table_h[i - y + th - 1] + table_w[j - x + tw - 1]
                        scores.append((q * (cell[1] / 2 + place)).sum(-1))
                        values.append(cell[2])
                weights = torch.stack(scores).softmax(0)
                out[image, i, j] = (weights[..., None] * torch.stack(values)).sum(0)
    return out


def results(form, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradient of every input."""
    qkv, fill, *tables = inputs
    side = tuple((len(table) + 1) // 2 for table in tables)
    out = form(qkv, fill, *relative_tables(*tables, side))
    (out * wave(out)).sum().backward()
    return [out.detach(), *(t.grad for t in inputs)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("chunk_scores", [1, 40, 70, 2**22, None])
def test_tiles_equal_the_formula_with_all_gradients(
    side: tuple[int, int], chunk_scores: int | None
) -> None:
    inputs = make_inputs(side)
    expected = plain(*inputs)
    (expected * wave(expected)).sum().backward()
    wanted = [expected.detach(), *(t.grad for t in inputs)]
    if wanted[2] is None:  # nothing is padded
        wanted[2] = torch.zeros_like(inputs[1])

    def tiles(*given: Tensor) -> Tensor:
        return attend_tiled(*given, chunk_scores=chunk_scores)

    for found, exact in zip(results(tiles, make_inputs(side)), wanted, strict=True):
        torch.testing.assert_close(found, exact, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backend", [attend_reference, attend_fused, attend_folded])
def test_other_backends_equal_tiles(side: tuple[int, int], backend: dispatch.Backend) -> None:
    pairs = zip(
        results(backend, make_inputs(side)), results(attend_tiled, make_inputs(side)), strict=True
    )
    for found, exact in pairs:
        if found is None:  # nothing is padded
            found = torch.zeros_like(exact)
        torch.testing.assert_close(found, exact, atol=1e-11, rtol=1e-11)


def test_gradcheck() -> None:
    qkv, fill, *tables = make_inputs((2, 3))

    def attend(qkv: Tensor, fill: Tensor, *tables: Tensor) -> Tensor:
        return attend_tiled(qkv, fill, *relative_tables(*tables, (2, 3)), chunk_scores=50)

    assert torch.autograd.gradcheck(attend, (qkv[:1], fill, *tables))


def test_frozen_tables_get_no_gradient() -> None:
    qkv, fill, *tables = make_inputs((2, 2))
    frozen = [t.detach() for t in (fill, *relative_tables(*tables, (2, 2)))]
    attend_tiled(qkv, *frozen).sum().backward()
    assert qkv.grad is not None
    assert tables[0].grad is None
    assert fill.grad is None


def test_no_grad_gives_the_same_values() -> None:
    qkv, fill, *tables = make_inputs((2, 2))
    rows, columns = relative_tables(*tables, (2, 2))
    with_grad = attend_tiled(qkv, fill, rows, columns)
    with torch.no_grad():
        assert torch.equal(attend_tiled(qkv, fill, rows, columns), with_grad)


def test_only_inputs_and_output_are_kept_for_backward() -> None:
    qkv, fill, *tables = make_inputs((2, 2))
    rows, columns = relative_tables(*tables, (2, 2))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attend_tiled(qkv, fill, rows, columns)
    sizes = sorted(tensor.numel() for tensor in kept)
    assert sizes == sorted(t.numel() for t in (qkv, fill, rows, columns, out))


def test_large_scores_do_not_overflow() -> None:
    qkv, fill, *tables = make_inputs((2, 2), torch.float32)
    rows, columns = relative_tables(*tables, (2, 2))
    large = qkv * torch.tensor([1e3, 1e3, 1]).view(3, 1, 1)
    out = attend_tiled(large, fill, rows, columns)
    exact = attend_fused(large.double(), fill.double(), rows.double(), columns.double())
    torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=1e-4)
    out.sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


def test_bf16_accumulates_in_fp32() -> None:
    exact, low = make_inputs((2, 2)), make_inputs((2, 2), torch.bfloat16)
    wanted, found = results(attend_tiled, exact), results(attend_tiled, low)
    assert all(t.dtype == torch.bfloat16 for t in found)
    for one, other in zip(wanted, found, strict=True):
        assert (one - other.double()).norm() <= 0.05 * one.norm() + 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_buffers_are_written_before_they_are_read(monkeypatch, dtype: torch.dtype) -> None:
    def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", poisoned)
    for value in results(attend_tiled, make_inputs((2, 2), dtype)):
        assert value.isfinite().all()


@pytest.mark.parametrize("windowed", [False, True])
def test_every_backend_is_the_same_function(monkeypatch, randomise, windowed: bool) -> None:
    side = (2, 2) if windowed else GRID
    attention = RelativePositionAttention(16, 4, side, windowed=windowed)
    randomise(attention, 3)
    x = torch.randn(2, *GRID, 16)
    monkeypatch.setattr(
        "samadapt.sam.attention.layer.choose_backend", lambda *given, windowed: "reference"
    )
    expected = attention.double()(x.double()).float()
    attention.float()
    for name in ("fused", "folded", "tiled", *(["compiled"] if dispatch.is_supported(x) else [])):
        monkeypatch.setattr(
            "samadapt.sam.attention.layer.choose_backend",
            lambda *given, windowed, name=name: name,
        )
        torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_the_backend_follows_the_device_and_the_type(monkeypatch) -> None:
    tables = torch.zeros(2, 2, 4), torch.zeros(2, 2, 4)
    qkv = torch.zeros(1, 4, 4, 3, 2, 4)
    fits = "compiled" if dispatch.is_supported(qkv) else "tiled"
    assert dispatch.choose_backend(qkv, *tables, windowed=True) == fits
    assert dispatch.choose_backend(qkv.double(), *tables, windowed=True) == "tiled"
    other = qkv.to("meta")
    monkeypatch.setattr(dispatch, "is_traced", lambda x: False)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), shape=(1, 64, 64, 3, 12, 64))
    monkeypatch.setattr(dispatch, "is_supported", lambda qkv: False)
    for side, d, expected in ((64, 64, "folded"), (64, 80, "folded"), (96, 80, "tiled")):
        on_gpu.shape = (1, side, side, 3, 12, d)
        tables = torch.zeros(side, side, d), torch.zeros(side, side, d)
        assert dispatch.choose_backend(on_gpu, *tables, windowed=False) == expected
        with monkeypatch.context() as patch:  # torch.compile records no loop over tiles
            patch.setattr(dispatch, "is_traced", lambda x: True)
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            in_graph = "fused" if expected == "tiled" else expected
            assert dispatch.choose_backend(on_gpu, *tables, windowed=False) == in_graph
    tables = torch.zeros(2, 2, 4), torch.zeros(2, 2, 4)
    assert dispatch.choose_backend(other, *tables, windowed=True) == "fused"
    assert dispatch.choose_backend(other, *tables, windowed=False) == "tiled"
    monkeypatch.setattr(dispatch, "is_traced", lambda x: True)
    assert dispatch.choose_backend(qkv, *tables, windowed=False) == "fused"


@pytest.mark.parametrize("chunk", [1, 50, 2**20])
@pytest.mark.parametrize("trained", [False, True])
def test_the_fast_mlp_equals_the_textbook(monkeypatch, chunk: int, trained: bool) -> None:
    monkeypatch.setattr("samadapt.sam.layers_fast.CHUNK_HIDDEN_CPU", chunk)
    textbook, fast = MLPBlock(8, 20).double(), FastMLPBlock(8, 20).double()
    fast.load_state_dict(textbook.state_dict())
    fast.requires_grad_(trained)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(fast(x), textbook(x), atol=1e-12, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_joining_undoes_the_partition(h: int, w: int, window: int, batch: int) -> None:
    x = torch.arange(batch * h * w * 2.0).view(batch, h, w, 2)
    windows = partition_windows(x, (window, window), None)
    assert windows.shape == (batch * -(-h // window) * -(-w // window), window, window, 2)
    assert torch.equal(join_windows(windows, (h, w)), x)


def test_partition_equals_segment_anything() -> None:
    from segment_anything.modeling.image_encoder import window_partition

    x = torch.randn(2, 8, 7, 3)
    expected, _ = window_partition(x, 3)
    assert torch.equal(partition_windows(x, (3, 3), None), expected)


def test_padded_tokens_are_never_projected(randomise) -> None:
    attention = RelativePositionAttention(16, 4, (2, 2), windowed=True)
    seen: list[tuple[int, ...]] = []
    attention.qkv.register_forward_hook(lambda module, inputs, out: seen.append(tuple(out.shape)))
    attention(torch.randn(2, *GRID, 16))
    assert seen == [(2, *GRID, 48), (1, 1, 1, 48)]


@pytest.mark.parametrize("windowed", [False, True])
def test_module_equals_segment_anything(windowed: bool, randomise) -> None:
    from segment_anything.modeling.image_encoder import Attention

    ours = RelativePositionAttention(16, 4, GRID, windowed=windowed).double()
    randomise(ours, 3)
    theirs = Attention(16, 4, use_rel_pos=True, input_size=GRID).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, *GRID, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


def test_position_matters(randomise) -> None:
    attention = RelativePositionAttention(16, 4, GRID, windowed=False)
    randomise(attention, 3)
    x = torch.randn(1, *GRID, 16)
    before = attention(x)
    torch.nn.init.zeros_(attention.rel_pos_w)
    assert (attention(x) - before).abs().mean() > 0.01


def test_a_table_of_another_length_is_refused() -> None:
    attention = RelativePositionAttention(16, 4, (4, 4), windowed=False)
    with pytest.raises(ValueError, match=r"for 5 tokens needs 9 rows; got 7"):
        attention(torch.zeros(1, 5, 5, 16))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide the width 16; got 3"):
        RelativePositionAttention(16, 3, GRID, windowed=False)
