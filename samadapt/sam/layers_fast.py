"""The MLP of the image encoder, some rows at a time on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samadapt.sam.layers import MLPBlock
from samadapt.sam.tracing import is_traced

# How many hidden values are held at once on the CPU. In fp32 they take 12 MiB, which stay in the
# cache, and glibc hands out the same memory again for the next part. All 64 x 64 tokens of ViT-B
# at once take 48 MiB, for which glibc asks the system for new pages each time: that made the MLP
# 1.2 times slower on a Xeon.
CHUNK_HIDDEN_CPU = 3 * 2**20


class FastMLPBlock(MLPBlock):
    """``MLPBlock`` that computes some rows at a time on the CPU and reuses the hidden values."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x (..., width)."""
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
            # Autograd does not need the values before the activation: overwrite them.
            hidden = torch.ops.aten.gelu_(hidden)
        else:
            hidden = self.act(hidden)
        out: Tensor = self.lin2(hidden)
        return out
