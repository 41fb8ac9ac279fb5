"""What all protocols of a server share."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from samadapt.serving.limits import ServingLimits
from samadapt.serving.served_image import ServedImage
from samadapt.serving.sessions import Sessions
from samadapt.serving.uploads import image_of_file
from samadapt.serving.worker import Job, Worker

if TYPE_CHECKING:
    from samadapt.serving.label_studio_files import LabelStudioFiles
    from samadapt.serving.served_image import ImageView
    from samadapt.serving.served_models import ServedModels

T = TypeVar("T")

KEPT_PICTURES = 4
"""Pictures of clients without sessions whose embeddings are kept."""


@dataclass
class ServerState:
    """The models, sessions and the thread that computes.

    Attributes:
        models: the models.
        limits: what is accepted.
        worker: computes.
        sessions: of clients that keep an image.
        corrections: folder for masks that are accepted, or None.
        label_studio: fetches the images of Label Studio, or None.
    """

    models: ServedModels
    limits: ServingLimits = field(default_factory=ServingLimits)
    corrections: Path | None = None
    label_studio: LabelStudioFiles | None = None
    worker: Worker = field(init=False)
    sessions: Sessions = field(init=False)
    _pictures: OrderedDict[bytes, ServedImage] = field(init=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        first = self.models.first
        self.worker = Worker(lambda: first.precision.autocast(first.sam.device))
        self.sessions = Sessions(self.limits, self.close_image)

    def close(self) -> None:
        """End all sessions and the thread."""
        self.worker.stop()
        self.sessions.close_all()
        self._pictures.clear()

    def close_image(self, image: ServedImage) -> None:
        """Give the memory of an image back, after what is being computed on it."""
        image.is_closed = True
        if self.worker.is_stopped:
            image.close()
        else:
            self.worker.call(image.close)

    def encode_ahead(self, view: ImageView) -> None:
        """Begin to encode an image, if prompts will ask for that."""
        if view.model.takes_prompts:
            self.worker.submit(view.encode_ahead(), ahead=True)

    async def compute(self, job: Job[T]) -> T:
        """Run a job in the worker and return its result.

        A client that goes away meanwhile does not stop it: its image may be in use.
        """
        return await asyncio.shield(asyncio.wrap_future(self.worker.submit(job)))

    async def call(self, do: Callable[[], T]) -> T:
        """Run a function in the worker and return its result."""
        return await asyncio.shield(asyncio.wrap_future(self.worker.call(do)))

    async def read(self, do: Callable[[], T]) -> T:
        """Run a function that computes nothing with the models in another thread."""
        return await asyncio.to_thread(do)

    async def picture(self, content: bytes, name: str) -> ServedImage:
        """Return a picture of a client without a session; the last ones stay encoded.

        Args:
            content: the bytes of its file.
            name: its name, which says how it is read.

        Raises:
            RefusedError: it cannot be read.
        """
        key = blake2b(content + name.encode("utf-8"), digest_size=16).digest()
        if key not in self._pictures:
            image = await self.read(lambda: image_of_file(content, name, self.models, self.limits))
            self._pictures[key] = image
        self._pictures.move_to_end(key)
        while len(self._pictures) > KEPT_PICTURES:
            self._pictures.popitem(last=False)  # not closed: it may be in use
        return self._pictures[key]
