"""The compiled attention against the form in PyTorch, in float64 where that matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samadapt.sam.attention.compiled import attend_compiled, attend_compiled_biased, is_supported
from samadapt.sam.attention.kernels import MODULES, describe_attention, is_missing, load_kernels
from samadapt.sam.attention.layer import RelativePositionAttention
from samadapt.sam.attention.tiled import attend_tiled
from samadapt.sam.tiny_vit_blocks_fast import FastWindowBiasAttention as WindowBiasAttention

FIND = "samadapt.sam.attention.kernels.find_kernels"
BUILDS = MODULES.get(torch.backends.cpu.get_cpu_capability(), ())
TENSORS = ("qkv", "fill", "rows", "columns")


def build(name: str) -> ModuleType:
    try:
        return import_module(f"samadapt.sam.attention.{name}")
    except ImportError:
        pytest.skip(f"{name} was not built: no C compiler when samadapt was installed")


@pytest.fixture(params=BUILDS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Use each build of the kernels that this processor can run, one after the other."""
    module = build(request.param)
    monkeypatch.setattr(FIND, lambda: module)
    return module


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_inputs(
    grid: tuple[int, int], side: tuple[int, int], heads: int = 2, d: int = 8, images: int = 2
) -> list[Tensor]:
    """Return qkv, fill and the spread tables in float64, each a leaf."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(images, *grid, 3, heads, d), (3, heads, d), *[(n, n, d) for n in side]]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def cast(inputs: list[Tensor], dtype: torch.dtype, trained: int = 4) -> list[Tensor]:
    """Return copies of another type; the first ``trained`` require a gradient."""
    return [t.detach().to(dtype).requires_grad_(i < trained) for i, t in enumerate(inputs)]


def results(form, inputs: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of all inputs that require one."""
    out = form(*inputs)
    weight = torch.arange(out.numel(), dtype=torch.float64).sin().view_as(out).to(out.dtype)
    (out * weight).sum().backward()
    return [out.detach(), *(t.grad for t in inputs if t.requires_grad)]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


SIDES = [(4, 5), (2, 2), (3, 2), (7, 9)]  # of a grid of 4 x 5: all; dividing one axis, none; larger


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("trained", [1, 2, 4], ids=["qkv", "fill too", "tables too"])
def test_equals_float64(kernels: ModuleType, side: tuple[int, int], trained: int) -> None:
    exact = make_inputs((4, 5), side)
    wanted = results(attend_tiled, cast(exact, torch.float64, trained))
    found = results(attend_compiled, cast(exact, torch.float32, trained))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BUILDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sizes(name: str, data: st.DataObject) -> None:
    few = st.integers(1, 20)
    grid, side = (data.draw(st.tuples(few, few), label) for label in ("grid", "side"))
    heads, d = data.draw(st.integers(1, 3), "heads"), data.draw(st.integers(1, 40), "d")
    exact = make_inputs(grid, side, heads, d, images=1)
    if all(n % part == 0 for n, part in zip(grid, side, strict=True)):
        exact[1] = exact[1].detach()
    with pytest.MonkeyPatch.context() as patch:
        module = build(name)
        patch.setattr(FIND, lambda: module)
        found = results(attend_compiled, cast(exact, torch.float32, 2))
    wanted = results(attend_tiled, cast(exact, torch.float64, 2))
    torchs = results(attend_tiled, cast(exact, torch.float32, 2))
    for one, other, peer in zip(found, wanted, torchs, strict=True):
        rounding = (peer.double() - other).norm()
        assert (one.double() - other).norm() <= 3 * rounding + 1e-6 * other.norm() + 1e-5


@pytest.mark.parametrize("side", [(32, 32), (14, 14)])
def test_sizes_of_sam(kernels: ModuleType, side: tuple[int, int]) -> None:
    exact = make_inputs((32, 32), side, heads=2, d=64, images=1)
    with torch.no_grad():
        exact[2] *= 0.2
        exact[3] *= 0.2
    wanted = results(attend_tiled, cast(exact, torch.float64, 1))
    found = results(attend_compiled, cast(exact, torch.float32, 1))
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other) <= 2e-6


