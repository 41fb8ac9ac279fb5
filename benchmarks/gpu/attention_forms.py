"""The forms of attention with decomposed relative position: exactness, time and memory of each.

samadapt's form for CUDA (``folded``) competes with PyTorch's fused kernel and a mask of all scores,
with the same for some heads at a time, with tiles of scores, and with ``flex_attention``. The
values that are compared are the output and, with backward, the gradients of tokens, padding and
tables, all in one vector. Exact is the textbook form in float64, for the same rounded inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu.contest import Contest, Device
from benchmarks.harness import Build, Call, Fact
from benchmarks.machine import HALVES, PrecisionName
from samadapt.sam.attention.dispatch import Backend
from samadapt.sam.attention.folded import attend_folded
from samadapt.sam.attention.fused import attend_fused
from samadapt.sam.attention.position import relative_scores, relative_tables
from samadapt.sam.attention.reference import attend_reference
from samadapt.sam.attention.tiled import attend_tiled
from samadapt.sam.attention.windows import join_windows, window_tokens

PARTS = 4
"""The masked form in parts holds the scores of one part of the heads at a time."""

OURS = "samadapt, folded"
MASKED = "mask of all scores"
SHAPES = {
    "ViT-B, window": (14, 64, 12),
    "ViT-B, global": (64, 64, 12),
    "ViT-H, window": (14, 80, 16),
    "ViT-H, global": (64, 80, 16),
}
"""Side of what attends, in tokens, channels of a head, and heads."""

FLEX = "ViT-B, global"
"""Where ``flex_attention`` is measured as well."""

LIMITS = {"fp32": 1e-5, "tf32": 5e-3}
"""Highest relative error in fp32. TF32 keeps 10 bits of every factor: 5e-4 each."""

HALF_LIMIT = 1.5
"""In bf16 and fp16 the error is at most this many times that of the mask of all scores."""

Shape = tuple[int, int, int]


def rows(device: Device, shapes: Mapping[str, Shape], grid: int) -> Iterator[Contest]:
    """Yield forward and backward in every precision, global attention first."""
    halves: tuple[PrecisionName, ...] = ("bf16", "fp16", "fp32")
    precisions = (*halves, "tf32") if device == "cuda" else halves
    for name in sorted(shapes, key=lambda name: "global" not in name):
        for precision in precisions:
            yield row(device, name, shapes[name], grid, precision, backward=True)
    for name in shapes:
        yield row(device, name, shapes[name], grid, "bf16", backward=False)


def row(
    device: Device, name: str, shape: Shape, grid: int, precision: PrecisionName, *, backward: bool
) -> Contest:
    """Compare the forms on one image of ``grid`` x ``grid`` tokens."""
    forms: dict[str, Backend] = {
        OURS: attend_folded,
        MASKED: attend_fused,
        "mask of some heads at a time": attend_masked_by_heads,
        "tiles": attend_tiled,
    }
    # Its backward exists on GPUs alone. It is compiled for seconds, so one shape must do.
    if name.startswith(FLEX) and precision == "bf16" and (device == "cuda" or not backward):
        forms["flex_attention"] = attend_flex
    build = partial(_attending, device, shape, grid, precision, backward)
    contenders: dict[str, Build] = {key: partial(build, form) for key, form in forms.items()}
    return Contest(
        name=f"attention {name} {precision}, forward{' and backward' if backward else ''}",
        contenders=contenders,
        device=device,
        precision=precision,
        exact=lambda: exact(device, shape, grid, precision, backward),
        limit=partial(_limit, precision),
    )


def _limit(precision: PrecisionName, errors: Mapping[str, float]) -> float:
    return LIMITS[precision] if precision in LIMITS else HALF_LIMIT * errors[MASKED]


def attend_masked_by_heads(
    qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor
) -> Tensor:
    """Attend with a mask of the scores of some heads at a time; see ``dispatch.Backend``.

    For backward the mask is computed again, since every mask would otherwise be kept.
    """
    parts = []
    count = max(1, qkv.shape[4] // PARTS)
    for first in range(0, qkv.shape[4], count):
        some = slice(first, first + count)
        own = (qkv[..., some, :], None if fill is None else fill[:, some], rows, columns)
        if torch.is_grad_enabled():
            parts.append(checkpoint(attend_fused, *own, use_reentrant=False))
        else:
            parts.append(attend_fused(*own))
    return torch.cat(parts, dim=-2)


def attend_flex(qkv: Tensor, fill: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """Attend with compiled ``flex_attention``; see ``dispatch.Backend``."""
    side = (len(rows), len(columns))
    q, k, v = window_tokens(qkv, fill, side)
    by_row, by_column = (x.transpose(1, 2) for x in relative_scores(q, rows, columns))
    width = side[1]

    def position(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        placed: Tensor = score + by_row[b, h, i, j // width] + by_column[b, h, i, j % width]
        return placed

    out = _compiled_flex()(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), position)
    windows = out.transpose(1, 2).reshape(-1, *side, qkv.shape[4] * qkv.shape[5])
    return torch.unflatten(join_windows(windows, tuple(qkv.shape[1:3])), -1, tuple(qkv.shape[4:]))


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def operands(device: Device, shape: Shape, grid: int, dtype: torch.dtype) -> list[Tensor]:
    """Return qkv (1, g, g, 3, heads, d), the padding (3, heads, d) and two tables (2 side - 1, d).

    Tables have a scale at which position changes the weights as in trained models.
    """
    side, d, heads = shape
    generator = torch.Generator().manual_seed(side + d)
    sizes = [(1, grid, grid, 3, heads, d), (3, heads, d), *[(2 * side - 1, d)] * 2]
    drawn = [torch.randn(size, generator=generator) for size in sizes]
    scaled = [drawn[0], drawn[1], 0.2 * drawn[2], 0.2 * drawn[3]]
    return [one.to(device, dtype).requires_grad_() for one in scaled]


def _attending(
    device: Device,
    shape: Shape,
    grid: int,
    precision: PrecisionName,
    backward: bool,
    form: Backend,
) -> Call:
    given = operands(device, shape, grid, HALVES.get(precision, torch.float32))
    if not backward:
        given = [one.detach() for one in given]
    return calling(form, given, grid, backward=backward)


def calling(form: Backend, given: list[Tensor], grid: int, *, backward: bool) -> Call:
    """Return the call that attends and, with ``backward``, computes the gradients of all inputs."""
    qkv, fill, *tables = given
    side = (len(tables[0]) + 1) // 2
    padding = fill if grid % side else None
    wanted = [qkv, *([] if padding is None else [fill]), *tables]

    def forward() -> Tensor:
        pairs = relative_tables(tables[0], tables[1], (side, side))
        return form(qkv, padding, *pairs)

    if not backward:
        return torch.no_grad()(forward)

    def step() -> tuple[Tensor, ...]:
        out = forward()
        direction = torch.linspace(-1, 1, out.numel(), device=out.device).sin().view_as(out)
        return out.detach(), *torch.autograd.grad(out, wanted, direction.to(out.dtype))

    return step


def exact(
    device: Device, shape: Shape, grid: int, precision: PrecisionName, backward: bool
) -> Tensor | tuple[Tensor, ...]:
    """Return the values of the textbook form in float64, for inputs rounded to the precision."""
    rounded = operands(device, shape, grid, HALVES.get(precision, torch.float32))
    given = [one.detach().double().requires_grad_() for one in rounded]
    values: Tensor | tuple[Tensor, ...] = calling(
        attend_reference, given, grid, backward=backward
    )()
    return values


def kernels(device: Device, shapes: Mapping[str, Shape], grid: int) -> Fact:
    """Return the row that names the kernels which attention with folded position runs on."""

    def names() -> dict[str, Any]:
        return {
            f"{name} {precision}": ", ".join(_attention_kernels(device, shape, grid, dtype))
            for name, shape in shapes.items()
            for precision, dtype in {**HALVES, "fp32": torch.float32}.items()
        }

    return Fact("kernels of folded attention, forward and backward", names)


MARKS = ("flash", "fmha", "efficient", "cudnn", "sdpa", "_math")
"""Parts of the names of kernels that compute attention."""


def _attention_kernels(
    device: Device, shape: Shape, grid: int, dtype: torch.dtype
) -> dict[str, None]:
    call = calling(attend_folded, operands(device, shape, grid, dtype), grid, backward=True)
    call()
    with profile() as seen:
        call()
    found = (event.key for event in seen.key_averages() if "autograd" not in event.key)
    return dict.fromkeys(_short(key) for key in found if any(mark in key.lower() for mark in MARKS))


def _short(kernel: str) -> str:
    """Return the name of a kernel without its template arguments and its namespace."""
    return kernel.removeprefix("void ").split("<")[0].split("(")[0].removeprefix("aten::")[:70]
