"""What layers must heed where something records their operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, nn.Parameter)


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


def takes_operators(x: Tensor) -> bool:
    """Return whether an operator of samadapt's own may compute with x, or stand for it in a graph.

    It may in ``torch.compile`` and ``make_fx``, on fake tensors, and where something intercepts
    operators: each of them sees one step. A program of ``torch.export`` or ONNX must run where
    samadapt is not installed, so it holds PyTorch's operators alone, and so does what ``torch.jit``
    traces. Dual tensors, ``torch.func`` and subclasses have no rule for the operator.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting() and type(x) in _PLAIN
    if torch.onnx.is_in_onnx_export() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if torch.compiler.is_exporting() or forward_ad._current_level >= 0:
        return False
    return is_plain(x) or isinstance(x, FakeTensor)


def is_plain(x: Tensor) -> bool:
    """Return whether x is a tensor whose values lie in memory as its strides say."""
    if type(x) not in _PLAIN or x.layout is not torch.strided or x.is_neg():
        return False
    return not (_is_transformed(x) or torch._is_functional_tensor(x))


_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor
