"""The decoder for browsers: the layers of ``PromptAndMaskDecoder``, with less to compute.

An object has about eight tokens and a picture thousands of cells, so a click mostly costs the
projection of the cells in every attention. It is linear and can be moved to the few tokens::

    scores = q (k Wk)^T = (q Wk^T) k^T          attn (v Wv) = (attn v) Wv

The bias of the keys adds the same to all scores of a row, which softmax takes out again. This
multiplies cells by heads x tokens rows in place of the width of the attention, which is less for
up to 15 tokens. The masks at the size of the picture are left to the page, for a picture has more
pixels than the logits have cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from samadapt.export.onnx_decoder import PromptAndMaskDecoder, attend


class WebDecoder(PromptAndMaskDecoder):
    """Predicts the logits of the masks of one object."""

    def example(self) -> tuple[Tensor, ...]:
        """Return example inputs for tracing: one object with three points."""
        low = 4 * self.side
        return (
            torch.randn(1, self.prompts.width, self.side, self.side),
            torch.rand(1, 3, 2) * self.size,
            torch.tensor([[2.0, 3.0, 1.0]]),
            torch.randn(1, 1, low, low),
            torch.ones(1),
        )

    def forward(  # type: ignore[override]
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, ...]:
        """Predict the masks; arguments as ``PromptAndMaskDecoder.forward``.

        Returns:
            IoU estimates (1, m) and logits (1, m, 4g, 4g) of all m mask tokens, and with class
            tokens the logits (1, K, 4g, 4g) of the classes.
        """
        low, iou = self.predict(
            image_embeddings, point_coords, point_labels, mask_input, has_mask_input
        )
        if self.classes is None:
            return iou, low
        return iou, low, self.class_logits(image_embeddings)

    def attend_cells(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with tokens q (p, t, c) over cells k and v (p or 1, n, c)."""
        if not _is_plain(layer):
            return attend(layer, q, k, v)
        heads, width = layer.num_heads, layer.q_proj.out_features // layer.num_heads
        # (p, H, t, d) of the tokens; (H, d, c) of the weights.
        rows = torch.unflatten(layer.q_proj(q), -1, (heads, width)).transpose(1, 2)
        keys = layer.k_proj.weight.unflatten(0, (heads, width))
        values = layer.v_proj.weight.unflatten(0, (heads, width))
        scores = ((rows * width**-0.5) @ keys).flatten(1, 2) @ k.transpose(1, 2)
        seen = torch.unflatten(scores.softmax(-1) @ v, 1, (heads, -1))  # (p, H, t, c)
        out = (seen @ values.transpose(1, 2)).transpose(1, 2).flatten(2)
        result: Tensor = layer.out_proj(out + layer.v_proj.bias)
        return result

    def attend_tokens(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with cells q (p or 1, n, c) over tokens k and v (p, t, c)."""
        if not _is_plain(layer):
            return attend(layer, q, k, v)
        heads, width = layer.num_heads, layer.q_proj.out_features // layer.num_heads
        count = k.shape[1]
        split = (heads, width)
        keys = torch.unflatten(layer.k_proj(k), -1, split).transpose(1, 2) * width**-0.5
        values = torch.unflatten(layer.v_proj(v), -1, split).transpose(1, 2)  # (p, H, t, d)
        project = layer.q_proj.weight.unflatten(0, split)  # (H, d, c)
        join = layer.out_proj.weight.t().unflatten(0, split)  # (H, d, c)
        bias = (keys @ layer.q_proj.bias.unflatten(0, split)[:, :, None])[..., 0]  # (p, H, t)
        scores = q @ (keys @ project).flatten(1, 2).transpose(1, 2) + bias.flatten(1)[:, None]
        shares = torch.unflatten(scores, -1, (heads, count)).softmax(-1).flatten(2)
        result: Tensor = shares @ (values @ join).flatten(1, 2) + layer.out_proj.bias
        return result


def _is_plain(layer: Any) -> bool:
    """Return whether an attention has plain linear layers, and nothing that a method attached."""
    parts = (layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj)
    return not layer._forward_hooks and all(type(part) is nn.Linear for part in parts)
