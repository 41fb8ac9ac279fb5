"""SAM's mask decoder: from embeddings and prompts to masks (Kirillov et al. 2023, appendix A).

This is the textbook form; the model uses ``mask_decoder_fast``, which the tests compare with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from samadapt.sam.layers import MLP, LayerNorm2d
from samadapt.sam.two_way_transformer import TwoWayTransformer
from samadapt.sam.types import MaskOutput

RowsT = TypeVar("RowsT", nn.Linear, nn.Embedding)


class MaskDecoder(nn.Module):
    """Decodes p objects in each of b images. Its tensors have the official state-dict names.

    Args:
        width: channels c of embeddings and prompts.
        depth: layers of the two-way transformer.
        heads: attention heads of the two-way transformer.
        mlp: hidden width of the MLPs of the two-way transformer.
        iou_width: hidden width of the IoU head.
        num_multimask: masks of a multimask output. Mask token 0 gives the single mask; tokens 1 to
            ``num_multimask`` give the others.
    """

    tokens_before_iou: ClassVar[int] = 0
    """Own tokens of the decoder before the IoU token, which the mask tokens follow."""

    def __init__(
        self, width: int, *, depth: int, heads: int, mlp: int, iou_width: int, num_multimask: int
    ) -> None:
        super().__init__()
        tokens = num_multimask + 1
        self.transformer = self.make_transformer(depth, width, heads, mlp)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(tokens, width)
        self.output_upscaling = self.make_upscaling(width)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(width, width, width // 8) for _ in range(tokens)
        )
        self.iou_prediction_head = MLP(width, iou_width, tokens)

    def make_transformer(self, depth: int, width: int, heads: int, mlp: int) -> TwoWayTransformer:
        """Make the transformer between tokens and image."""
        return TwoWayTransformer(depth, width, heads, mlp)

    def make_upscaling(self, width: int) -> nn.Sequential:
        """Make the layers that enlarge the image four times: (b, c, g, g) -> (b, c / 8, 4g, 4g)."""
        return nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )

    @property
    def chooses_stable_mask(self) -> bool:
        """Whether the single mask may be one of the multimask output, as in SAM 2."""
        return False

    @property
    def num_multimask(self) -> int:
        """Number of masks of a multimask output."""
        return self.mask_tokens.num_embeddings - 1

    def chosen_masks(self, multimask: bool) -> range:
        """Return the indices of the mask tokens whose masks are asked for."""
        return range(1, self.num_multimask + 1) if multimask else range(1)

    def embed_maps(self, maps: Any) -> Float[Tensor, "b e g g"]:
        """Return the image embedding (b, e, g, g) of what the image encoder returned."""
        embedding: Tensor = maps
        return embedding

    def estimate_iou(self, tokens: Float[Tensor, "*b t c"]) -> Float[Tensor, "*b m"]:
        """Estimate the IoU of the mask of every mask token from decoded tokens."""
        iou: Tensor = self.iou_prediction_head(tokens[..., self.tokens_before_iou, :])
        return iou

    def own_tokens(self) -> Sequence[Tensor]:
        """Return the decoder's own tokens, each (n, c), in order."""
        return self.iou_token.weight, self.mask_tokens.weight

    def object_tokens(self, sparse: Float[Tensor, "b p n c"]) -> Float[Tensor, "b p t c"]:
        """Put the decoder's own tokens before the prompt tokens of each object.

        (b, p, n, c) -> (b, p, 1 + m + n, c) for m mask tokens.
        """
        own = torch.cat(list(self.own_tokens()))
        return torch.cat([own.expand(*sparse.shape[:2], -1, -1), sparse], dim=2)

    def forward(
        self,
        embeddings: Float[Tensor, "b c g g"],
        position: Float[Tensor, "c g g"],
        sparse: Float[Tensor, "b p n c"],
        dense: Float[Tensor, "#b #p c #g #g"],
        *,
        multimask: bool,
    ) -> MaskOutput:
        """Decode p objects in each of b images.

        Only the requested masks are computed; the hypernetworks of the others get no gradient from
        this call.

        Args:
            embeddings: (b, c, g, g).
            position: (c, g, g), the position embedding of the image's cells.
            sparse: (b, p, n, c) prompt tokens; n may be 0.
            dense: (b, p, c, g, g), or anything that broadcasts to it.
            multimask: return the ``num_multimask`` masks instead of the single one.
        """
        chosen, (g, w) = self.chosen_masks(multimask), embeddings.shape[-2:]
        tokens = self.object_tokens(sparse)
        image = (embeddings[:, None] + dense).flatten(-2).transpose(-2, -1)  # (b, 1 or p, g * g, c)
        tokens, image = self.transformer(image, position.flatten(-2).t(), tokens)
        # Each mask is a product of the upscaled image with one vector, which the hypernetwork
        # makes of the mask's token.
        planes = image.transpose(-2, -1).unflatten(-1, (g, w)).flatten(0, 1)  # (b * p, c, g, g)
        upscaled = self.output_upscaling(planes)  # (b * p, c / 8, 4g, 4g)
        kernels = torch.stack(
            [self.output_hypernetworks_mlps[i](tokens[:, :, 1 + i]) for i in chosen], dim=2
        )  # (b, p, m, c / 8)
        logits = (kernels.flatten(0, 1) @ upscaled.flatten(2)).view(
            *kernels.shape[:3], *upscaled.shape[-2:]
        )
        iou = self.estimate_iou(tokens)[..., chosen.start : chosen.stop]
        return MaskOutput(logits=logits, iou=iou)

    def decode_single(
        self,
        embeddings: Float[Tensor, "b e g g"],
        position: Float[Tensor, "c g g"],
        sparse: Float[Tensor, "b p n c"],
        dense: Float[Tensor, "#b #p c #g #g"],
    ) -> Float[Tensor, "b p 1 s s"]:
        """Return the logits of mask token 0; arguments are those of ``forward``."""
        output: MaskOutput = self(embeddings, position, sparse, dense, multimask=False)
        return output.logits

    def resize_mask_tokens(self, count: int) -> None:
        """Set the number of multimask outputs.

        Additional outputs are copies of the existing ones, cycling through them. The token, the
        hypernetwork and the row of the IoU head of an output are copied together. The parameters
        are new objects with the ``requires_grad`` of the old ones.

        Raises:
            ValueError: ``count`` is less than 1.
        """
        if count < 1:
            raise ValueError(f"the number of mask outputs must be at least 1; got {count}")
        rows = [0, *(1 + i % self.num_multimask for i in range(count))]
        head = self.iou_prediction_head.layers[-1]
        if not isinstance(head, nn.Linear):
            raise TypeError(f"the IoU head must end in nn.Linear; got {type(head).__name__}")
        networks = []
        for row in rows:
            old = self.output_hypernetworks_mlps[row]
            networks.append(copy.deepcopy(old) if old in networks else old)
        self.output_hypernetworks_mlps = nn.ModuleList(networks)
        self.mask_tokens = _take_rows(self.mask_tokens, rows)
        self.iou_prediction_head.layers[-1] = _take_rows(head, rows)


def _take_rows(module: RowsT, rows: list[int]) -> RowsT:
    """Return a copy of a module that has the given rows of its parameters."""
    taken = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        value = nn.Parameter(parameter.detach()[rows].clone(), parameter.requires_grad)
        setattr(taken, name, value)
    if isinstance(taken, nn.Embedding):
        taken.num_embeddings = len(rows)
    else:
        taken.out_features = len(rows)
    return taken
