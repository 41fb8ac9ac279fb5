"""The compiled attention as operators of PyTorch: graphs, fake tensors, profiler and counter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from samadapt.sam.attention.compiled import attend_compiled, attend_compiled_biased, is_supported
from samadapt.sam.attention.fused import attend_fused
from samadapt.sam.attention.kernels import find_kernels
from samadapt.sam.attention.tiled import attend_tiled
from samadapt.sam.attention.windows import partition_windows

pytestmark = pytest.mark.skipif(find_kernels() is None, reason="attention is not compiled here")

# opcheck asks for the gradients of inputs that are no leaves, which torch warns of.
OPCHECK = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator)


def windows(trained: str = "") -> dict[str, Tensor]:
    """Return operands in windows that reach over the edge; ``trained`` names the leaves."""
    operands = {
        "qkv": draw(2, 4, 5, 3, 2, 8),
        "fill": draw(3, 2, 8),
        "rows": draw(3, 3, 8),
        "columns": draw(2, 2, 8),
    }
    return {name: value.requires_grad_(name in trained) for name, value in operands.items()}


def biased(trained: str = "") -> dict[str, Tensor]:
    operands = {"qkv": draw(2, 4, 5, 2, 3, 8), "fill": draw(2, 3, 8), "biases": draw(2, 9, 9)}
    return {name: value.requires_grad_(name in trained) for name, value in operands.items()}


FORMS = {"windows": (attend_compiled, windows), "biased": (attend_compiled_biased, biased)}

form = pytest.mark.parametrize(("attend", "operands"), FORMS.values(), ids=FORMS)


class Attention(nn.Module):
    """One of the forms as a module, which ``torch.export`` wants."""

    def __init__(self, operator: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, *operands: Tensor | None) -> Tensor:
        return self.operator(*operands)[0]


@pytest.fixture(autouse=True)
def nothing_is_compiled_before() -> Iterator[None]:
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@OPCHECK
@pytest.mark.slow
@form
@pytest.mark.parametrize("trained", ["", "qkv fill"])
def test_torch_finds_no_fault(attend, operands, trained: str) -> None:
    """Schema, fake results, registration of gradients, and AOTAutograd with dynamic shapes."""
    name = "attend_windows" if attend is attend_compiled else "attend_biased"
    operator = getattr(torch.ops.samadapt, name).default
    torch.library.opcheck(operator, tuple(operands(trained).values()))


@OPCHECK
@pytest.mark.slow
def test_torch_finds_no_fault_with_trained_tables() -> None:
    operands = windows("qkv fill rows columns")
    torch.library.opcheck(torch.ops.samadapt.attend_windows.default, tuple(operands.values()))


@form
def test_fake_results_are_like_real_ones(attend, operands) -> None:
    real = operands("qkv fill")
    expected = attend(**real)
    expected_grads = torch.autograd.grad(expected.sum(), (real["qkv"], real["fill"]))
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(value) for name, value in real.items()}
        assert is_supported(fake["qkv"])
        found = attend(**fake)
        grads = torch.autograd.grad(found.sum(), (fake["qkv"], fake["fill"]))
    for one, other in zip((found, *grads), (expected, *expected_grads), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_fake_operands_are_checked_too() -> None:
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(value) for name, value in windows().items()}
        with pytest.raises(ValueError, match=r"windows of \(3, 2\) do not divide"):
            attend_compiled(**fake | {"fill": None})


@form
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_a_graph_holds_one_step(attend, operands, tracing: str) -> None:
    first, second = operands(), operands()
    second["qkv"] = second["qkv"] + 1
    graph = make_fx(attend, tracing_mode=tracing)(*first.values())
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("samadapt.attend") for name in called) == 1
    assert torch.equal(graph(*second.values()), attend(**second))


@pytest.mark.slow
@form
def test_a_program_with_the_operator_is_exported(attend, operands) -> None:
    name = "attend_windows" if attend is attend_compiled else "attend_biased"
    module = Attention(getattr(torch.ops.samadapt, name))
    given = tuple(operands().values())
    program = torch.export.export(module, given)
    assert f"samadapt.{name}" in program.graph_module.code
    assert torch.equal(program.module()(*given), attend(*given))


@form
def test_a_profiler_names_forward_and_backward(attend, operands) -> None:
    given = operands("qkv")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        attend(**given).sum().backward()
    name = "attend_windows" if attend is attend_compiled else "attend_biased"
    rows = {event.key for event in seen.key_averages()}
    assert {f"samadapt::{name}", f"samadapt::{name}_backward"} <= rows


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_operations_are_those_of_pytorchs_form() -> None:
    """In windows that divide the grid, where both compute the same products."""
    qkv, rows, columns = draw(1, 6, 4, 3, 2, 8), draw(3, 3, 8), draw(2, 2, 8)
    forward = counted(lambda: attend_compiled(qkv, None, rows, columns))
    assert forward == counted(lambda: attend_fused(qkv, None, rows, columns))
    leaf = qkv.clone().requires_grad_()
    both = counted(lambda: attend_compiled(leaf, None, rows, columns).sum().backward())
    tokens, d, keys, by_place = 6 * 4 * 2, 8, 3 * 2, 3 + 2
    assert both - forward == 2 * tokens * d * (5 * keys + 2 * by_place)


def test_operations_with_a_bias_are_those_of_two_products() -> None:
    qkv, biases = draw(1, 6, 3, 2, 3, 8), draw(2, 9, 9)
    forward = counted(lambda: attend_compiled_biased(qkv, None, biases))
    cells = partition_windows(qkv.flatten(3), (3, 3), None).flatten(1, 2)
    q, k, _ = cells.unflatten(-1, (2, 3, 8)).permute(3, 0, 2, 1, 4)
    assert forward == 2 * counted(lambda: q @ k.transpose(-2, -1))
    leaf = qkv.clone().requires_grad_()
    both = counted(lambda: attend_compiled_biased(leaf, None, biases).sum().backward())
    assert both - forward == 5 * forward // 2


@pytest.mark.parametrize("trained", ["rows", "qkv columns", "fill rows columns"])
def test_only_wanted_gradients_are_given(trained: str) -> None:
    found, exact = windows(trained), windows(trained)
    attend_compiled(**found).square().sum().backward()
    attend_tiled(**exact).square().sum().backward()
    for name, leaf in found.items():
        assert (leaf.grad is not None) == (name in trained)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, exact[name].grad, atol=1e-4, rtol=1e-4)


@form
def test_second_derivatives_are_refused(attend, operands) -> None:
    given = operands("qkv")
    out = attend(**given).square().sum()
    (first,) = torch.autograd.grad(out, given["qkv"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


@pytest.mark.slow
def test_a_call_does_not_load_the_compiler_of_pytorch() -> None:
    """``torch._dynamo`` takes longer to import than a small image takes to embed."""
    code = """
import sys, torch
from samadapt.sam.attention.compiled import attend_compiled
before = "torch._dynamo" in sys.modules
qkv, table = torch.zeros(1, 2, 2, 3, 1, 4, requires_grad=True), torch.zeros(2, 2, 4)
attend_compiled(qkv, None, table, table).sum().backward()
print(before, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"False"]
