"""The output of the frozen blocks, computed once an image and read back.

Everything before the first trainable block gives the same output in every step, in validation, and
in the scores before and after. Features are kept in memory or in files; a file is named by the hash
of everything that it depends on, written whole or not at all, and checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samadapt.errors import RunError
from samadapt.sam.geometry import make_frame, resize_image

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from samadapt.sam.model import Sam
    from samadapt.sam.types import Frame

Array = np.ndarray[Any, np.dtype[Any]]

MEMORY_SHARE = 0.25
"""Share of the machine's memory that features may take before they go to the disk."""


class Store(Protocol):
    """Where features are kept, by the hash of what they depend on."""

    def get(self, key: str) -> Tensor | None:
        """Return the features (1, ...) of a key, or None where there are none."""

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features (1, ...) of a key."""


class MemoryStore:
    """Features in memory."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        """Return the features of a key, or None where there are none."""
        return self._kept.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of a key."""
        self._kept[key] = features


class DiskStore:
    """Features in files of a folder; a damaged file counts as absent and is written again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Tensor | None:
        """Return the features of a key, or None where there are none or the file is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{key}.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                features: Tensor = file.get_tensor("features")
                recorded = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError):
            return None
        return features if recorded == _digest(features) else None

    def put(self, key: str, features: Tensor) -> None:
        """Write the features of a key: to a temporary file, then renamed."""
        from safetensors.torch import save_file

        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        features = features.contiguous()
        save_file({"features": features}, name, metadata={"sha256": _digest(features)})
        Path(name).replace(self.folder / f"{key}.safetensors")


class Features:
    """Frozen features of images, computed where they are not yet known.

    Args:
        sam: the model, on its device; the units before ``boundary`` must be frozen.
        boundary: the first live unit (``Sam.encode_prefix``); -1: there is no frozen prefix, and
            the preprocessed pixels are returned.
        base_sha256: hash of the base weights.
        autocast: returns the context of the forward passes.
        dtype: type in which features are kept.
        store: where they are kept; None computes them at every call.
        batch_size: images in one forward pass.
    """

    def __init__(
        self,
        sam: Sam,
        boundary: int,
        *,
        base_sha256: str,
        autocast: Callable[[], AbstractContextManager[Any]],
        dtype: torch.dtype,
        store: Store | None,
        batch_size: int = 8,
    ) -> None:
        self.sam, self.boundary, self.store = sam, boundary, store
        self.autocast, self.dtype, self.batch_size = autocast, dtype, batch_size
        self.computed = self.reused = 0
        settings = [base_sha256, boundary, sam.image_size, asdict(sam.preprocessing), str(dtype)]
        self._settings = json.dumps(settings).encode()

    def frame(self, image: Array) -> Frame:
        """Return where an image (h, w, 3) lies in the model's square."""
        return make_frame(image.shape[:2], self.sam.image_size, self.sam.preprocessing.resize)

    def key(self, image: Array) -> str:
        """Return the hash of an image (h, w, 3) uint8 and of all else its features depend on."""
        content = hashlib.sha256(self._settings)
        content.update(str(image.shape).encode())
        content.update(np.ascontiguousarray(image).data)
        return content.hexdigest()

    def bytes_each(self, image: Array) -> int:
        """Return the size of the features of an image (h, w, 3), which is not counted or kept."""
        return self._compute([image]).nbytes

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
        """Return the features (b, ...) of images (h, w, 3) uint8, without gradient."""
        if self.store is None:
            self.computed += len(images)
            return self._compute(images)
        keys = [self.key(image) for image in images]
        found = {key: self.store.get(key) for key in dict.fromkeys(keys)}
        missing = {
            key: image for key, image in zip(keys, images, strict=True) if found[key] is None
        }
        self.reused += len(images) - len(missing)
        names = list(missing)
        for start in range(0, len(names), self.batch_size):
            part = names[start : start + self.batch_size]
            fresh = self._compute([missing[name] for name in part])
            for name, features in zip(part, fresh.cpu().split(1), strict=True):
                found[name] = features.clone()
                self.store.put(name, features.clone())
            self.computed += len(part)
        device = self.sam.device
        return torch.cat([_present(found[key]) for key in keys]).to(device, non_blocking=True)

    def _compute(self, images: Sequence[Array]) -> Tensor:
        resized = [
            torch.tensor(resize_image(image, self.frame(image))).permute(2, 0, 1)
            for image in images
        ]
        pixels = self.sam.preprocess([image.to(self.sam.device).float() for image in resized])
        if self.boundary < 0:
            return pixels
        with torch.no_grad(), self.autocast():
            return self.sam.encode_prefix(pixels, self.boundary).to(self.dtype)


def choose_store(where: str, folder: Path, images: int, bytes_each: int) -> tuple[Store, str]:
    """Return where the features of a run are kept, and the reason in words.

    Args:
        where: ``"memory"``, ``"disk"``, or ``"auto"``: in memory while they take at most a quarter
            of the machine's.
        folder: of the files, for the disk.
        images: how many there will be.
        bytes_each: size of one image's features.

    Raises:
        RunError: when the disk has too little room.
    """
    needed = images * bytes_each
    size = f"{bytes_each / 1e6:.1f} MB each, {needed / 1e9:.2f} GB"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if where == "memory" or (where == "auto" and needed <= MEMORY_SHARE * memory):
        return MemoryStore(), f"{size} in memory"
    store = DiskStore(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder}: features need {size}, and {free / 1e9:.2f} GB are free; name another disk "
            "with cache.dir, take fewer slices with data.slice_step, or use cache.enabled=off"
        )
    return store, f"{size} in {folder}"


def _present(features: Tensor | None) -> Tensor:
    if features is None:
        raise RuntimeError("features were neither found nor computed")
    return features


def _digest(features: Tensor) -> str:
    raw = features.detach().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()
