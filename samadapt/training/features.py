"""Features: the output of the frozen first blocks of the encoder, computed once for each image.

The blocks before the first trainable one never change. Their output for an image is the same in
every training step, in validation and in the scores before and after training. So it is computed
once, kept in a store (``feature_stores.py``) and read back by a key. The key is a hash of the image
and of everything else that the features depend on. ``feature_plan.py`` hashes every image of a run
once; after that the training loop passes keys around, not images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samadapt.sam.embed import embed_prefix
from samadapt.system import processes
from samadapt.system.arrays import Array
from samadapt.training.feature_stores import MemoryStore

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.training.feature_stores import Store


FORMAT = 1
"""Part of every key. Increase it when the frozen blocks are computed differently: stored features
of earlier versions then no longer match."""


class Features:
    """Features of images, computed where the store does not have them yet.

    Args:
        sam: the model on its device; the units before ``first_trainable_block`` must be frozen.
        first_trainable_block: see ``Sam.encode_prefix``; -1 means that nothing is frozen, and the
            features are the preprocessed pixels.
        base_sha256: hash of the base weights.
        autocast: returns the context of the forward passes.
        dtype: the type in which features are kept.
        store: where features are kept; None computes them in every call.
        batch_size: images in one forward pass.
        route: device and precision in words; they decide the last bits of a number.

    Attributes:
        computed: number of images that went through the frozen blocks.
        reused: number of images whose features were read from the store.
        kept: number of images whose features were computed and put into the store.
        read: returns the image (h, w, 3) of a key; ``plan_features`` sets it.
        aside: returns a context in which so many images are computed, to measure their time.
    """

    def __init__(
        self,
        sam: SegmentationModel,
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
        self.computed = self.reused = self.kept = 0
        self.read: Callable[[str], Array] = _no_images
        self.aside: Callable[[int], AbstractContextManager[Any]] = lambda count: nullcontext()
        self._together: dict[str, list[str]] = {}
        settings = [
            FORMAT,
            base_sha256,
            first_trainable_block,
            sam.image_size,
            asdict(sam.preprocessing),
        ]
        if sam.dense_head is not None:  # it keeps more of an image; without one keys stay as before
            settings.append(asdict(sam.dense_head.settings))
        self._settings = json.dumps([*settings, str(dtype), route]).encode()

    def key(self, image: Array) -> str:
        """Return the key of an image (h, w, 3) uint8: a hash of all that its features depend on."""
        content = hashlib.sha256(self._settings)
        content.update(str(image.shape).encode())
        content.update(np.ascontiguousarray(image).data)
        return content.hexdigest()

    def __call__(self, images: Sequence[Array], keys: Sequence[str] = ()) -> Float[Tensor, "b ..."]:
        """Return the features (b, ...) of images (h, w, 3) uint8, without gradient.

        Args:
            images: b images.
            keys: their keys; empty: the images are hashed.

        Raises:
            RunError: when the store has no room for new features.
        """
        if self.store is None:
            return self.compute(images)
        keys = keys or [self.key(image) for image in images]
        return self.stored(keys, dict(zip(keys, images, strict=True)).__getitem__)

    def stored(
        self, keys: Sequence[str], read: Callable[[str], Array] | None = None
    ) -> Float[Tensor, "b ..."]:
        """Return the features (b, ...) of images by their keys, without gradient.

        What the store does not have, such as a damaged file, is computed and kept.

        Args:
            keys: one for each image, as ``key`` returns them; a key may occur twice.
            read: returns the image of a key; None: as planned.

        Raises:
            RunError: when the store has no room for new features.
        """
        store, read = self.store, read or self.read
        if store is None:
            return self.compute([read(key) for key in keys])
        unique = dict.fromkeys(keys)
        found = {key: kept for key in unique if (kept := store.get(key)) is not None}
        missing = dict.fromkeys(key for key in unique if key not in found)
        self.reused += len(keys) - len(missing)
        for batch in self._batches(list(missing)):
            have = store.use(batch) - missing.keys()
            part = [key for key in batch if key not in have]
            images = [read(key) if key in unique else self.read(key) for key in part]
            with self.aside(len(part)):
                fresh = self.compute(images).cpu()
            for key, features in zip(part, fresh.split(1), strict=True):
                # A clone, since a view would keep the features of the whole batch in memory.
                own = features.clone()
                store.put(key, own)
                self.kept += 1
                if key in missing:
                    found[key] = own
        return torch.cat([found[key] for key in keys]).to(self.sam.device, non_blocking=True)

    def compute_in_order(self, order: Sequence[str]) -> None:
        """Compute features that are missing when they are read, with those that are read next.

        The images that go through the model together follow from the order, and not from what is
        read first. So features are the same, bit by bit, when a run ends early and is resumed.

        Args:
            order: keys of planned images, each once, in the order in which they are first read.
        """
        size = self.batch_size
        batches = [list(order[start : start + size]) for start in range(0, len(order), size)]
        self._together = {key: batch for batch in batches for key in batch}

    def _batches(self, missing: Sequence[str]) -> list[list[str]]:
        """Return the batches in which missing images are computed."""
        together, size = self._together, self.batch_size
        alone = [key for key in missing if key not in together]
        ordered = {together[key][0]: together[key] for key in missing if key in together}
        return [*ordered.values(), *(alone[at : at + size] for at in range(0, len(alone), size))]

    def warm(self, keys: Sequence[str], done: Callable[[int], None]) -> None:
        """Compute and keep the features of planned images that the store does not have yet.

        Several processes compute a part each. Where one of them keeps features in memory, the
        parts are exchanged, so that every store holds all.

        Args:
            keys: keys of the images, which are read one batch at a time; the same in all processes.
            done: called with the number of images finished since the last call.
        """
        own, size = processes.block(keys), processes.count()
        exchanged = processes.any_of(isinstance(self.store, MemoryStore)) and size > 1
        longest = -(-len(keys) // size)  # all processes take part in every exchange
        for start in range(0, longest, self.batch_size):
            part = own[start : start + self.batch_size]
            found = self.stored(part).cpu() if part else None
            for theirs, features in processes.gather((part, found)) if exchanged else ():
                self._keep(theirs, features)
            done(min(len(keys) - start * size, self.batch_size * size))
        processes.wait()  # until all features are there

    def _keep(self, keys: Sequence[str], features: Tensor | None) -> None:
        """Put features (b, ...) that another process computed into the store."""
        if self.store is None or features is None:
            return
        have = self.store.use(keys)
        for key, one in zip(keys, features.split(1), strict=True):
            if key not in have:
                self.store.put(key, one.clone())

    def compute(self, images: Sequence[Array]) -> Float[Tensor, "b ..."]:
        """Compute the features (b, ...) of images (h, w, 3) uint8; the store is not used."""
        self.computed += len(images)
        if self.first_trainable_block < 0:
            return embed_prefix(self.sam, images, self.first_trainable_block)
        with torch.no_grad(), self.autocast():
            return embed_prefix(self.sam, images, self.first_trainable_block).to(self.dtype)


def _no_images(key: str) -> Array:
    raise RuntimeError(f"no image is known for the features {key}; plan_features was not called")
