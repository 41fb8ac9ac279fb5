"""The blocks of TinyViT (Wu et al. 2022), for batch norm with stored statistics.

The modules and their names are timm's; the arithmetic is arranged for speed. Each convolution and
the batch norm behind it are one convolution, folded from the present parameters in every forward
pass: that costs less than a hundredth of the pass, gradients reach all of them, and no folded copy
can go stale. Without a graph to record, a block goes over the image in strips of rows, so that what
lies between its layers stays in the processor's cache. A padded token of a window is a constant,
so nothing is computed for it but its part in the attention.

Tokens are (b, h, w, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention import join_windows, partition_windows

STRIP = 2**19
"""Numbers in the widest layer of a strip: 2 MiB in fp32."""

Rows = Callable[[int, int], Tensor]
"""Rows ``[top, bottom)`` of some tokens, made when they are needed."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of tokens, of kernel 1 or of kernel 3 with one pixel of padding."""

    weight: Tensor
    bias: Tensor
    stride: int
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve all of x (b, h, w, width)."""
        kernel = self.weight.shape[-1]
        if kernel == self.stride == 1:
            return functional.linear(x, self.weight.flatten(1), self.bias)
        channels_last = x.permute(0, 3, 1, 2)  # as it lies
        out = functional.conv2d(
            channels_last, self.weight, self.bias, self.stride, kernel // 2, groups=self.groups
        )
        return out.permute(0, 2, 3, 1)

    def rows(self, source: Rows, height: int, top: int, bottom: int) -> Tensor:
        """Convolve only for rows ``[top, bottom)`` of the output of a kernel of 3.

        Args:
            source: gives rows of the input.
            height: of the input.
            top: first row of the output.
            bottom: behind its last row.
        """
        above = min(top, 1)  # a row more, for the padding to fall on
        first = self.stride * (top - above)
        out = self(source(first, min(height, self.stride * (bottom - 1) + 2)))
        return out[:, above : above + bottom - top]


class ConvNorm(nn.Module):
    """Convolution without bias, and batch norm that never updates its statistics.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: 1 or 3; padded by ``kernel // 2``.
        stride: of the convolution.
        groups: of the convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def folded(self) -> Convolution:
        """Give the one convolution that both layers are; gradients flow to their parameters."""
        conv, norm = self.conv, self.bn
        scale = norm.weight * torch.rsqrt(norm.get_buffer("running_var") + norm.eps)
        bias = norm.bias - norm.get_buffer("running_mean") * scale
        weight = conv.weight * scale[:, None, None, None]
        return Convolution(weight, bias, conv.stride[0], conv.groups)


