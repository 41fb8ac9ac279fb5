"""The module of Conv-LoRA and its hook, the formula of ``conv_lora.py``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.windows import join_windows, partition_windows


class ConvUpdate(nn.Module):
    """``scale * B (z + share_e * expert_e(z))`` with ``z = A x``; zero at the start.

    Args:
        inputs: channels of the tokens.
        width: a third of the channels of the output.
        rank: rank of A and B.
        experts: number of experts; expert e = 0, 1, ... works at e + 1 times the grid's size.
        scale: factor of the update.
        window: side of the windows that are convolved separately, each by its own expert; None:
            the whole grid of an image is convolved at once.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        rank: int,
        experts: int,
        scale: float,
        window: int | None,
    ) -> None:
        super().__init__()
        self.a = nn.Linear(inputs, rank, bias=False)
        self.b = nn.Linear(rank, 3 * width, bias=False)
        nn.init.zeros_(self.b.weight)
        self.gate = nn.Linear(rank, experts, bias=False)
        # All kernels are one tensor, so that an expert that no image chose has a gradient of zeros
        # and not none.
        # The bound is torch's own for a convolution with 3 x 3 x rank inputs.
        bound = (9 * rank) ** -0.5
        self.kernels = nn.Parameter(torch.empty(experts, rank, rank, 3, 3).uniform_(-bound, bound))
        self._scale, self._window = scale, window

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens x (b, h, w, inputs) to (b, h, w, 3 width)."""
        z: Tensor = self.a(x)
        if self._window:
            z = partition_windows(z, (self._window, self._window), None)
        # (n, rank, h, w) for n images, or n windows
        planes = z.permute(0, 3, 1, 2)
        # (n,) share and index of the expert. The gate gets its gradient through the share.
        share, chosen = self.gate(planes.mean((2, 3))).softmax(dim=-1).max(dim=-1)
        found = self._run_chosen(planes, chosen)
        mixed = z + share[:, None, None, None].to(z.dtype) * found.permute(0, 2, 3, 1)
        if self._window:
            mixed = join_windows(mixed, (x.shape[1], x.shape[2]))
        out: Tensor = self.b(self._scale * mixed)
        return out

    def _run_chosen(self, planes: Tensor, chosen: Tensor) -> Tensor:
        """Run each image of planes (n, rank, h, w) through its chosen (n,) expert."""
        found = torch.zeros_like(planes)
        if (
            torch.onnx.is_in_onnx_export()
        ):  # a traced graph cannot branch, so it computes all experts
            for index in range(len(self.kernels)):
                mine = (chosen == index)[:, None, None, None].to(planes.dtype)
                found = found + mine * self._expert(planes, index)
            return found
        # The images of one expert run together, and experts that no image chose do not run.
        for index in chosen.unique().tolist():
            rows = (chosen == index).nonzero().flatten()
            found = found.index_copy(0, rows, self._expert(planes[rows], index))
        return found

    def _expert(self, z: Tensor, index: int) -> Tensor:
        """Run one expert on z (n, rank, h, w)."""
        height, width = (int(side) for side in z.shape[2:])  # constants when the graph is traced
        enlarged = _resize(z, (height * (index + 1), width * (index + 1)))
        convolved = functional.conv2d(enlarged, self.kernels[index], padding=1)
        return _resize(functional.gelu(convolved), (height, width))


def _resize(z: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(z.shape[2:]) == size:
        return z
    return functional.interpolate(z, size, mode="bilinear", align_corners=False)


def add_update(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the update to the output of ``qkv``; a forward hook."""
    # TinyViT computes qkv of one padding token by itself (no grid), which must stay as it is.
    if inputs[0].ndim == 1:
        return output
    change: Tensor = module.conv_lora(inputs[0])
    return output + change
