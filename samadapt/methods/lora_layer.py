"""The formula of LoRA, ``W x + scale * B A x``, with less memory than in peft's own layer.

``lora.py`` has the method: its options, and where these layers go.

The peft library computes ``B(A(x))``, scales it and adds it to the output of the base. This creates
three more tensors of the size of that output. Here the matrix product with B accumulates directly
into the output, and only what backward needs is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _FusedUpdate(torch.autograd.Function):
    """``y = W x + b + scale * B A x`` for tokens x (t, inputs), with W and b frozen.

    Backward needs x, which is kept once, and A x. A gradient of W is never computed.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, a, b, scale = inputs  # a (r, inputs), b (outputs, r)
        low = x @ a.t()
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return functional.linear(x, weight, bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        # For y = x W^T + s (x A^T) B^T and the gradient g of y:
        # dA = s (g B)^T x, dB = s g^T (x A^T), dx = g W + s (g B) A.
        grad_low = (grad @ b).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a)
        grad_b = (grad.t() @ low).mul_(ctx.scale)
        return grad_x, None, None, grad_low.t() @ x, grad_b, None


class FusedLoraLinear(lora.Linear):
    """peft's LoRA on a linear. The plain case runs fused, every other case runs as in peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map x (..., inputs) to (..., outputs)."""
        if args or kwargs or not self._is_plain():
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        (name,) = self.active_adapters
        base, a, b = self.get_base_layer(), self.lora_A[name], self.lora_B[name]
        # An autograd function is not autocast, so cast as autocast would. It leaves float64 alone.
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
        bias = None if base.bias is None else base.bias.to(dtype)
        # ``b.weight`` may be that of a ``SlicedProjection``: autograd carries its gradient to the
        # blocks.
        tokens: Tensor = _FusedUpdate.apply(
            x.to(dtype).reshape(-1, x.shape[-1]),
            base.weight.to(dtype),
            bias,
            a.weight.to(dtype),
            b.weight.to(dtype),
            self.scaling[name],
        )
        return tokens.view(*x.shape[:-1], tokens.shape[1])

    def _is_plain(self) -> bool:
        """Whether one adapter is active and unmerged, without dropout, on a frozen linear."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name]:
            return False
        dropout = self.lora_dropout[name]
        # The fused form has no gradient of W and b, so a linear that is itself trained runs as in
        # peft. So does one whose weight is held in 4 bits, which the fused form cannot read.
        base = self.get_base_layer()
        is_frozen = not any(p.requires_grad for p in base.parameters())
        return (
            is_frozen
            and base.get_parameter("weight").is_floating_point()
            and (isinstance(dropout, nn.Identity) or not dropout.training)
        )
