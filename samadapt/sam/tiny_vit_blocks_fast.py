"""The blocks of TinyViT as the model uses them: folded, and on the CPU some rows at a time.

Compared with the textbook form in ``tiny_vit_blocks``:

- Each convolution and the batch norm after it are one convolution. It is folded from the present
  parameters in every forward pass: that costs less than a hundredth of the pass, gradients reach
  all parameters, and no folded copy can be out of date.
- On the CPU a block computes some rows of the image at a time, so that the values between its
  layers stay in the cache.
- Padded tokens of a window all have the same query, key and value, which are computed once.

Tokens are (b, h, w, width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.compiled import attend_compiled_biased, is_supported
from samadapt.sam.attention.windows import join_windows, partition_windows
from samadapt.sam.tiny_vit_blocks import (
    Bottleneck,
    ConvNorm,
    NormMlp,
    Stem,
    WindowBiasAttention,
    WindowBlock,
)
from samadapt.sam.tracing import is_traced, takes_operators

# How many values of the widest layer a thread holds: 2 MiB in fp32. On an EPYC twice as many take
# 1.07 times as long in fp32, and half as many take longer in bf16 (less cache is used, rows and
# weights are copied more often). On a Xeon twice as many are as fast. 0.5 MiB, or everything at
# once, take up to 1.5 times as long.
PART_PER_THREAD = 2**19

# Parts are this many times larger where autograd records, because the cache helps little there:
# a step is 1.1 times as fast.
RECORDED_PARTS = 4

Rows = Callable[[int, int], Tensor]
"""Returns rows ``[top, bottom)`` of some tokens, computed when they are needed."""

Span = tuple[slice, slice]
"""The images and the rows of a part."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of tokens, with a kernel of 1, or a kernel of 3 padded by one.

    Attributes:
        weight: (outputs, inputs / groups, kernel, kernel).
        bias: (outputs,).
        stride: stride of the convolution.
        groups: groups of the convolution.
    """

    weight: Tensor
    bias: Tensor
    stride: int
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve all of x (b, h, w, inputs).

        A convolution of each channel computes in the type of the weights even under autocast: it is
        a hundredth of the work, and its output is the stream of tokens.
        """
        if self.weight.shape[-1] == self.stride == 1:
            return functional.linear(x, self.weight.flatten(1), self.bias)
        if self.groups == 1:
            return self._convolve(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._convolve(x.to(self.weight.dtype))

    def _convolve(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 3, 1, 2)  # a view; memory stays (b, h, w, c)
        padding = self.weight.shape[-1] // 2
        out = functional.conv2d(
            channels_last, self.weight, self.bias, self.stride, padding, groups=self.groups
        )
        return out.permute(0, 2, 3, 1)

    def rows(self, source: Rows, height: int, rows: slice) -> Tensor:
        """Return some rows of the output of a convolution with a kernel of 3.

        Args:
            source: returns rows of the input.
            height: rows of the input.
            rows: which rows of the output.
        """
        # The convolution pads what it is given. One more output row at the top takes that padding
        # and is dropped, except at the top of the image, where the padding is right.
        above = min(rows.start, 1)
        first = self.stride * (rows.start - above)
        out = self(source(first, min(height, self.stride * (rows.stop - 1) + 2)))
        return out[:, above : above + rows.stop - rows.start]


def fold(pair: ConvNorm) -> Convolution:
    """Return the one convolution that a convolution and its batch norm make together.

    Gradients flow to the parameters of both.
    """
    conv, norm = pair.conv, pair.bn
    scale = norm.weight * torch.rsqrt(norm.get_buffer("running_var") + norm.eps)
    bias = norm.bias - norm.get_buffer("running_mean") * scale
    weight = conv.weight * scale[:, None, None, None]
    return Convolution(weight, bias, conv.stride[0], conv.groups)


class FastStem(Stem):
    """``Stem``, folded and in strips of rows."""

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, s, s) as tokens (b, s / stride, s / stride, width)."""
        x = images.permute(0, 2, 3, 1)
        first, second = fold(self.conv1), fold(self.conv2)
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


class FastBottleneck(Bottleneck):
    """``Bottleneck``, folded and in strips of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x into (b, h / stride, w / stride, outputs), sides rounded up."""
        widen, filters, narrow = (fold(conv) for conv in (self.conv1, self.conv2, self.conv3))

        def strip(some: slice, rows: slice) -> Tensor:
            def wide(top: int, bottom: int) -> Tensor:
                return _gelu(widen(x[some, top:bottom]))

            out = narrow(_gelu(filters.rows(wide, x.shape[1], rows)))
            return _gelu(out + x[some, rows]) if self.residual else out

        numbers = widen.weight.shape[0] * x.shape[2] * filters.stride
        return _in_strips(strip, x, numbers, _records(x, self), stride=filters.stride)


class FastWindowBiasAttention(WindowBiasAttention):
    """``WindowBiasAttention`` by compiled code or PyTorch's fused kernel."""

    def forward(self, x: Tensor, biases: Tensor | None = None) -> Tensor:
        """Attend within each window of tokens x; see ``WindowBiasAttention.forward``."""
        biases = self.pair_biases() if biases is None else biases
        padding = None
        if x.shape[1] % self.window or x.shape[2] % self.window:
            # TinyViT pads before the norm. DoRA adds an axis to the result: flatten it.
            padding = self.qkv(self.norm(x.new_zeros(x.shape[-1]))).flatten()
        # Rows of qkv are ordered (head, q | k | v, channel).
        split = (self.num_heads, 3, -1)
        qkv: Tensor = torch.unflatten(self.qkv(self.norm(x)), -1, split)
        trained = biases.requires_grad and torch.is_grad_enabled()
        if not trained and takes_operators(biases) and is_supported(qkv):
            fill = None if padding is None else padding.unflatten(-1, split)
            heads = attend_compiled_biased(qkv, fill, biases[0])
        else:
            heads = self._attend(qkv, padding, biases)
        out: Tensor = self.proj(heads.flatten(-2))
        return out

    def _attend(self, qkv: Tensor, padding: Tensor | None, biases: Tensor) -> Tensor:
        """Attend with PyTorch: qkv (b, h, w, heads, 3, d) -> (b, h, w, heads, d)."""
        size, side = (qkv.shape[1], qkv.shape[2]), (self.window, self.window)
        windows = partition_windows(qkv.flatten(3), side, padding)
        split = windows.flatten(1, 2).unflatten(-1, qkv.shape[3:])
        q, k, v = split.permute(3, 0, 2, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v, biases.to(q.dtype))
        joined = join_windows(heads.transpose(1, 2).reshape(*windows.shape[:3], -1), size)
        out: Tensor = torch.unflatten(joined.contiguous(), -1, (self.num_heads, -1))
        return out


