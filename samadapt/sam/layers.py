"""Two small layers that the encoders, the prompt encoder and the decoder share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

# Hidden values of an MLP held at once on the CPU. 12 MiB in fp32 stay in the cache, and glibc hands
# out the same block again; all at once (48 MiB for 64 x 64 tokens of ViT-B) it asks the system for
# new pages each time, which made the MLP 1.2 times slower on a Xeon.
CHUNK_HIDDEN_CPU = 3 * 2**20


def is_traced(x: Tensor) -> bool:
    """Whether layers must take their plain forms: no loop over parts, nothing that reads memory.

    So it is while a graph is made (ONNX, ``torch.compile``, ``torch.export``, ``make_fx``), while
    something else than autograd watches the operators, and where x is not a plain tensor with
    numbers of its own (fake, functional, transformed by ``torch.func``, a dual number, a subclass).
    """
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return True
    if torch.jit.is_tracing() or not is_plain(x):  # type: ignore[attr-defined, no-untyped-call]
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor whose numbers lie in memory, as its strides say."""
    if type(x) not in (Tensor, nn.Parameter) or x.layout is not torch.strided or x.is_neg():
        return False
    return not (_is_transformed(x) or torch._is_functional_tensor(x))


_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (b, c, h, w)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        """Make the layers."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, c, h, w) over c."""
        last = x.permute(0, 2, 3, 1)
        normed = functional.layer_norm(last, last.shape[-1:], self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them: (..., width) -> (..., width)."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        """Make the layers."""
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to the last axis; on the CPU to some rows at a time."""
        if x.device.type != "cpu" or is_traced(x):
            return self._transform(x)
        rows = x.reshape(-1, x.shape[-1])
        parts = rows.split(max(1, CHUNK_HIDDEN_CPU // self.lin1.out_features))
        if len(parts) == 1:
            return self._transform(x)
        return torch.cat([self._transform(part) for part in parts]).view_as(x)

    def _transform(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.lin1(x)
        if isinstance(self.act, nn.GELU) and not (hidden.requires_grad or is_traced(hidden)):
            hidden = torch.ops.aten.gelu_(hidden)
        else:
            hidden = self.act(hidden)
        out: Tensor = self.lin2(hidden)
        return out


class MLP(nn.Module):
    """``depth`` linear layers with ReLU between them: (..., width) -> (..., out)."""

    def __init__(self, width: int, hidden: int, out: int, depth: int = 3) -> None:
        """Make the layers."""
        super().__init__()
        sizes = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers to the last axis."""
        *hidden, last = self.layers
        for layer in hidden:
            x = functional.relu(layer(x))
        out: Tensor = last(x)
        return out


def make_neck(width: int, out: int) -> nn.Sequential:
    """Build SAM's neck: (b, width, g, g) -> (b, out, g, g)."""
    return nn.Sequential(
        nn.Conv2d(width, out, kernel_size=1, bias=False),
        LayerNorm2d(out),
        nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out),
    )
