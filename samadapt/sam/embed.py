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

``embed`` runs the whole way. Training and evaluation run it in two parts, ``to_pixels`` and
``embed_features``, so that the output of the frozen blocks can be kept between the parts.
``sam/decode.py`` goes on from embeddings to masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from samadapt.sam.geometry import make_frame, resize_image

if TYPE_CHECKING:
    from samadapt.sam.model import Sam
    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array


def frame_of(sam: Sam, image: Array) -> Frame:
    """Return where an image (h, w, ...) lies in the model's square."""
    return make_frame(image.shape[:2], sam.image_size, sam.preprocessing.resize)


def to_tensor(image: Array, frame: Frame) -> UInt8[Tensor, "c h w"]:
    """Resize an image (h, w, 3) uint8 and return it as (3, h', w') uint8, on the CPU."""
    # A copy: torch must not share memory with an array that is read-only or the caller's.
    return torch.tensor(resize_image(image, frame)).permute(2, 0, 1)


def to_pixels(sam: Sam, images: Sequence[Array]) -> Float[Tensor, "b 3 s s"]:
    """Bring images into the model frame, normalised and padded.

    An input projection, where the model has one, is applied here and gets its gradient.

    Args:
        sam: the model, which says how images are resized and normalised.
        images: b arrays (h, w, 3) uint8 of any sizes, RGB after the intensity rule; (h, w, c) for
            a model with an input projection.

    Returns:
        (b, 3, s, s) on the model's device.
    """
    resized = [to_tensor(image, frame_of(sam, image)) for image in images]
    return sam.preprocess([image.to(sam.device).float() for image in resized])


def embed_features(
    sam: Sam, features: Float[Tensor, "b ..."], first_trainable_block: int
) -> Float[Tensor, "b c g g"]:
    """Run the encoder from its first trainable block on, with gradients.

    Args:
        sam: the model, base or adapted.
        features: (b, ...) what ``Sam.encode_prefix`` returned for ``first_trainable_block``; the
            pixels (b, 3, s, s) if that is -1.
        first_trainable_block: see ``Sam.encode_prefix``; -1: no part of the encoder is frozen.

    Returns:
        Embeddings (b, c, g, g).
    """
    if first_trainable_block < 0:
        return sam.encode(features)
    return sam.encode_suffix(features, first_trainable_block)


@torch.no_grad()
def embed(sam: Sam, images: Sequence[Array]) -> tuple[Float[Tensor, "b c g g"], list[Frame]]:
    """Embed images of any sizes in one forward pass.

    Args:
        sam: the model, base or adapted.
        images: as ``to_pixels`` takes them.

    Returns:
        Embeddings (b, c, g, g) on the model's device, and the frame of each image.
    """
    embeddings = sam.encode(to_pixels(sam, images))
    return embeddings, [frame_of(sam, image) for image in images]