class FastNormMlp(NormMlp):
    """``NormMlp`` that overwrites its hidden values where autograd does not need them."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x (..., width)."""
        hidden: Tensor = self.fc1(self.norm(x))
        out: Tensor = self.fc2(_gelu(hidden))
        return out


class FastWindowBlock(WindowBlock):
    """``WindowBlock``, with attention and MLP on some rows at a time."""

    attention_class: ClassVar[type[WindowBiasAttention]] = FastWindowBiasAttention
    mlp_class: ClassVar[type[NormMlp]] = FastNormMlp

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x (b, h, w, width)."""
        biases = self.attn.pair_biases()

        def attend(part: Tensor) -> Tensor:
            out: Tensor = part + self.attn(part, biases)
            return out

        def transform(part: Tensor) -> Tensor:
            out: Tensor = part + self.mlp(part)
            return out

        graph = _records(x, self)
        x = _in_parts(attend, x, 3 * x.shape[-1], graph, unit=self.attn.window)
        x = fold(self.local_conv)(x)
        return _in_parts(transform, x, self.mlp.fc1.out_features, graph)


def _gelu(x: Tensor) -> Tensor:
    """Apply GELU, in place where autograd does not need x; nothing else may use x."""
    kept = x.requires_grad or is_traced(x)
    return functional.gelu(x) if kept else torch.ops.aten.gelu_(x)


def _records(x: Tensor, module: nn.Module) -> bool:
    """Return whether autograd records what ``module`` does with x."""
    needed = x.requires_grad or any(p.requires_grad for p in module.parameters())
    return needed and torch.is_grad_enabled()


def _in_strips(
    run: Callable[[slice, slice], Tensor], x: Tensor, numbers: int, graph: bool, *, stride: int
) -> Tensor:
    """Compute the output in strips of rows, ``run(images, rows)``, and join them.

    Where autograd records, all rows are computed at once: strips overlap in the input, and each
    would need a gradient of the size of the whole input.

    Args:
        run: returns some rows of the output of some images.
        x: the input tokens (b, h, w, c).
        numbers: values of the widest layer for each row of the output.
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
    """Compute ``run(x)``, of the shape of x, a part at a time, forward and backward.

    Args:
        run: transforms tokens whose rows are independent in groups of ``unit``.
        x: the input tokens (b, h, w, c).
        numbers: values of the widest layer for each token.
        graph: whether autograd records.
        unit: rows that depend on each other: 1, or the side of a window.
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
    """Divide images into parts: some rows of one image, or some whole images.

    Args:
        images: number of images.
        height: rows of each image.
        numbers: values of the widest layer for each row.
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
    """Write the parts (n, rows, w, width), in order, into one (images, height, w, width)."""
    first = next(parts).flatten(0, 1)
    out = first.new_empty((images * height, *first.shape[1:]))
    out[: len(first)] = first
    start = len(first)
    for part in parts:
        rows = part.flatten(0, 1)
        out[start : start + len(rows)] = rows
        start += len(rows)
    return out.view(images, height, *out.shape[1:])
