"""Keep the embeddings of the last images, for all adapters that leave the encoder unchanged."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samadapt.sam.embed import embed, frame_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame

MAX_BYTES = 2**28
"""Bytes of embeddings that are kept: 64 images of ViT-B at 1024 px in fp32."""


class EmbeddingCache:
    """The embeddings of the last images, by encoder and by a hash of the image's values.

    Args:
        max_bytes: bytes that are kept at most. The least recently used embeddings go first.

    Attributes:
        computed: number of images that an encoder has run on.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.computed = 0
        self._kept: OrderedDict[tuple[Hashable, ...], Tensor] = OrderedDict()

    def __call__(
        self,
        sam: SegmentationModel,
        encoder: Hashable,
        images: Sequence[NDArray[np.uint8]],
        stack: int = 1,
    ) -> tuple[Float[Tensor, "b c g g"], list[Frame]]:
        """Embed images (h, w, 3); those that are not kept go through one forward pass.

        Args:
            sam: the model.
            encoder: key that is equal for models with equal encoders.
            images: as ``embed`` takes them; whole stacks, one after the other.
            stack: number of images that the encoder sees together.

        Returns:
            Embeddings (b, c, g, g) on the model's device, and the frame of each image.
        """
        # Images of a stack attend to each other, so a stack is kept and looked up as a whole.
        units = [images[start : start + stack] for start in range(0, len(images), stack)]
        # The digest is over values alone, so the shape is a part of the key.
        keys = [(encoder, unit[0].shape, *map(_digest, unit)) for unit in units]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: unit for key, unit in zip(keys, units, strict=True) if key not in found}
        if missing:
            fresh, _ = embed(sam, [image for unit in missing.values() for image in unit])
            found |= dict(zip(missing, fresh.split(stack), strict=True))
            self.computed += len(fresh)
        # The dictionary is ordered from the least to the most recently used.
        for key, value in found.items():
            self._kept[key] = value
            self._kept.move_to_end(key)
        self._shrink()
        return torch.cat([found[key] for key in keys]), [frame_of(sam, image) for image in images]

    def forget(self, encoder: Hashable) -> None:
        """Drop the embeddings of an encoder."""
        for key in [key for key in self._kept if key[0] == encoder]:
            del self._kept[key]

    def _shrink(self) -> None:
        size = sum(value.nbytes for value in self._kept.values())
        while size > self.max_bytes and self._kept:
            _, value = self._kept.popitem(last=False)
            size -= value.nbytes


def _digest(image: NDArray[Any]) -> bytes:
    return blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
