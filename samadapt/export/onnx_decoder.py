"""Prompt encoder, mask decoder and resizing as one graph with segment-anything's inputs.

These are the layers of ``Sam.decode`` in plain form. ``Sam.decode`` takes shortcuts that depend on
the number of prompts and points; a traced graph must run every layer for any number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.sam.model import Sam
from samadapt.sam.types import MaskOutput, Prompts


class ImageEmbedder(nn.Module):
    """Embeds one preprocessed image, as ``Sam.encode`` does.

    Args:
        sam: the model, whose layers are used without a copy.
    """

    def __init__(self, sam: Sam) -> None:
        """Keep references to the layers."""
        super().__init__()
        self.encoder, self.decoder = sam.image_encoder, sam.mask_decoder

    def forward(self, input_image: Tensor) -> Tensor:
        """Embed an image (1, 3, s, s) as (1, e, g, g)."""
        return self.decoder.embed_maps(self.encoder(input_image))


class PromptAndMaskDecoder(nn.Module):
    """Predicts the masks of p prompts for one image.

    Args:
        sam: the model, whose layers are used without a copy.
    """

    def __init__(self, sam: Sam) -> None:
        """Keep references to the layers."""
        super().__init__()
        self.prompts, self.decoder = sam.prompt_encoder, sam.mask_decoder
        self.classes = sam.class_tokens
        self.size, self.side = sam.image_size, sam.embedding_size
        self.channels, self.is_first = sam.embedding_channels, sam.build.version == "1"
        self.squash = sam.preprocessing.resize == "squash"

    def example(self) -> tuple[Tensor, ...]:
        """Return example inputs for tracing: two prompts of three points."""
        low = 4 * self.side
        return (
            torch.randn(1, self.channels, self.side, self.side),
            torch.rand(2, 3, 2) * self.size,
            torch.tensor([[2.0, 3.0, 1.0], [1.0, 0.0, -1.0]]),
            torch.randn(1, 1, low, low),
            torch.ones(1),
            torch.tensor([self.size * 0.75, self.size * 0.5]),
        )

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, ...]:
        """Predict the masks.

        Args:
            image_embeddings: (1, e, g, g).
            point_coords: (p, n, 2), (x, y) in the model frame.
            point_labels: (p, n); 1 foreground, 0 background, -1 padding, 2 and 3 a box's corners.
            mask_input: (1, 1, 4g, 4g) logits, for all prompts.
            has_mask_input: (1), 1 to use ``mask_input``, else 0.
            orig_im_size: (2), height and width of the image in pixels.

        Returns:
            Logits (p, m, height, width), IoU estimates (p, m) and logits (p, m, 4g, 4g) of all m
            mask tokens. The first one is the single mask, in SAM 2 after the choice of a stable
            one. With class tokens the logits (1, K, 4g, 4g) of the classes follow, which no prompt
            changes.
        """
        low, iou = self.predict(
            image_embeddings, point_coords, point_labels, mask_input, has_mask_input
        )
        found = self._resize(low, orig_im_size), iou, low
        return found if self.classes is None else (*found, self.class_logits(image_embeddings))

    def predict(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (p, m, 4g, 4g) and IoU estimates (p, m); arguments as ``forward``."""
        sparse = self._embed_points(point_coords, point_labels)
        given = self.prompts.mask_downscaling(mask_input)
        none = self.prompts.no_mask_embed.weight.view(1, -1, 1, 1)
        # A traced graph has no branches: both are computed, and one of them is multiplied by 0.
        dense = has_mask_input * given + (1 - has_mask_input) * none
        image, details = self.decoder.split_embeddings(image_embeddings)
        low, iou = self._decode(image + dense, sparse, details)
        if self.decoder.chooses_stable_mask:
            return _with_stable_mask(self.decoder, low, iou)
        return low, iou

    def class_logits(self, image_embeddings: Tensor) -> Tensor:
        """Return logits (1, K or more, 4g, 4g) of the classes for an embedding (1, e, g, g).

        Without class tokens they are those of the multimask tokens.
        """
        none = self.prompts.no_mask_embed.weight.view(1, -1, 1, 1)
        embedding, details = self.decoder.split_embeddings(image_embeddings)
        image = embedding + none
        if self.classes is None:
            padding = self.prompts.padding_points(Prompts())
            sparse = self.prompts.not_a_point_embed.weight.expand(1, padding, -1)
            return self._decode(image, sparse, details)[0][:, 1:]
        tokens, cells = self._attend_both(image, self.classes.expanded(1)[0])
        kernels = self.classes.kernels(tokens[:, None])[:, 0].transpose(1, 2)
        return self._draw(kernels, cells, details)

    def _embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        # Half a pixel moves a point to the centre of its pixel, as in segment-anything.
        embedded: Tensor = self.prompts.pe_layer((coords + 0.5) / self.size)
        label = labels[..., None]
        embedded = embedded * (label != -1) + self.prompts.not_a_point_embed.weight * (label == -1)
        for number, embedding in enumerate(self.prompts.point_embeddings):
            embedded = embedded + embedding.get_parameter("weight") * (label == number)
        return embedded

    def _decode(
        self, image: Tensor, sparse: Tensor, details: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (p, m, 4g, 4g) and IoU estimates (p, m) for an image (1, c, g, g)."""
        tokens, cells = self._attend_both(image, sparse)
        # (p, m, c / 8): each mask token becomes the weights of a 1x1 convolution.
        first, networks = self.decoder.tokens_before_iou + 1, self.decoder.output_hypernetworks_mlps
        kernels = torch.stack([net(tokens[:, first + i]) for i, net in enumerate(networks)], 1)
        return self._draw(kernels, cells, details), self.decoder.estimate_iou(tokens)

    def _attend_both(self, image: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (p, t, c) and cells (p, g * g, c) after the transformer."""
        decoder = self.decoder
        # Tokens (p, t, c) are the decoder's own and the prompt. In SAM's decoder they are also the
        # positions that the layers add.
        own = torch.cat(list(decoder.own_tokens()))
        position = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        place = self.prompts.dense_position().flatten(1).t()  # (g * g, c)
        cells = image.flatten(2).transpose(
            1, 2
        )  # (1, g * g, c); (p, g * g, c) after the first layer
        tokens = position
        for layer in decoder.transformer.layers:
            tokens, cells = self._two_ways(layer, tokens, cells, position, place)
        final = decoder.transformer.final_attn_token_to_image
        tokens = tokens + self.attend_cells(final, tokens + position, cells + place, cells)
        return decoder.transformer.norm_final_attn(tokens), cells

    def _two_ways(
        self, layer: Any, tokens: Tensor, cells: Tensor, position: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run a layer of the two-way transformer on tokens (p, t, c) and cells (1 or p, n, c)."""
        # The self-attention of the first layer has neither positions nor a residual sum.
        placed = tokens if layer.first else tokens + position
        attended = attend(layer.self_attn, placed, placed, tokens)
        tokens = layer.norm1(attended if layer.first else tokens + attended)
        to_image = layer.cross_attn_token_to_image
        read = self.attend_cells(to_image, tokens + position, cells + place, cells)
        tokens = layer.norm2(tokens + read)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        to_token = layer.cross_attn_image_to_token
        read = self.attend_tokens(to_token, cells + place, tokens + position, tokens)
        return tokens, layer.norm4(cells + read)

    def attend_cells(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with tokens q (p, t, c) over cells k and v (p or 1, n, c)."""
        return attend(layer, q, k, v)

    def attend_tokens(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with cells q (p or 1, n, c) over tokens k and v (p, t, c)."""
        return attend(layer, q, k, v)

    def _draw(self, kernels: Tensor, cells: Tensor, details: Tensor | None) -> Tensor:
        """Return logits (p, m, 4g, 4g) of kernels (p, m, c / 8) and cells (p, g * g, c)."""
        if details is not None:
            quarters = self.decoder.upscale_with(cells, details[0])  # (p, g * g, 4, 4, c / 8)
            drawn = quarters.flatten(1, 3) @ kernels.transpose(1, 2)  # (p, 16 * g * g, m)
            # Cells (y, x), their quarters (2, 2), and the quarters of those (2, 2)
            parts = torch.unflatten(drawn, 1, (self.side, self.side, 2, 2, 2, 2))
            return parts.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)
        upscaled = self._upscale(torch.unflatten(cells.transpose(1, 2), 2, (self.side, -1)))
        return torch.unflatten(kernels @ upscaled.flatten(2), 2, (4 * self.side, -1))

    def _upscale(self, x: Tensor) -> Tensor:
        """Upscale (p, c, g, g) to (p, c / 8, 4g, 4g)."""
        first, norm, _, second, _ = list[Any](self.decoder.output_upscaling)
        x = functional.conv_transpose2d(x, first.weight, first.bias, stride=2)
        # The decoder's norm takes the channels last.
        last = x.permute(0, 2, 3, 1)
        x = functional.gelu(norm(last).permute(0, 3, 1, 2))
        return functional.gelu(functional.conv_transpose2d(x, second.weight, second.bias, stride=2))

    def _resize(self, low: Tensor, size: Tensor) -> Tensor:
        """Resize logits to the original frame, as ``Sam.postprocess`` does."""
        if not self.is_first:
            height, width = size.to(torch.int64)
            return functional.interpolate(low, (height, width), mode="bilinear")
        square = functional.interpolate(low, (self.size, self.size), mode="bilinear")
        if not self.squash:
            # int(x + 0.5) of segment-anything; ``round`` would take halves to the even number.
            inner = torch.floor(size * (self.size / size.max()) + 0.5).to(torch.int64)
            square = square[..., : inner[0], : inner[1]]
        height, width = size.to(torch.int64)
        return functional.interpolate(square, (height, width), mode="bilinear")


def _with_stable_mask(decoder: Any, low: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Put the choice of SAM 2's single mask in the place of the first mask."""
    chosen = decoder.stable_mask(MaskOutput(logits=low[None], iou=iou[None]))
    low = torch.cat([chosen.logits[0], low[:, 1:]], dim=1)
    return low, torch.cat([chosen.iou[0], iou[:, 1:]], dim=1)


def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with q (p or 1, n, c) over k and v (p or 1, m, c)."""
    heads = [
        torch.unflatten(project(x), -1, (layer.num_heads, -1)).transpose(1, 2)
        for project, x in ((layer.q_proj, q), (layer.k_proj, k), (layer.v_proj, v))
    ]
    scores = (heads[0] * heads[0].shape[-1] ** -0.5) @ heads[1].transpose(2, 3)
    out: Tensor = layer.out_proj((scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2))
    for hook in layer._forward_hooks.values():  # modules that a method attached to the attention
        out = hook(layer, (q, k, v), out)
    return out
