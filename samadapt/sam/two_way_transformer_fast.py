"""The two-way transformer, with cross-attention that does not project the whole image.

A decoder call has few tokens (5 of its own and some of the prompts) and a large image (4096 cells
of 256 channels). Two facts make its cross-attention cheap:

1. Projections are linear, so they can be moved to the side of the tokens:
   ``tokens @ (image @ W)^T = (tokens @ W^T) @ image^T``. With t tokens and d channels a head, the
   image is multiplied by t columns a head instead of d. This pays as long as t < d. It needs the
   weights themselves, so a layer that does more than apply them (LoRA, a hook) is called instead.
2. As long as nothing of an object has entered the image, one image serves all objects, and their
   tokens attend to it together, as if they were tokens of one object.
"""

from __future__ import annotations

from typing import ClassVar, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from samadapt.sam.tracing import is_traced
from samadapt.sam.two_way_transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer


class CrossAttention(Attention):
    """What the two directions of attention between tokens and image share."""

    def image_scores(self, tokens: Tensor, linear: nn.Module, image: Tensor) -> Tensor:
        """Return the products of projected tokens with ``linear(image)``: (b, p, heads, t, n).

        Args:
            tokens: (b, p, heads, t, d), projected and scaled queries or keys of the tokens.
            linear: ``k_proj`` or ``q_proj``, the layer that projects the image.
            image: (b, p, n, c), with its position.
        """
        if not (is_few(tokens) and only_applies_weights(linear)):
            return tokens @ self.split(linear(image)).transpose(-2, -1)
        weight, bias = self.by_head(linear.weight), self.by_head(linear.bias)
        # tokens @ W^T, (b, p, heads * t, c): the tokens as seen from the image's channels.
        mixed = torch.einsum("bphtd,hdc->bphtc", tokens, weight).flatten(2, 3)
        scores = torch.unflatten(mixed @ image.transpose(-2, -1), 2, tokens.shape[2:4])
        # The bias of the projection adds the same to all cells of the image.
        return scores.add_(torch.einsum("bphtd,hd->bpht", tokens, bias)[..., None])

    def by_head(self, parameter: Tensor) -> Tensor:
        """Split the weight or bias of a projection by head: (heads * d, ...) -> (heads, d, ...)."""
        return torch.unflatten(parameter, 0, (self.num_heads, -1))


class TokenToImageAttention(CrossAttention):
    """Attention of the tokens over the image."""

    def forward(
        self,
        q: Float[Tensor, "b p t c"],
        k: Float[Tensor, " b #p n c"],
        v: Float[Tensor, " b #p n c"],
    ) -> Float[Tensor, "b p t c"]:
        """Attend with tokens q (b, p, t, c) over the image (b, 1 or p, n, c).

        Args:
            q: the tokens with their position.
            k: the image with its position.
            v: the image without its position.

        Returns:
            (b, p, t, c).
        """
        queries = self.split(self.q_proj(share_image(q, v))) * self.scale
        weights = self.image_scores(queries, self.k_proj, k).softmax(dim=-1)
        if is_few(queries) and only_applies_weights(self.v_proj):
            # Average the image first, (b, p, heads, t, c), and project the averages.
            mixed = torch.unflatten(weights.flatten(2, 3) @ v, 2, weights.shape[2:4])
            attended = torch.einsum("bphtc,hdc->bphtd", mixed, self.by_head(self.v_proj.weight))
            attended = attended + self.by_head(self.v_proj.bias.to(attended.dtype))[:, None]
        else:
            attended = weights @ self.split(self.v_proj(v))
        return self.join(attended).reshape(q.shape)


class ImageToTokenAttention(CrossAttention):
    """Attention of the image over the tokens."""

    def forward(
        self,
        q: Float[Tensor, " b #p n c"],
        k: Float[Tensor, "b p t c"],
        v: Float[Tensor, "b p t c"],
    ) -> Float[Tensor, "b p n c"]:
        """Attend with the image q (b, 1 or p, n, c) over tokens k and v (b, p, t, c)."""
        keys = self.split(self.k_proj(share_image(k, q))) * self.scale
        values = self.split(self.v_proj(v))
        scores = self.image_scores(keys, self.q_proj, q)  # (b, 1 or p, heads, t, n)
        if scores.shape[1] != v.shape[1]:
            # The tokens of all objects were one row of keys: (b, 1, heads, p * t, n).
            scores = torch.unflatten(scores[:, 0], 2, v.shape[1:3]).transpose(1, 2)
        weights = scores.softmax(dim=-2)  # over the tokens
        if not (is_few(values) and only_applies_weights(self.out_proj)):
            return self.join(weights.transpose(-2, -1) @ values)
        # Project the values of the tokens, (b, p, heads, t, c), instead of the attended image.
        columns = torch.unflatten(self.out_proj.weight, 1, (self.num_heads, -1))
        mixed = torch.einsum("bphtd,chd->bphtc", values, columns)
        bias = self.out_proj.bias.to(mixed.dtype)
        # The weights of a head sum to one, so each head can carry its share of the bias.
        mixed = mixed + bias / self.num_heads
        return weights.flatten(2, 3).transpose(-2, -1) @ mixed.flatten(2, 3)


def share_image(tokens: Tensor, image: Tensor) -> Tensor:
    """Treat the tokens of all objects as those of one, if they share the image.

    (b, p, t, c) -> (b, 1, p * t, c) for an image (b, 1, n, c); else the tokens as they are.
    """
    return tokens.flatten(1, 2)[:, None] if image.shape[1] == 1 else tokens


def is_few(tokens: Tensor) -> bool:
    """Return whether there are fewer tokens than channels a head in tokens (..., t, d).

    An exported graph always projects the image, because its t may change. ``torch.compile`` makes
    another graph for another answer.
    """
    compiles = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return (compiles or not is_traced(tokens)) and tokens.shape[-2] < tokens.shape[-1]


def only_applies_weights(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a layer is a linear layer and nothing more: no LoRA, no hook."""
    hooks = (
        linear._forward_pre_hooks,
        linear._forward_hooks,
        linear._backward_pre_hooks,
        linear._backward_hooks,
    )
    return type(linear) is nn.Linear and not any(hooks)


class FastTwoWayAttentionBlock(TwoWayAttentionBlock):
    """A layer with the fast cross-attention."""

    token_to_image_class: ClassVar[type[Attention]] = TokenToImageAttention
    image_to_token_class: ClassVar[type[Attention]] = ImageToTokenAttention


class FastTwoWayTransformer(TwoWayTransformer):
    """The two-way transformer with the fast cross-attention."""

    block_class: ClassVar[type[TwoWayAttentionBlock]] = FastTwoWayAttentionBlock