def test_bf16_is_nearer_than_pytorchs(kernels: ModuleType) -> None:
    exact = make_inputs((20, 20), (14, 14), heads=2, d=16, images=1)
    low = cast(exact, torch.bfloat16, 2)
    if not kernels.BF16:
        assert not is_supported(low[0])
        return
    wanted = results(attend_tiled, cast(low, torch.float64, 2))
    torchs = results(attend_tiled, cast(low, torch.bfloat16, 2))
    for one, other, peer in zip(results(attend_compiled, low), wanted, torchs, strict=True):
        assert one.dtype == torch.bfloat16
        assert error(one, other) <= max(1.1 * error(peer, other), 4e-3)


def test_threads_change_no_bit(kernels: ModuleType, threads: None) -> None:
    exact = make_inputs((9, 10), (4, 4), heads=3)
    runs = []
    for count in (1, 3):
        torch.set_num_threads(count)
        runs.append(results(attend_compiled, cast(exact, torch.float32, 2)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_gradients_change_no_bit_of_the_output(kernels: ModuleType) -> None:
    inputs = cast(make_inputs((4, 5), (2, 2)), torch.float32)
    with torch.no_grad():
        plain = attend_compiled(*inputs)
    assert torch.equal(attend_compiled(*inputs).detach(), plain)


def test_large_scores_do_not_overflow(kernels: ModuleType) -> None:
    exact = make_inputs((4, 5), (2, 2))
    with torch.no_grad():
        exact[0] *= torch.tensor([1e3, 1e3, 1]).view(3, 1, 1)
    found = results(attend_compiled, cast(exact, torch.float32, 2))
    torch.testing.assert_close(
        found[0].double(), attend_tiled(*exact).detach(), atol=1e-3, rtol=1e-3
    )
    assert all(value.isfinite().all() for value in found)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["q", "k", "v"])
def test_nan_stays_nan_in_its_window(kernels: ModuleType, part: int) -> None:
    inputs = cast(make_inputs((4, 6), (2, 3)), torch.float32)
    with torch.no_grad():
        inputs[0][0, 1, 4, part, 0, 3] = torch.nan
        out = attend_compiled(*inputs)
    assert out[0, 1, 4, 0].isnan().any()
    assert out[0, :, :3].isfinite().all()
    assert out[0, 2:].isfinite().all()
    assert out[1].isfinite().all()


def test_no_score_is_kept_for_backward(kernels: ModuleType) -> None:
    inputs = cast(make_inputs((4, 5), (2, 2)), torch.float32)
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = attend_compiled(*inputs)
    wanted = [*(t.numel() for t in (*inputs, out)), 2 * out[..., 0].numel()]
    assert sorted(t.numel() for t in kept) == sorted(wanted)


def test_operands_may_have_any_memory_layout(kernels: ModuleType) -> None:
    inputs = cast(make_inputs((4, 6), (2, 3)), torch.float32)
    turned = [t.detach().transpose(0, -1).contiguous().transpose(0, -1) for t in inputs]
    with torch.no_grad():
        assert torch.equal(attend_compiled(*turned), attend_compiled(*inputs))


def test_tiles_that_do_not_divide_need_a_fill(kernels: ModuleType) -> None:
    qkv, _, rows, columns = cast(make_inputs((4, 5), (2, 2)), torch.float32)
    with pytest.raises(ValueError, match=r"windows of \(2, 2\) do not divide a grid of \(4, 5\)"):
        attend_compiled(qkv, None, rows, columns)


def make_biased(window: int) -> tuple[WindowBiasAttention, Tensor]:
    torch.manual_seed(0)
    attention = WindowBiasAttention(24, 3, window)
    torch.nn.init.normal_(attention.attention_biases)
    return attention, torch.randn(2, 11, 15, 24)


@pytest.mark.parametrize("window", [2, 4, 7, 8, 14])
@pytest.mark.parametrize("trained", ["x", "qkv.weight", "norm.bias"])
def test_biases_of_pairs_equal_pytorchs(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, window: int, trained: str
) -> None:
    attention, x = make_biased(window)
    attention.requires_grad_(False)
    leaf = x if trained == "x" else attention.get_parameter(trained)
    leaf.requires_grad_(True)

    def found(attention: WindowBiasAttention, x: Tensor, leaf: Tensor) -> list[Tensor]:
        out = attention(x)
        weight = torch.arange(out.numel(), dtype=torch.float64).sin().view_as(out).to(out.dtype)
        (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
        return [out.detach(), gradient]

    with_kernels = found(attention, x, leaf)
    monkeypatch.setattr(FIND, lambda: None)
    for one, other in zip(with_kernels, found(attention, x, leaf), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_biases_of_pairs_in_bf16(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = make_biased(7)
    attention.requires_grad_(False)

    def found(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_(True)
        out = attention(leaf)
        return out.detach(), torch.autograd.grad(out.float().square().sum(), leaf)[0]

    attention.double()
    exact = found(x.double())
    attention.float()
    errors = []
    for taken in (kernels, None):
        monkeypatch.setattr(FIND, lambda taken=taken: taken)
        with torch.autocast("cpu", torch.bfloat16):
            errors.append([error(*pair) for pair in zip(found(x), exact, strict=True)])
    assert all(one <= 1.2 * other for one, other in zip(*errors, strict=True))


def test_biases_may_lie_anyhow(kernels: ModuleType) -> None:
    torch.manual_seed(0)
    qkv, biases = torch.randn(1, 8, 8, 2, 3, 8), torch.randn(2, 64, 64)
    turned = biases.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(
        attend_compiled_biased(qkv, None, turned), attend_compiled_biased(qkv, None, biases)
    )


def test_a_pair_may_be_masked(kernels: ModuleType) -> None:
    qkv, biases = torch.randn(1, 2, 2, 1, 3, 8), torch.zeros(1, 4, 4)
    biases[0, :, 1] = -torch.inf
    changed = qkv.clone()
    changed[0, 0, 1, 0, 1:] = 100  # k and v of the masked token
    assert torch.equal(
        attend_compiled_biased(qkv, None, biases), attend_compiled_biased(changed, None, biases)
    )


def test_trained_biases_get_their_gradient(kernels: ModuleType) -> None:
    attention, x = make_biased(3)
    attention(x).sum().backward()
    assert attention.attention_biases.grad is not None
    biases = attention.pair_biases()[0]
    with pytest.raises(ValueError, match="computes no gradient of biases"):
        attend_compiled_biased(torch.zeros(1, 3, 3, 3, 3, 8), None, biases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_type_changes_nothing(kernels: ModuleType, dtype: torch.dtype) -> None:
    exact = make_inputs((4, 5), (2, 2))
    wanted = results(attend_compiled, cast(exact, torch.float32, 2))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = results(attend_compiled, cast(exact, torch.float32, 2))
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"qkv": torch.zeros(1, 4, 4, 3, 2, 8).half()}, "qkv must be fp32 on the CPU"),
        ({"qkv": torch.zeros(1, 4, 4, 2, 2, 8)}, "qkv must hold q, k and v"),
        ({"fill": torch.zeros(3, 2, 4)}, r"fill must be \(3, 2, 8\) on the CPU; got \(3, 2, 4\)"),
        ({"rows": torch.zeros(2, 2, 4)}, r"rows must be \(2, 2, 8\) on the CPU; got \(2, 2, 4\)"),
        ({"columns": torch.zeros(2, 3, 8)}, r"columns must be \(2, 2, 8\) on the CPU"),
    ],
)
def test_operands_that_do_not_belong_together(
    kernels: ModuleType, fault: dict[str, Tensor], message: str
) -> None:
    right = {
        "qkv": torch.zeros(1, 4, 4, 3, 2, 8),
        "fill": torch.zeros(3, 2, 8),
        "rows": torch.zeros(2, 2, 8),
        "columns": torch.zeros(2, 2, 8),
    }
    with pytest.raises(ValueError, match=message):
        attend_compiled(**right | fault)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 5, 5), (2, 4, 9)])