class Stem(nn.Module):
    """Two convolutions: 3x3 of stride 2, or 1x1 (LiteMedSAM).

    Args:
        width: channels of the output.
        stride: of both together, 4 or 1.
    """

    def __init__(self, width: int, stride: int) -> None:
        """Make the layers."""
        super().__init__()
        kernel, each = (3, 2) if stride == 4 else (1, 1)
        self.conv1 = ConvNorm(3, width // 2, kernel, each)
        self.conv2 = ConvNorm(width // 2, width, kernel, each)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, s, s) as tokens."""
        x = images.permute(0, 2, 3, 1)
        first, second = self.conv1.folded(), self.conv2.folded()
        height, each = x.shape[1], first.stride

        def strip(some: slice, top: int, bottom: int) -> Tensor:
            def pixels(top: int, bottom: int) -> Tensor:
                return x[some, top:bottom]

            if each == 1:
                return second(functional.gelu(first(pixels(top, bottom))))

            def between(top: int, bottom: int) -> Tensor:
                return functional.gelu(first.rows(pixels, height, top, bottom))

            return second.rows(between, -(-height // each), top, bottom)

        numbers = first.weight.shape[0] * x.shape[2] * each
        return _in_strips(strip, x, self, numbers, stride=each * each)


class Bottleneck(nn.Module):
    """Widen, filter each channel in space, narrow: 1x1, 3x3 and 1x1 convolutions.

    With ``residual`` it is TinyViT's MBConv, else its merge between two stages.

    Args:
        inputs: channels of the input.
        hidden: channels between the convolutions.
        outputs: channels of the output.
        stride: of the 3x3 convolution.
        residual: add the input, and an activation.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, stride: int = 1, *, residual: bool = False
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.conv1 = ConvNorm(inputs, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = ConvNorm(hidden, outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Give tokens (b, h / stride, w / stride, outputs), rounded up."""
        widen, filters, narrow = (c.folded() for c in (self.conv1, self.conv2, self.conv3))

        def strip(some: slice, top: int, bottom: int) -> Tensor:
            def wide(top: int, bottom: int) -> Tensor:
                return functional.gelu(widen(x[some, top:bottom]))

            out = narrow(functional.gelu(filters.rows(wide, x.shape[1], top, bottom)))
            return functional.gelu(out + x[some, top:bottom]) if self.residual else out

        numbers = widen.weight.shape[0] * x.shape[2] * filters.stride
        return _in_strips(strip, x, self, numbers, stride=filters.stride)


class WindowBiasAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias for each pair of distances.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        window: side of the window in tokens.
    """

    distance: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        """Make the layers."""
        super().__init__()
        self.num_heads = heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        place = torch.arange(window)
        apart = (place[:, None] - place[None, :]).abs()
        index = apart[:, None, :, None] * window + apart[None, :, None, :]
        self.register_buffer("distance", index.flatten(), persistent=False)

    def pair_biases(self) -> Tensor:
        """Spread the biases over all pairs of n = window * window tokens: (1, heads, n, n)."""
        tokens = self.window**2
        spread = self.attention_biases.index_select(1, self.distance)  # 4 times as fast as indexing
        return spread.view(1, self.num_heads, tokens, tokens)

    def forward(self, x: Tensor, biases: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            x: (b, h, w, width); its windows are padded below and to the right.
            biases: ``pair_biases()``, for many x; made here if None.
        """
        biases = self.pair_biases() if biases is None else biases
        h, w = size = (x.shape[1], x.shape[2])
        side = (self.window, self.window)
        # The norm comes behind the padding: a padded token is its bias.
        padding = self.qkv(self.norm.bias) if h % self.window or w % self.window else None
        windows = partition_windows(self.qkv(self.norm(x)), side, padding)
        # rows of qkv: (head, q | k | v, channel)
        split = windows.flatten(1, 2).unflatten(-1, (self.num_heads, 3, -1))
        q, k, v = split.permute(3, 0, 2, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v, biases.to(q.dtype))
        joined = join_windows(heads.transpose(1, 2).reshape(*windows.shape[:3], -1), size)
        out: Tensor = self.proj(joined.contiguous())
        return out


class NormMlp(nn.Module):
    """Layer norm and two linear layers with GELU between them.

    Args:
        width: channels of the tokens.
        hidden: channels between the layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them to the last axis."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return out


class WindowBlock(nn.Module):
    """Window attention, a 3x3 convolution of each channel, and the MLP.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        window: side of the window in tokens.
        mlp_ratio: hidden channels of the MLP for each channel of a token.
    """

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: float) -> None:
        """Make the layers."""
        super().__init__()
        self.attn = WindowBiasAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = NormMlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x."""
        local, biases = self.local_conv.folded(), self.attn.pair_biases()

        def attend(some: slice, top: int, bottom: int) -> Tensor:
            part = x[some, top:bottom]
            out: Tensor = part + self.attn(part, biases)
            return out

        _, height, columns, width = x.shape
        attended = _in_strips(attend, x, self, 3 * width * columns, unit=self.attn.window)

        def finish(some: slice, top: int, bottom: int) -> Tensor:
            def rows(top: int, bottom: int) -> Tensor:
                return attended[some, top:bottom]

            part = local.rows(rows, height, top, bottom)
            out: Tensor = part + self.mlp(part)
            return out

        return _in_strips(finish, x, self, self.mlp.fc1.out_features * columns)


def _in_strips(
    run: Callable[[slice, int, int], Tensor],
    x: Tensor,
    module: nn.Module,
    numbers: int,
    *,
    unit: int = 1,
    stride: int = 1,
) -> Tensor:
    """Join ``run(images, top, bottom)``, rows ``[top, bottom)`` of the output, over all strips.

    All at once where autograd records, which keeps everything anyway, and off the CPU (unmeasured
    there), where each launch costs.

    Args:
        run: gives tokens.
        x: the input tokens.
        module: whose parameters ``run`` uses.
        numbers: in the widest layer, for each row of the output.
        unit: rows of the output that belong together.
        stride: rows of the input for each row of the output.
    """
    images, height = x.shape[0], -(-x.shape[1] // stride)
    needs_graph = x.requires_grad or any(p.requires_grad for p in module.parameters())
    if x.device.type != "cpu" or (torch.is_grad_enabled() and needs_graph):
        return run(slice(0, images), 0, height)
    out: Tensor | None = None
    for some, top, bottom in _strips(images, height, unit * max(1, STRIP // (numbers * unit))):
        part = run(some, top, bottom)
        if out is None:
            out = part.new_empty((images, height, *part.shape[2:]))
        out[some, top:bottom] = part
    return x if out is None else out


def _strips(images: int, height: int, rows: int) -> Iterator[tuple[slice, int, int]]:
    """Yield (images, top, bottom) of about ``rows`` rows each: of one image, or several whole."""
    together = max(1, rows // height)
    for image in range(0, images, together):
        for top in range(0, height, rows):
            yield slice(image, image + together), top, min(top + rows, height)
