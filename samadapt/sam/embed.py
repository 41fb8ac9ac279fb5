"""The one way from images to embeddings, for training, evaluation and prediction alike.

::

    image (h, w, 3) uint8, any size             original frame
      |  frame_of: where the image lies in the model's square
      |  resize_image: PIL, bilinear, as segment-anything
      |  Sam.preprocess: normalise, pad right and below
      v
    pixels (b, 3, s, s)                         model frame
      |  Sam.encode_prefix: frozen blocks, computed once per image and kept (training/features.py)
      v
    features (b, ...)
      |  Sam.encode_suffix: trained blocks and neck
      v
    embeddings (b, c, g, g)

``embed`` runs the whole way. Training and evaluation run it in two parts, ``embed_prefix`` and
``embed_features``, so that the output of the frozen blocks can be kept between the parts. For a
model with a dense head, which reads more than the embedding, both return packed features (b, n);
see ``sam/dense_features.py``.
``sam/decode.py`` goes on from embeddings to masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from samadapt.sam.dense_features import pack_embedding, pack_frozen
from samadapt.sam.geometry import make_frame, resize_image

if TYPE_CHECKING:
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array


def frame_of(sam: SegmentationModel, image: Array) -> Frame:
    """Return where an image (h, w, ...) lies in the model's square."""
    return make_frame(image.shape[:2], sam.image_size, sam.preprocessing.resize)


def to_tensor(image: Array, frame: Frame) -> UInt8[Tensor, "c h w"]:
    """Resize an image (h, w, 3) uint8 and return it as (3, h', w') uint8, on the CPU."""
    # A copy: torch must not share memory with an array that is read-only or the caller's.
    return torch.tensor(resize_image(image, frame)).permute(2, 0, 1)


def to_pixels(sam: SegmentationModel, images: Sequence[Array]) -> Float[Tensor, "b n s s"]:
    """Bring images into the model frame, normalised and padded.

    An input projection, where the model has one, is applied here and gets its gradient.

    Args:
        sam: the model, which says how images are resized and normalised.
        images: b arrays (h, w, 3) uint8 of any sizes, RGB after the intensity rule; (h, w, c) for
            a model of more channels.

    Returns:
        (b, n, s, s) on the model's device; n is 3 for SAM.
    """
    resized = [to_tensor(image, frame_of(sam, image)) for image in images]
    return sam.preprocess([image.to(sam.device).float() for image in resized])


def to_pictures(
    sam: SegmentationModel, images: Sequence[Array], side: int
) -> UInt8[Tensor, "b c d d"]:
    """Bring images into the square of a dense head, padded with zeros, on the model's device.

    Args:
        sam: the model, which says how images are resized.
        images: b arrays (h, w, 3) uint8 of any sizes, RGB after the intensity rule.
        side: side d of the square.
    """
    pictures = []
    for image in images:
        picture = to_tensor(image, make_frame(image.shape[:2], side, sam.preprocessing.resize))
        height, width = picture.shape[1:]
        pictures.append(functional.pad(picture, (0, side - width, 0, side - height)))
    return torch.stack(pictures).to(sam.device)


def embed_prefix(
    sam: SegmentationModel, images: Sequence[Array], first_trainable_block: int
) -> Float[Tensor, "b ..."]:
    """Run the encoder up to its first trainable block.

    Args:
        sam: the model, base or adapted.
        images: as ``to_pixels`` takes them.
        first_trainable_block: see ``Sam.encode_prefix``; -1: no part of the encoder is frozen.

    Returns:
        Features (b, ...) for ``embed_features``.
    """
    pixels = to_pixels(sam, images)
    if sam.dense_head is not None:
        pictures = to_pictures(sam, images, sam.dense_head.settings.side)
        return pack_frozen(sam, sam.dense_head, pixels, pictures, first_trainable_block)
    if first_trainable_block < 0:
        return pixels
    return sam.encode_prefix(pixels, first_trainable_block)


def embed_features(
    sam: SegmentationModel, features: Float[Tensor, "b ..."], first_trainable_block: int
) -> Float[Tensor, "b ..."]:
    """Run the encoder from its first trainable block on, with gradients.

    Args:
        sam: the model, base or adapted.
        features: (b, ...) what ``embed_prefix`` returned for ``first_trainable_block``.
        first_trainable_block: see ``Sam.encode_prefix``; -1: no part of the encoder is frozen.

    Returns:
        Embeddings (b, c, g, g), or packed ones (b, n) for a dense head.
    """
    if sam.dense_head is not None:
        return pack_embedding(sam, sam.dense_head, features, first_trainable_block)
    if first_trainable_block < 0:
        return sam.encode(features)
    return sam.encode_suffix(features, first_trainable_block)


@torch.no_grad()
def embed(
    sam: SegmentationModel, images: Sequence[Array]
) -> tuple[Float[Tensor, "b ..."], list[Frame]]:
    """Embed images of any sizes in one forward pass.

    Args:
        sam: the model, base or adapted.
        images: as ``to_pixels`` takes them.

    Returns:
        Embeddings (b, c, g, g), or packed ones (b, n) for a dense head, on the model's device; and
        the frame of each image.
    """
    embeddings = embed_features(sam, embed_prefix(sam, images, -1), -1)
    return embeddings, [frame_of(sam, image) for image in images]