def test_biases_are_of_each_head_and_square_windows(
    kernels: ModuleType, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"biases must be \(2, "):
        attend_compiled_biased(torch.zeros(1, 4, 4, 2, 3, 8), None, torch.zeros(shape))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_graph_holds_pytorchs_operators(kernels: ModuleType) -> None:
    attention, x = make_biased(5)
    with torch.no_grad():
        traced = torch.jit.trace(attention, x[:1], check_trace=False)
        torch.testing.assert_close(traced(x[1:]), attention(x[1:]), atol=1e-5, rtol=1e-5)


def test_a_build_of_another_interface_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not BUILDS:
        pytest.skip("there is no compiled backend for this processor")
    monkeypatch.setattr("samadapt.sam.attention.kernels.INTERFACE", -1)
    assert load_kernels() is None
    monkeypatch.setattr(FIND, load_kernels)
    found = describe_attention()
    assert "another version" in found or "not built" in found


def test_what_it_takes(kernels: ModuleType) -> None:
    odd = torch.zeros(1, 2, 2, 3, 1, 5)
    assert is_supported(odd)
    assert not is_supported(odd.double())
    assert not is_supported(odd.half())
    assert not is_supported(odd.bfloat16())
    assert is_supported(torch.zeros(1, 2, 2, 3, 1, 4, dtype=torch.bfloat16)) == bool(kernels.BF16)
    assert not is_supported(torch.zeros(1, 2, 2, 3, 1, 4, device="meta"))
    assert describe_attention().startswith("compiled for AVX")


