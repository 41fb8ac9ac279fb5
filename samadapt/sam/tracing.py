"""When layers must take their textbook form, because something records their operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_traced(x: Tensor) -> bool:
    """Return whether layers must avoid loops over parts and code that reads the memory of x.

    This is the case while a graph is recorded (ONNX, ``torch.compile``, ``torch.export``,
    ``make_fx``), while anything but autograd intercepts operators, and when x is not a plain tensor
    with values of its own: a fake, functional or dual tensor, a ``torch.func`` wrapper, a subclass.
    """
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return True
    if torch.jit.is_tracing() or not is_plain(x):  # type: ignore[attr-defined, no-untyped-call]
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def is_plain(x: Tensor) -> bool:
    """Return whether x is a tensor whose values lie in memory as its strides say."""
    if type(x) not in (Tensor, nn.Parameter) or x.layout is not torch.strided or x.is_neg():
        return False
    return not (_is_transformed(x) or torch._is_functional_tensor(x))


_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
