"""The blocks of TinyViT (Wu et al. 2022), for batch norm with stored statistics.

The modules and their names are timm's; the arithmetic is arranged for speed. Each convolution and
the batch norm behind it are one convolution, folded from the present parameters in every forward
pass: that costs less than a hundredth of the pass, gradients reach all of them, and no folded copy
can go stale. On the CPU a block goes over the image a few rows at a time, so that what lies between
its layers stays in the processor's cache. Nothing is computed for a padded token of a window, which
is a constant, but its part in the attention.

Tokens are (b, h, w, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.compiled import attend_native_biased, suits
from samadapt.sam.attention.reference import join_windows, partition_windows
from samadapt.sam.layers import is_traced

# Numbers that a thread holds of the widest layer: 2 MiB in fp32. On an EPYC twice as many take 1.07
# times as long in fp32, half as many in bf16 (less cache; more copies of rows and weights). On a
# Xeon twice as many do as well. 0.5 MiB and all at once take up to 1.5 times as long.
PART_PER_THREAD = 2**19

# So many more where autograd records, and the cache helps little: 1.1 times as fast a step.
RECORDED_PARTS = 4

Rows = Callable[[int, int], Tensor]
"""Rows ``[top, bottom)`` of some tokens, made when they are needed."""

Span = tuple[slice, slice]
"""The images and the rows of a part."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of tokens, of kernel 1 or of kernel 3 with one pixel of padding."""

    weight: Tensor
    bias: Tensor
    stride: int
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve all of x (b, h, w, width).

        Where channels are apart it computes in the type of the weights, under autocast too: they
        are a hundredth of the work, and what they give is the stream of tokens that goes on.
        """
        if self.weight.shape[-1] == self.stride == 1:
            return functional.linear(x, self.weight.flatten(1), self.bias)
        if self.groups == 1:
            return self._convolve(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._convolve(x.to(self.weight.dtype))

    def _convolve(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 3, 1, 2)  # as it lies
        padding = self.weight.shape[-1] // 2
        out = functional.conv2d(
            channels_last, self.weight, self.bias, self.stride, padding, groups=self.groups
        )
        return out.permute(0, 2, 3, 1)

    def rows(self, source: Rows, height: int, rows: slice) -> Tensor:
        """Give some rows of the output, for a kernel of 3.

        Args:
            source: gives rows of the input.
            height: of the input.
            rows: of the output.
        """
        above = min(rows.start, 1)  # a row more, for the padding to fall on
        first = self.stride * (rows.start - above)
        out = self(source(first, min(height, self.stride * (rows.stop - 1) + 2)))
        return out[:, above : above + rows.stop - rows.start]


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
        height, stride = x.shape[1], first.stride

        def strip(some: slice, rows: slice) -> Tensor:
            if stride == 1:
                return second(_gelu(first(x[some, rows])))

            def between(top: int, bottom: int) -> Tensor:
                def pixels(top: int, bottom: int) -> Tensor:
                    return x[some, top:bottom]

                return _gelu(first.rows(pixels, height, slice(top, bottom)))

            return second.rows(between, -(-height // stride), rows)

        numbers = first.weight.shape[0] * x.shape[2] * stride
        return _in_strips(strip, x, numbers, _records(x, self), stride=stride * stride)


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

        def strip(some: slice, rows: slice) -> Tensor:
            def wide(top: int, bottom: int) -> Tensor:
                return _gelu(widen(x[some, top:bottom]))

            out = narrow(_gelu(filters.rows(wide, x.shape[1], rows)))
            return _gelu(out + x[some, rows]) if self.residual else out

        numbers = widen.weight.shape[0] * x.shape[2] * filters.stride
        return _in_strips(strip, x, numbers, _records(x, self), stride=filters.stride)


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
        padding = None
        if x.shape[1] % self.window or x.shape[2] % self.window:  # the norm is behind the padding
            padding = self.qkv(self.norm(x.new_zeros(x.shape[-1]))).flatten()  # DoRA adds an axis
        # rows of qkv: (head, q | k | v, channel)
        split = (self.num_heads, 3, -1)
        qkv: Tensor = torch.unflatten(self.qkv(self.norm(x)), -1, split)
        trained = biases.requires_grad and torch.is_grad_enabled()
        if not trained and not is_traced(biases) and suits(qkv):
            fill = None if padding is None else padding.unflatten(-1, split)
            heads = attend_native_biased(qkv, fill, biases[0])
        else:
            heads = self._attend(qkv, padding, biases)
        out: Tensor = self.proj(heads.flatten(-2))
        return out

    def _attend(self, qkv: Tensor, padding: Tensor | None, biases: Tensor) -> Tensor:
        """Attend by PyTorch: qkv (b, h, w, heads, 3, d) -> (b, h, w, heads, d)."""
        size, side = (qkv.shape[1], qkv.shape[2]), (self.window, self.window)
        windows = partition_windows(qkv.flatten(3), side, padding)
        split = windows.flatten(1, 2).unflatten(-1, qkv.shape[3:])
        q, k, v = split.permute(3, 0, 2, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v, biases.to(q.dtype))
        joined = join_windows(heads.transpose(1, 2).reshape(*windows.shape[:3], -1), size)
        out: Tensor = torch.unflatten(joined.contiguous(), -1, (self.num_heads, -1))
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
        hidden: Tensor = self.fc1(self.norm(x))
        out: Tensor = self.fc2(_gelu(hidden))
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
        biases = self.attn.pair_biases()

        def attend(part: Tensor) -> Tensor:
            out: Tensor = part + self.attn(part, biases)
            return out

        def transform(part: Tensor) -> Tensor:
            out: Tensor = part + self.mlp(part)
            return out

        graph = _records(x, self)
        x = _in_parts(attend, x, 3 * x.shape[-1], graph, unit=self.attn.window)
        x = self.local_conv.folded()(x)
        return _in_parts(transform, x, self.mlp.fc1.out_features, graph)


def _gelu(x: Tensor) -> Tensor:
    """GELU, written over x where autograd does not need it; nothing else may use x."""
    kept = x.requires_grad or is_traced(x)
    return functional.gelu(x) if kept else torch.ops.aten.gelu_(x)


def _records(x: Tensor, module: nn.Module) -> bool:
    """Whether autograd records what ``module`` does with x."""
    needed = x.requires_grad or any(p.requires_grad for p in module.parameters())
    return needed and torch.is_grad_enabled()


def _in_strips(
    run: Callable[[slice, slice], Tensor], x: Tensor, numbers: int, graph: bool, *, stride: int
) -> Tensor:
    """Join ``run(images, rows)``, tokens of the output, over all its rows.

    At once where autograd records: strips overlap in the input, and each would need a gradient of
    all of it.

    Args:
        run: gives tokens.
        x: the input tokens.
        numbers: in the widest layer, for each row of the output.
        graph: whether autograd records.
        stride: rows of the input for each row of the output.
    """
    images, height = x.shape[0], -(-x.shape[1] // stride)
    if graph or x.device.type != "cpu" or is_traced(x):
        return run(slice(0, images), slice(0, height))
    spans = _spans(images, height, numbers)
    if len(spans) <= 1:
        return run(slice(0, images), slice(0, height))
    return _collect((run(*span) for span in spans), images, height)


def _in_parts(
    run: Callable[[Tensor], Tensor], x: Tensor, numbers: int, graph: bool, *, unit: int = 1
) -> Tensor:
    """Give ``run(x)``, tokens of the same shape, a part at a time; backward goes so, too.

    Args:
        run: gives tokens.
        x: the input tokens.
        numbers: in the widest layer, for each token.
        graph: whether autograd records.
        unit: rows that depend on each other.
    """
    images, height, columns, _ = x.shape
    if x.device.type != "cpu" or is_traced(x):
        return run(x)
    spans = _spans(images, height, numbers * columns // (RECORDED_PARTS if graph else 1), unit)
    if len(spans) <= 1:
        return run(x)
    counts = [some.stop - some.start for some, _ in spans]
    lengths = [n * (rows.stop - rows.start) for n, (_, rows) in zip(counts, spans, strict=True)]
    parts = x.flatten(0, 1).split(lengths)
    outputs = (run(p.unflatten(0, (n, -1))) for n, p in zip(counts, parts, strict=True))
    if not graph:
        return _collect(outputs, images, height)
    return torch.cat([out.flatten(0, 1) for out in outputs]).view_as(x)


def _spans(images: int, height: int, numbers: int, unit: int = 1) -> list[Span]:
    """Divide the rows of some images into parts: some rows of one, or some images whole.

    Args:
        images: how many.
        height: rows of each.
        numbers: that a row takes in the widest layer.
        unit: rows that belong together.
    """
    rows = unit * max(1, PART_PER_THREAD * torch.get_num_threads() // (numbers * unit))
    together = max(1, rows // height)
    return [
        (slice(image, min(image + together, images)), slice(top, min(top + rows, height)))
        for image in range(0, images, together)
        for top in range(0, height, rows)
    ]


def _collect(parts: Iterator[Tensor], images: int, height: int) -> Tensor:
    """Write parts (n, rows, w, width), in order, into one tensor (images, height, w, width)."""
    first = next(parts).flatten(0, 1)
    out = first.new_empty((images * height, *first.shape[1:]))
    out[: len(first)] = first
    start = len(first)
    for part in parts:
        rows = part.flatten(0, 1)
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out.view(images, height, *out.shape[1:])