def test_without_it_the_module_does_the_same(
    monkeypatch: pytest.MonkeyPatch, kernels: ModuleType, randomise
) -> None:
    attention = RelativePositionAttention(16, 4, (3, 3), windowed=True)
    randomise(attention, 3)
    x = torch.randn(2, 5, 7, 16, generator=torch.Generator().manual_seed(0))
    with_kernels = attention(x)
    monkeypatch.setattr(FIND, lambda: None)
    torch.testing.assert_close(attention(x), with_kernels, atol=1e-5, rtol=1e-5)
    assert "by PyTorch" in describe_attention()
    with pytest.raises(ValueError, match="by PyTorch"):
        attend_compiled(*cast(make_inputs((2, 2), (2, 2)), torch.float32))


def test_another_processor_has_no_compiled_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(FIND, load_kernels)
    assert load_kernels() is None
    assert not is_missing()
    assert "no compiled backend for this processor" in describe_attention()


NANS = (0x7FC00000, 0x7FC00123, 0x7FFFFFFF, 0x7F800001, -1, -0x400000)
"""Bits of NaNs: the usual one, with payloads, signalling, and negative ones."""


def textbook(qkv: Tensor, fill: Tensor, add: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """Attend in square tiles of 3 as in the paper, with gradients by autograd.

    Args:
        qkv: (b, h, w, 3, heads, d).
        fill: (3, heads, d).
        add: from a query (heads, d) and its place in the tile, what places add: (heads, 9).
    """
    rows = []
    for y in range(qkv.shape[1]):
        for x in range(qkv.shape[2]):
            top, left = 3 * (y // 3), 3 * (x // 3)
            places = [(top + i, left + j) for i in range(3) for j in range(3)]
            cells = torch.stack(
                [
                    qkv[0, i, j] if i < qkv.shape[1] and j < qkv.shape[2] else fill
                    for i, j in places
                ],
                dim=1,
            )  # (3, 9, heads, d)
            q, k, v = qkv[0, y, x, 0], cells[1].transpose(0, 1), cells[2].transpose(0, 1)
            scores = (k @ q[..., None])[..., 0] * q.shape[-1] ** -0.5 + add(q, y - top, x - left)
            rows.append((scores.softmax(-1)[:, None] @ v)[:, 0])
    return torch.stack(rows).view(1, *qkv.shape[1:3], *qkv.shape[4:])


def with_nan(tensor: Tensor, bits: int, index: int) -> Tensor:
    """Return a copy with a NaN of these bits at a flat index."""
    changed = tensor.clone()
    changed.view(torch.int32).view(-1)[index % tensor.numel()] = bits
    return changed


def nans(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [output.isnan() for output in outputs]


@pytest.mark.parametrize("where", range(5), ids=[*TENSORS, "grad"])
@pytest.mark.parametrize("bits", NANS, ids=hex)
def test_no_nan_is_lost(kernels: ModuleType, bits: int, where: int) -> None:
    """Output and gradients are NaN exactly where those of the textbook form are."""
    plain = [t.detach().float() for t in make_inputs((4, 5), (3, 3), images=1)]
    plain.append(torch.randn(1, 4, 5, 2, 8, generator=torch.Generator().manual_seed(3)))
    for index in range(1, 960, 97):
        given = [with_nan(t, bits, index) if i == where else t for i, t in enumerate(plain)]
        *inputs, grad = given

        def add(q: Tensor, y: int, x: int, inputs: list[Tensor] = inputs) -> Tensor:
            by_row, by_column = q @ inputs[2][y].T, q @ inputs[3][x].T
            return (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)

        found, expected = [], []
        for form, results in ((attend_compiled, found), (None, expected)):
            leaves = [t.clone().requires_grad_() for t in inputs[:2]]
            out = textbook(*leaves, add) if form is None else form(*leaves, *inputs[2:])
            results += [out, *torch.autograd.grad(out, leaves, grad)]
        assert all(map(torch.equal, nans(found), nans(expected))), index


@pytest.mark.parametrize("where", range(3), ids=["qkv", "fill", "biases"])
@pytest.mark.parametrize("bits", NANS, ids=hex)
def test_no_nan_is_lost_with_biases(kernels: ModuleType, bits: int, where: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 5, 2, 3, 8), (2, 3, 8), (2, 9, 9)]
    plain = [torch.randn(shape, generator=generator) for shape in shapes]
    for index in range(1, 960, 97):
        qkv, fill, biases = [
            with_nan(t, bits, index) if i == where else t for i, t in enumerate(plain)
        ]

        def add(q: Tensor, y: int, x: int, biases: Tensor = biases) -> Tensor:
            return biases[:, 3 * y + x]

        found, expected = [], []
        for by_kernels, results in ((True, found), (False, expected)):
            leaves = [t.clone().requires_grad_() for t in (qkv, fill)]
            if by_kernels:
                out = attend_compiled_biased(*leaves, biases)
            else:
                out = textbook(leaves[0].transpose(3, 4), leaves[1].transpose(0, 1), add)
            results += [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]
        assert all(map(torch.equal, nans(found), nans(expected))), index


def test_no_nan_is_lost_in_bf16(kernels: ModuleType) -> None:
    if not kernels.BF16:
        pytest.skip("no bf16 in this build or processor")
    qkv, fill, rows, columns = (t.detach().bfloat16() for t in make_inputs((4, 5), (3, 3)))
    for index in range(0, qkv.numel(), 61):
        broken = qkv.clone()
        broken.view(-1)[index] = torch.nan
        found = attend_compiled(broken, fill, rows, columns)
        expected = attend_tiled(broken, fill, rows, columns)
        assert torch.equal(found.isnan(), expected.isnan())
