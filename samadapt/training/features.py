"""The output of the frozen blocks, computed once an image and read back.

Everything before the first trainable block gives the same output in every step, in validation, and
in the scores before and after. It is kept under the hash of everything that it depends on: see
``stores.py`` for where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samadapt.sam.embed import frame_of, to_pixels
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from samadapt.sam.model import Sam
    from samadapt.sam.types import Frame
    from samadapt.training.stores import Store


FORMAT = 1
"""Raised when the frozen blocks are computed differently, so that stored features are not used."""


class Features:
    """Frozen features of images, computed where they are not yet known.

    Args:
        sam: the model, on its device; the units before ``first_trainable_block`` must be frozen.
        first_trainable_block: the first live unit (``Sam.encode_prefix``); -1: there is no frozen
            prefix, and the preprocessed pixels are returned.
        base_sha256: hash of the base weights.
        autocast: returns the context of the forward passes.
        dtype: type in which features are kept.
        store: where they are kept; None computes them at every call.
        batch_size: images in one forward pass.
        route: whatever else decides the last bits of a number: device and precision in words.

    Attributes:
        computed: images that went through the frozen blocks.
        reused: images whose features were read back.
    """

    def __init__(
        self,
        sam: Sam,
        first_trainable_block: int,
        *,
        base_sha256: str,
        autocast: Callable[[], AbstractContextManager[Any]],
        dtype: torch.dtype,
        store: Store | None,
        batch_size: int = 8,
        route: str = "",
    ) -> None:
        self.sam, self.first_trainable_block, self.store = sam, first_trainable_block, store
        self.autocast, self.dtype, self.batch_size = autocast, dtype, batch_size
        self.computed = self.reused = 0
        settings = [
            FORMAT,
            base_sha256,
            first_trainable_block,
            sam.image_size,
            asdict(sam.preprocessing),
        ]
        self._settings = json.dumps([*settings, str(dtype), route]).encode()

    def frame(self, image: Array) -> Frame:
        """Return where an image (h, w, 3) lies in the model's square."""
        return frame_of(self.sam, image)

    def key(self, image: Array) -> str:
        """Return the hash of an image (h, w, 3) uint8 and of all else its features depend on."""
        content = hashlib.sha256(self._settings)
        content.update(str(image.shape).encode())
        content.update(np.ascontiguousarray(image).data)
        return content.hexdigest()

    def warm(self, images: Iterable[Array], done: Callable[[int], None]) -> None:
        """Compute what is missing for ``images``, in large batches.

        Args:
            images: (h, w, 3) uint8 each, read one batch at a time.
            done: called with the number of images finished since the last call.
        """
        if self.store is None:
            return
        batch: list[Array] = []
        for image in images:
            batch.append(image)
            if len(batch) == self.batch_size:
                self(batch)
                done(len(batch))
                batch = []
        if batch:
            self(batch)
            done(len(batch))

    def __call__(self, images: Sequence[Array]) -> Tensor:
        """Return the features (b, ...) of images (h, w, 3) uint8, without gradient.

        Raises:
            RunError: when the store has no room for those that it lacked.
        """
        if self.store is None:
            return self.anew(images)
        keys = [self.key(image) for image in images]
        found = {key: self.store.get(key) for key in dict.fromkeys(keys)}
        missing = {
            key: image for key, image in zip(keys, images, strict=True) if found[key] is None
        }
        self.reused += len(images) - len(missing)
        names = list(missing)
        for start in range(0, len(names), self.batch_size):
            part = names[start : start + self.batch_size]
            fresh = self.anew([missing[name] for name in part])
            for name, features in zip(part, fresh.cpu().split(1), strict=True):
                found[name] = alone = features.clone()
                self.store.put(name, alone)
        device = self.sam.device
        return torch.cat([_present(found[key]) for key in keys]).to(device, non_blocking=True)

    def anew(self, images: Sequence[Array]) -> Tensor:
        """Return the features (b, ...) of images (h, w, 3) uint8, neither looked up nor kept."""
        self.computed += len(images)
        pixels = to_pixels(self.sam, images)
        if self.first_trainable_block < 0:
            return pixels
        with torch.no_grad(), self.autocast():
            return self.sam.encode_prefix(pixels, self.first_trainable_block).to(self.dtype)


def _present(features: Tensor | None) -> Tensor:
    if features is None:
        raise RuntimeError("features were neither found nor computed")
    return features
