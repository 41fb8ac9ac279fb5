"""SAM's prompt encoder: points, boxes and masks to embeddings (Kirillov et al. 2023, app. A)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from samadapt.errors import PromptError
from samadapt.sam.layers import LayerNorm2d
from samadapt.sam.types import Prompts


class PositionEmbedding(nn.Module):
    """Random Fourier features of points in the unit square (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, places: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n features"]:
        """Embed points (x, y) in [0, 1]: (..., 2) -> (..., 2 * features).

        The computation is in float32 or wider: the phase makes too many turns for bfloat16.
        """
        matrix = self.positional_encoding_gaussian_matrix
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        centred = 2 * places.to(matrix.dtype) - 1
        phase = 2 * math.pi * (centred[..., :1] * matrix[0] + centred[..., 1:] * matrix[1])
        return torch.cat([phase.sin(), phase.cos()], dim=-1)

    def grid(self, side: int) -> Float[Tensor, "features {side} {side}"]:
        """Embed the centres of the cells of a square grid: (2 * features, side, side)."""
        matrix = self.positional_encoding_gaussian_matrix
        wide = torch.promote_types(matrix.dtype, torch.float32)
        centre = (torch.arange(side, device=matrix.device, dtype=wide) + 0.5) / side
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        embedded: Tensor = self(torch.stack([x, y], dim=-1))
        return embedded.permute(2, 0, 1)


class PromptEncoder(nn.Module):
    """Embeds the prompts of b images with p objects each.

    Its tensors have the official state-dict names.

    Args:
        width: channels c of every embedding.
        embedding_size: side g of the image embedding, in cells.
        image_size: side of the model's square in pixels; prompts are given in this frame.
        mask_channels: hidden channels of the mask prompt's convolutions.
    """

    def __init__(
        self, width: int, embedding_size: int, image_size: int, mask_channels: int
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding_size = embedding_size
        self.image_size = image_size
        self.pe_layer = PositionEmbedding(width // 2)
        # For a background point, a foreground point, the first and the second corner of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, width, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    @property
    def _dtype(self) -> torch.dtype:
        return self.no_mask_embed.weight.dtype

    def forward(
        self, prompts: Prompts, batch: int
    ) -> tuple[Float[Tensor, "{batch} p n c"], Float[Tensor, "#b #p c #g #g"]]:
        """Embed the prompts of ``batch`` = b images.

        Returns:
            sparse (b, p, n, c): the k points, then the two corners of the box, then the padding
            points; see ``padding_points``.
            dense (b, p, c, g, g): the mask prompts, or (1, 1, c, 1, 1) without them.

        Raises:
            PromptError: the prompts are for another number of images, or the side of the masks is
                not 4g.
        """
        self._check(prompts, batch)
        parts = [self.no_mask_embed.weight.new_zeros(batch, prompts.count, 0, self.width)]
        if prompts.points is not None and prompts.point_labels is not None:
            points, labels = prompts.points, prompts.point_labels
            parts.append(self._embed_points(points, labels, corners=prompts.is_complete))
        if prompts.boxes is not None:
            parts.append(self._embed_boxes(prompts.boxes))
        if padding := self.padding_points(prompts):
            none = self.not_a_point_embed.weight
            parts.append(none.expand(batch, prompts.count, padding, -1))
        if prompts.masks is None:
            dense = self.no_mask_embed.weight.view(1, 1, -1, 1, 1)
        else:
            masks = prompts.masks.to(self.no_mask_embed.weight)
            dense = torch.unflatten(self.mask_downscaling(masks.flatten(0, 1)), 0, masks.shape[:2])
        return torch.cat(parts, dim=2), dense

    def padding_points(self, prompts: Prompts) -> int:
        """Return how many padding points follow the prompts of each object.

        As in segment-anything, one follows points without a box, unless the prompts are complete.
        """
        return int(prompts.points is not None and prompts.boxes is None and not prompts.is_complete)

    def dense_position(self) -> Float[Tensor, "c g g"]:
        """Return the position embedding of the cells of the image embedding: (c, g, g)."""
        return self.pe_layer.grid(self.embedding_size).to(self._dtype)

    def _embed_places(self, pixels: Tensor) -> Tensor:
        device = self.no_mask_embed.weight.device
        wide = torch.promote_types(self._dtype, torch.float32)
        # A coordinate names a pixel; the embedding is that of the pixel's centre.
        centres = pixels.to(device, wide) + 0.5
        embedded: Tensor = self.pe_layer(centres / self.image_size)
        return embedded.to(self._dtype)

    def _embed_points(self, points: Tensor, labels: Tensor, *, corners: bool) -> Tensor:
        """Embed points (b, p, k, 2) with labels (b, p, k) as (b, p, k, c).

        ``corners``: labels 2 and 3 are the corners of boxes.
        """
        background, foreground = (self._vector(i) for i in (0, 1))
        label = labels.to(background.device)[..., None]
        embedded = self._embed_places(points)
        embedded = torch.where(label == -1, self.not_a_point_embed.weight[0], embedded)
        embedded = torch.where(label == 0, embedded + background, embedded)
        embedded = torch.where(label == 1, embedded + foreground, embedded)
        for corner in (2, 3) if corners else ():
            embedded = torch.where(label == corner, embedded + self._vector(corner), embedded)
        return embedded

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        """Embed the two corners of boxes (b, p, 4) as (b, p, 2, c)."""
        corners = self._embed_places(boxes.reshape(*boxes.shape[:2], 2, 2))
        return corners + torch.stack([self._vector(2), self._vector(3)])

    def _vector(self, index: int) -> Tensor:
        return self.point_embeddings[index].get_parameter("weight")[0]

    def _check(self, prompts: Prompts, batch: int) -> None:
        for name in ("points", "boxes", "masks"):
            given: Tensor | None = getattr(prompts, name)
            if given is not None and given.shape[0] != batch:
                raise PromptError(
                    f"{name} must be for the b = {batch} images of the embeddings; "
                    f"got {tuple(given.shape)}"
                )
        side = 4 * self.embedding_size
        if prompts.masks is not None and tuple(prompts.masks.shape[-2:]) != (side, side):
            raise PromptError(
                f"masks must be (b, p, 1, {side}, {side}) logits, as MaskOutput.logits; "
                f"got {tuple(prompts.masks.shape)}"
            )


class Sam2PromptEncoder(PromptEncoder):
    """The prompt encoder of SAM 2, which differs in its padding points alone."""

    def padding_points(self, prompts: Prompts) -> int:
        """Return how many padding points follow the prompts of each object.

        SAM 2 gives a box as two points, so one follows every box as well. An object without points
        and box has an empty point of its own, which makes two. sam2's ``SAM2ImagePredictor`` gives
        it none if it has a mask; training and videos of sam2 give it two, and so does transformers.
        """
        if prompts.is_complete:
            return 0
        return 2 if prompts.points is None and prompts.boxes is None else 1
