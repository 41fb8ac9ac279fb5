"""Attention in compiled code (``_attention.c``), as operators of PyTorch, on x86 processors.

It computes attention within windows with decomposed relative position (SAM's ViT) or with a bias
for each pair of tokens (TinyViT). Where the processor or the build is missing, PyTorch computes the
same.

The operators ``samadapt::attend_windows`` and ``samadapt::attend_biased`` have gradients, work on
fake tensors and count their operations. So ``torch.compile`` takes each as one step of its graph,
and a profiler shows it as one row. They are registered with the functions below
``torch.library.custom_op``, because that wrapper imports all of ``torch._dynamo`` at the first
call, which takes longer than a small image takes to embed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from samadapt.sam.attention import kernels
from samadapt.sam.attention.tiled import backward_tiles, default_chunk
from samadapt.sam.tracing import takes_operators


def is_supported(qkv: Tensor) -> bool:
    """Return whether the compiled code takes these values.

    They must be on the CPU in fp32, or in bf16 where the processor has it, in a tensor for which an
    operator can stand in a graph; see ``takes_operators``.
    """
    return takes_operators(qkv) and kernels.takes_type(qkv)


def attend_compiled(
    qkv: Float[Tensor, "b h w 3 heads d"],
    fill: Float[Tensor, "3 heads d"] | None,
    rows: Float[Tensor, "th th d"],
    columns: Float[Tensor, "tw tw d"],
) -> Float[Tensor, "b h w heads d"]:
    """Attend within each window of a grid of tokens; see ``dispatch.Backend``.

    Args:
        qkv: (b, h, w, 3, heads, d), query, key and value of each token; ``is_supported`` holds.
        fill: (3, heads, d), the same of a padded token; None where windows divide the grid.
        rows: (th, th, d), the vector of each pair of rows [query, key]; th is a window's height.
        columns: (tw, tw, d), the same for columns.

    Returns:
        (b, h, w, heads, d). Only first derivatives are supported.

    Raises:
        ValueError: the operands do not belong together.
    """
    _expect_plain(qkv=qkv, fill=fill, rows=rows, columns=columns)
    out: Tensor = _attend_windows(qkv, fill, rows, columns)[0]
    return out


def attend_compiled_biased(
    qkv: Float[Tensor, "b h w heads 3 d"],
    fill: Float[Tensor, "heads 3 d"] | None,
    biases: Float[Tensor, "heads n n"],
) -> Float[Tensor, "b h w heads d"]:
    """Attend within each square window of a grid of tokens, with a bias for each pair of tokens.

    Args:
        qkv: (b, h, w, heads, 3, d), query, key and value of each token; ``is_supported`` holds.
        fill: (heads, 3, d), the same of a padded token; None where windows divide the grid.
        biases: (heads, n, n), what is added to the score of each pair [query, key] of the n tokens
            of a window, in row-major order. They get no gradient.

    Returns:
        (b, h, w, heads, d). Only first derivatives are supported.

    Raises:
        ValueError: the operands do not belong together, or ``biases`` require a gradient.
    """
    if biases.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "compiled attention computes no gradient of biases; use PyTorch's attention"
        )
    _expect_plain(qkv=qkv, fill=fill, biases=biases)
    out: Tensor = _attend_biased(qkv, fill, biases)[0]
    return out


def _expect_plain(**operands: Tensor | None) -> None:
    for name, tensor in operands.items():
        if tensor is not None and not takes_operators(tensor):
            raise ValueError(f"{name} must be a plain tensor; got {type(tensor).__name__}")


def _define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define the operator ``samadapt::name`` and return it.

    Args:
        name: its name.
        schema: arguments and results, as ``torch.library`` writes them.
        run: computes the results on the CPU.
        fake: returns empty results of the same shapes, types and strides.
    """
    operator = f"samadapt::{name}"
    torch.library.define(operator, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(operator, "cpu", run)
    torch.library.register_fake(operator, fake)
    return getattr(torch.ops.samadapt, name).default


# Decomposed position ----------------------------------------------------------------------------


def _run_windows(
    qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    return kernels.window_call(qkv, fill, rows, columns).forward()


def _fake_windows(
    qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    kernels.check_window_operands(qkv, fill, rows, columns)
    return _empty_results(qkv, (*qkv.shape[:3], *qkv.shape[4:]))


def _empty_results(qkv: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(shape), qkv.new_empty((*shape[:4], 2), dtype=torch.float32)


def _run_windows_backward(
    grad: Tensor,
    qkv: Tensor,
    fill: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    out: Tensor,
    norms: Tensor,
    trains_tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not trains_tables:
        call = kernels.window_call(qkv, fill, rows, columns)
        return *call.backward(grad, out, norms), rows.new_empty(0), columns.new_empty(0)
    # Only full fine-tuning trains the position tables; the compiled code has no gradient of them.
    needs = (True, fill is not None, True, True)
    low = rows.to(qkv.dtype), columns.to(qkv.dtype)
    found = backward_tiles(qkv.contiguous(), fill, *low, out, grad, needs, default_chunk(qkv))
    grad_fill = qkv.new_zeros(qkv.shape[3:]) if found[1] is None else found[1]
    grad_qkv, _, *tables = found
    like = zip(tables, (rows, columns), strict=True)
    grad_rows, grad_columns = (g.to(table.dtype) for g, table in like)  # type: ignore[union-attr]
    return grad_qkv, grad_fill.float(), grad_rows, grad_columns  # type: ignore[return-value]


def _fake_windows_backward(
    grad: Tensor,
    qkv: Tensor,
    fill: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    out: Tensor,
    norms: Tensor,
    trains_tables: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del grad, fill, out, norms
    tables = [t.new_empty(t.shape if trains_tables else (0,)) for t in (rows, columns)]
    fill_grad = qkv.new_empty(qkv.shape[3:], dtype=torch.float32)
    return qkv.new_empty(qkv.shape), fill_grad, tables[0], tables[1]


_attend_windows = _define(
    "attend_windows",
    "(Tensor qkv, Tensor? fill, Tensor rows, Tensor columns) -> (Tensor, Tensor)",
    _run_windows,
    _fake_windows,
)
_attend_windows_backward = _define(
    "attend_windows_backward",
    "(Tensor grad, Tensor qkv, Tensor? fill, Tensor rows, Tensor columns, Tensor out, "
    "Tensor norms, bool trains_tables) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_windows_backward,
    _fake_windows_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep inputs, output and two numbers a query and head; backward computes scores again."""
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)


@once_differentiable
def _backward_of_windows(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    qkv, fill, rows, columns, out, norms = ctx.saved_tensors
    needs = ctx.needs_input_grad
    trains_tables = needs[2] or needs[3]
    found = _attend_windows_backward(grad, qkv, fill, rows, columns, out, norms, trains_tables)
    given = zip(found, (qkv, fill, rows, columns), needs, strict=True)
    return tuple(g.to(t.dtype) if wanted and t is not None else None for g, t, wanted in given)


torch.library.register_autograd(
    "samadapt::attend_windows", _backward_of_windows, setup_context=_keep
)


# A bias for each pair of tokens -----------------------------------------------------------------


def _run_biased(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> tuple[Tensor, Tensor]:
    return kernels.biased_call(qkv, fill, biases).forward()


def _fake_biased(qkv: Tensor, fill: Tensor | None, biases: Tensor) -> tuple[Tensor, Tensor]:
    kernels.check_biased_operands(qkv, fill, biases)
    return _empty_results(qkv, (*qkv.shape[:4], qkv.shape[5]))


def _run_biased_backward(
    grad: Tensor, qkv: Tensor, fill: Tensor | None, biases: Tensor, out: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    return kernels.biased_call(qkv, fill, biases).backward(grad, out, norms)


def _fake_biased_backward(
    grad: Tensor, qkv: Tensor, fill: Tensor | None, biases: Tensor, out: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor]:
    del grad, fill, biases, out, norms
    return qkv.new_empty(qkv.shape), qkv.new_empty(qkv.shape[3:], dtype=torch.float32)


_attend_biased = _define(
    "attend_biased",
    "(Tensor qkv, Tensor? fill, Tensor biases) -> (Tensor, Tensor)",
    _run_biased,
    _fake_biased,
)
_attend_biased_backward = _define(
    "attend_biased_backward",
    "(Tensor grad, Tensor qkv, Tensor? fill, Tensor biases, Tensor out, Tensor norms) "
    "-> (Tensor, Tensor)",
    _run_biased_backward,
    _fake_biased_backward,
)


@once_differentiable
def _backward_of_biased(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    qkv, fill, biases, out, norms = ctx.saved_tensors
    grad_qkv, grad_fill = _attend_biased_backward(grad, qkv, fill, biases, out, norms)
    return grad_qkv, None if fill is None else grad_fill.to(fill.dtype), None


torch.library.register_autograd("samadapt::attend_biased", _backward_of_biased, setup_context=_keep)


# Operations -------------------------------------------------------------------------------------

Shape = tuple[int, ...]


@register_flop_formula(torch.ops.samadapt.attend_windows)
def _count_windows(qkv: Shape, fill: Any, rows: Shape, columns: Shape, **kept: Any) -> int:
    """Count two products with all keys of a window and, for each query, with the tables."""
    b, h, w, _, heads, d = qkv
    th, tw = rows[0], columns[0]
    return 2 * b * h * w * heads * d * (2 * th * tw + th + tw)


@register_flop_formula(torch.ops.samadapt.attend_windows_backward)
def _count_windows_backward(
    grad: Shape, qkv: Shape, fill: Any, rows: Shape, columns: Shape, *others: Any, **kept: Any
) -> int:
    """Count the scores again, and the products that give dv, dp, dq and dk."""
    b, h, w, _, heads, d = qkv
    th, tw = rows[0], columns[0]
    return 2 * b * h * w * heads * d * (5 * th * tw + 2 * (th + tw))


@register_flop_formula(torch.ops.samadapt.attend_biased)
def _count_biased(qkv: Shape, fill: Any, biases: Shape, **kept: Any) -> int:
    b, h, w, heads, _, d = qkv
    return 2 * b * h * w * heads * d * 2 * biases[-1]


@register_flop_formula(torch.ops.samadapt.attend_biased_backward)
def _count_biased_backward(
    grad: Shape, qkv: Shape, fill: Any, biases: Shape, *others: Any, **kept: Any
) -> int:
    b, h, w, heads, _, d = qkv
    return 2 * b * h * w * heads * d * 5 * biases[-1]
