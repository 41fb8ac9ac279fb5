"""An image that clients prompt: as each model sees it, encoded once a slice."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from samadapt.data.formats.shared.volume_slices import slices_view
from samadapt.data.stacks import Stacks
from samadapt.data.types import SliceRef
from samadapt.errors import DataError, UserError
from samadapt.inference.propagate import Propagation
from samadapt.inference.spool import Spool
from samadapt.inference.volumes import SlicePictures
from samadapt.sam.decode import image_embedding
from samadapt.sam.embed import embed, frame_of
from samadapt.serving.file_axes import FileAxes
from samadapt.serving.refused import RefusedError
from samadapt.serving.worker import Job

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.data.types import Volume
    from samadapt.sam.types import Frame
    from samadapt.serving.served_models import ServedModel
    from samadapt.system.arrays import Array

IN_MEMORY = 1 << 26
"""Bytes of embeddings of an image that stay in memory; more lie in an unnamed temporary file."""


class ServedImage:
    """One image of a client.

    Args:
        name: what the client calls it.
        volumes: by the name of a model, the image as that model reads it, or why it cannot.

    Attributes:
        is_closed: its memory was given back.
    """

    def __init__(self, name: str, volumes: Mapping[str, Volume | UserError]) -> None:
        self.name = name
        self.is_closed = False
        self._volumes = dict(volumes)
        self._views: dict[str, ImageView] = {}
        self._spool = Spool(IN_MEMORY)
        # An image that nobody closed goes with its last user.
        weakref.finalize(self, self._spool.__exit__)

    def seen_by(self, model: ServedModel) -> ImageView:
        """Return the image as a model sees it.

        Raises:
            UserError: the model cannot read it.
        """
        if model.name not in self._views:
            volume = self._volumes[model.name]
            if isinstance(volume, UserError):
                raise volume
            self._views[model.name] = ImageView(self, model, volume, self._spool)
        return self._views[model.name]

    def encoded(self) -> dict[str, tuple[int, int]]:
        """Return by model how many slices are encoded, and how many there are."""
        return {name: (view.encoded, view.shape[2]) for name, view in self._views.items()}

    def close(self) -> None:
        """Give back the memory and the temporary file."""
        self.is_closed = True
        self._views.clear()
        self._volumes.clear()
        self._spool.__exit__()


class ImageView:
    """An image as one model sees it: its slices, and their embeddings.

    Args:
        image: the image.
        model: the model.
        volume: the image as the model reads it.
        spool: keeps the embeddings, by encoder, intensity rule, way of reading and slice.

    Attributes:
        volume: the image as the model reads it.
        shape: (h, w, d).
        axes: where its slices lie in the file.

    Raises:
        DataError: the image has other channels, or fewer slices, than the model sees.
    """

    def __init__(
        self, image: ServedImage, model: ServedModel, volume: Volume, spool: Spool
    ) -> None:
        if model.bundle.stack > 1 and volume.shape[2] == 1:
            raise DataError(
                f"this adapter sees {model.bundle.stack} neighbouring slices of a volume together, "
                "and this is one image"
            )
        self.model, self.volume, self.shape = model, volume, volume.shape
        self.axes = FileAxes(volume.source, volume.shape)
        self.pictures = SlicePictures(volume, model.bundle.intensity, None)
        self.frame: Frame = frame_of(model.sam, np.empty(self.shape[:2], np.uint8))
        self._image, self._spool = image, spool
        self._key = (model.bundle.encoder, self.pictures.rule, model.reader_options)
        self._stacks = Stacks(model.bundle.stack, lambda case: self.shape[2])

    @property
    def encoded(self) -> int:
        """Number of slices that are encoded."""
        return sum((*self._key, index) in self._spool for index in range(self.shape[2]))

    def embed(self, indices: Sequence[int]) -> tuple[Tensor, list[Frame]]:
        """Return the embeddings (b, c, g, g) of slices; those that are new are encoded.

        Raises:
            RefusedError: the image was closed (410).
        """
        if self._image.is_closed:
            raise RefusedError(410, "the session of this image has ended")
        missing = [index for index in indices if (*self._key, index) not in self._spool]
        for index in missing:
            whole, rows = self._stacks.whole([SliceRef("", index)])
            sam = self.model.sam
            found, _ = embed(sam, [self.pictures(ref.index) for ref in whole])
            # Of what a dense head reads beside the embedding, prompts need nothing.
            (row,) = image_embedding(sam, found)[rows]
            self._spool.put((*self._key, index), row)
        found = torch.stack([self._spool.get((*self._key, index)) for index in indices])
        return found.to(self.model.sam.device), [self.frame] * len(indices)

    def encode_ahead(self) -> Job[None]:
        """Encode every slice, those in the middle first, a slice a step."""
        depth = self.shape[2]
        for index in sorted(range(depth), key=lambda index: abs(index - depth // 2)):
            if self._image.is_closed:
                return
            self.embed([index])
            yield

    def propagation(self, *, points: bool) -> Propagation:
        """Return what carries one object through this image.

        Args:
            points: see ``ServedModel.policy``.
        """
        return Propagation(
            sam=self.model.sam,
            embed=self.embed,
            policy=self.model.policy(points=points),
            threshold=self.model.bundle.record.threshold,
        )

    def mask_of(self, logits: Tensor) -> Array:
        """Return the mask (h, w) bool of logits (1, 4g, 4g)."""
        sam = self.model.sam
        planes = sam.postprocess(logits[None, None].to(sam.device).float(), self.frame)[0, 0, 0]
        found: Array = (planes > self.model.bundle.record.threshold).cpu().numpy()
        return found

    def blank_mask(self) -> tuple[Array, Array]:
        """Return an empty mask: uint8 in the axes of the file, and a view of it as (h, w, d)."""
        grid = self.volume.source
        if grid is None:
            mask = np.zeros(self.shape, np.uint8)
            return (mask if self.shape[2] > 1 else mask[:, :, 0]), mask
        mask = np.zeros((*grid.shape, 1)[:3], np.uint8)
        return mask, slices_view(mask, grid)
