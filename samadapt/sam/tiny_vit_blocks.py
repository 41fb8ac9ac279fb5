"""The blocks of TinyViT (Wu et al. 2022), in their textbook form.

The modules and their names are timm's. The model uses ``tiny_vit_blocks_fast``, whose classes have
the same tensors and are compared with these by the tests. Tokens are (b, h, w, width).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.attention.windows import join_windows, partition_windows


class ConvNorm(nn.Module):
    """A convolution without bias, then a batch norm that always uses its stored statistics.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: 1 or 3; padded by ``kernel // 2``.
        stride: stride of the convolution.
        groups: groups of the convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve tokens: (b, h, w, inputs) -> (b, h / stride, w / stride, outputs)."""
        norm = self.bn
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        planes: Tensor = self.conv(x.permute(0, 3, 1, 2))  # (b, outputs, h / stride, w / stride)
        planes = functional.batch_norm(planes, mean, var, norm.weight, norm.bias, eps=norm.eps)
        return planes.permute(0, 2, 3, 1)


class Stem(nn.Module):
    """The patch embedding: two convolutions, 3x3 of stride 2, or 1x1 (LiteMedSAM).

    Args:
        width: channels of the output.
        stride: stride of both convolutions together, 4 or 1.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        kernel, each = (3, 2) if stride == 4 else (1, 1)
        self.conv1 = ConvNorm(3, width // 2, kernel, each)
        self.conv2 = ConvNorm(width // 2, width, kernel, each)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (b, 3, s, s) as tokens (b, s / stride, s / stride, width)."""
        x: Tensor = self.conv1(images.permute(0, 2, 3, 1))
        out: Tensor = self.conv2(functional.gelu(x))
        return out


class Bottleneck(nn.Module):
    """Widen, filter each channel in space, narrow: convolutions of 1x1, 3x3 and 1x1.

    With ``residual`` this is TinyViT's MBConv, otherwise the merge between two stages.

    Args:
        inputs: channels of the input.
        hidden: channels between the convolutions.
        outputs: channels of the output.
        stride: stride of the 3x3 convolution.
        residual: add the input to the output and apply GELU to the sum.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, stride: int = 1, *, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = ConvNorm(hidden, outputs)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x into (b, h / stride, w / stride, outputs), sides rounded up."""
        hidden = functional.gelu(self.conv1(x))
        out: Tensor = self.conv3(functional.gelu(self.conv2(hidden)))
        return functional.gelu(out + x) if self.residual else out


class WindowBiasAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each distance.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        window: side of a window, in tokens.
    """

    distance: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # One bias for each head and each (|vertical|, |horizontal|) distance of two tokens.
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        place = torch.arange(window)
        apart = (place[:, None] - place[None, :]).abs()
        index = apart[:, None, :, None] * window + apart[None, :, None, :]
        self.register_buffer("distance", index.flatten(), persistent=False)

    def pair_biases(self) -> Tensor:
        """Return the bias of every pair of the n = window * window tokens: (1, heads, n, n)."""
        tokens = self.window**2
        # index_select is 4 times as fast as indexing.
        spread = self.attention_biases.index_select(1, self.distance)
        return spread.view(1, self.num_heads, tokens, tokens)

    def forward(self, x: Tensor, biases: Tensor | None = None) -> Tensor:
        """Attend within each window of tokens x; windows are padded below and to the right.

        Args:
            x: (b, h, w, width).
            biases: what ``pair_biases`` returned, to share it among several calls.
        """
        biases = self.pair_biases() if biases is None else biases
        # TinyViT pads before the norm, so a padded token is not zero at ``qkv``.
        windows = partition_windows(x, (self.window, self.window), None)
        tokens = self.qkv(self.norm(windows)).flatten(1, 2)  # (windows, n, 3 * width)
        # Rows of qkv are ordered (head, q | k | v, channel).
        split = torch.unflatten(tokens, -1, (self.num_heads, 3, -1))
        q, k, v = split.permute(3, 0, 2, 1, 4)  # each (windows, heads, n, d)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + biases
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(windows.shape)
        out: Tensor = self.proj(join_windows(attended, (x.shape[1], x.shape[2])))
        return out


class NormMlp(nn.Module):
    """A layer norm, then two linear layers with GELU between them.

    Args:
        width: channels of the tokens.
        hidden: channels between the two layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of x (..., width)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(self.norm(x))))
        return out


class WindowBlock(nn.Module):
    """Window attention, a 3x3 convolution of each channel, and an MLP.

    Args:
        width: channels of the tokens.
        heads: attention heads; must divide ``width``.
        window: side of a window, in tokens.
        mlp_ratio: hidden channels of the MLP for each channel of a token.
    """

    attention_class: ClassVar[type[WindowBiasAttention]] = WindowBiasAttention
    mlp_class: ClassVar[type[NormMlp]] = NormMlp

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = self.attention_class(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = self.mlp_class(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x (b, h, w, width)."""
        x = x + self.attn(x)
        x = self.local_conv(x)
        out: Tensor = x + self.mlp(x)
        return out
