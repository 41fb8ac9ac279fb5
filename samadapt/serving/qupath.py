"""QuPath's SAM API below ``/sam``: prompts on a part of a slide, answered as GeoJSON.

QuPath's extension for SAM sends a picture in base64 with each prompt, and names the weights it
wants. Here these are the adapters that the server was started with: their list takes the place of
the weights, and each has an address ``samadapt:NAME``. No other address is accepted, and nothing is
downloaded.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from samadapt.serving.bodies import ForeignBody, read_body
from samadapt.serving.found_everything import find_everything
from samadapt.serving.masks_out import polygons
from samadapt.serving.prompting import SlicePrompt, box_between, click
from samadapt.serving.refused import RefusedError
from samadapt.serving.served_object import ServedObject
from samadapt.version import __version__

if TYPE_CHECKING:
    from starlette.requests import Request

    from samadapt.serving.served_image import ImageView
    from samadapt.serving.served_models import ServedModel
    from samadapt.serving.server_state import ServerState
    from samadapt.system.arrays import Array

SCHEME = "samadapt:"
Pixel = Annotated[float, Field(ge=-1e7, le=1e7)]


class PictureBody(ForeignBody):
    """A picture and the model that is wanted."""

    b64img: str
    type: str = Field(default="vit_b", max_length=50)
    checkpoint_url: str | None = Field(default=None, max_length=1000)


class PromptBody(PictureBody):
    """A box, points, or both."""

    bbox: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    point_coords: list[tuple[Pixel, Pixel]] | None = Field(default=None, max_length=64)
    point_labels: list[int] | None = Field(default=None, max_length=64)


class EverythingBody(PictureBody):
    """How densely everything is looked for, and what is kept."""

    points_per_side: int | None = Field(default=32, ge=1, le=64)
    min_mask_region_area: int = Field(default=0, ge=0, le=10_000_000)


class QuPath:
    """The routes of the API.

    Args:
        state: what the protocols share.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[Route]:
        """Return the routes; QuPath writes them with a slash at the end."""
        return [
            Route("/sam/", self.prompt, methods=["POST"]),
            Route("/sam/automask/", self.everything, methods=["POST"]),
            Route("/sam/version/", self.version, methods=["GET"]),
            Route("/sam/weights/", self.weights, methods=["GET"]),
            Route("/sam/weights/", self.refuse_weights, methods=["POST"]),
            Route("/sam/weights/cancel/", self.cancel, methods=["GET"]),
            Route("/sam/progress/", self.progress, methods=["GET"]),
        ]

    async def version(self, request: Request) -> Response:
        """Return the version."""
        return PlainTextResponse(__version__)

    async def weights(self, request: Request) -> Response:
        """List the adapters in the place of weights, for whichever type is asked."""
        kind = request.query_params.get("type", "vit_b")[:50]
        return JSONResponse(
            [
                {"type": kind, "name": model.name, "url": f"{SCHEME}{model.name}"}
                for model in self.state.models
                if model.takes_prompts
            ]
        )

    async def refuse_weights(self, request: Request) -> Response:
        """Refuse to download anything."""
        raise RefusedError(403, "this server downloads nothing; start it with other adapters")

    async def cancel(self, request: Request) -> Response:
        """Accept that a download is cancelled; there is none."""
        return PlainTextResponse("no download is running")

    async def progress(self, request: Request) -> Response:
        """Say that no download is running."""
        return JSONResponse({"message": None, "percent": -1})

    async def prompt(self, request: Request) -> Response:
        """Segment one object."""
        body = await read_body(request, PromptBody, self.state.limits)
        view = await self._view(body)
        prompts = _prompts(body, view)
        made = await self.state.call(lambda: ServedObject(view))
        await self.state.compute(made.prompt(prompts, carry=False))
        found = made.slices[:, :, 0] != 0
        return JSONResponse([_feature(found, 0, made.predicted_iou.get(0, 0.0), view.model)])

    async def everything(self, request: Request) -> Response:
        """Find the masks of everything."""
        body = await read_body(request, EverythingBody, self.state.limits)
        view = await self._view(body)
        side, least = body.points_per_side or 32, body.min_mask_region_area
        found = await self.state.call(lambda: find_everything(view, side, least))
        features = [
            _feature(mask, number, quality, view.model)
            for number, (mask, quality) in enumerate(found)
        ]
        return JSONResponse(features)

    async def _view(self, body: PictureBody) -> ImageView:
        """Return the picture as the wanted model sees it.

        Raises:
            RefusedError: it is no picture, or the weights are none of this server's (403).
        """
        url = body.checkpoint_url
        if url and not url.startswith(SCHEME):
            raise RefusedError(403, "checkpoint_url: this server downloads nothing")
        model = self.state.models.get(url.removeprefix(SCHEME) if url else None)
        try:
            content = base64.b64decode(body.b64img, validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError(422, "b64img: expected base64") from None
        image = await self.state.picture(content, "picture.png")  # readers look at its bytes
        return await self.state.call(lambda: image.seen_by(model))


def _prompts(body: PromptBody, view: ImageView) -> list[SlicePrompt]:
    prompts = []
    if body.bbox is not None:
        box = np.array(body.bbox, dtype=np.float64)
        prompts.append(box_between(view.shape, box, 0, 0, inside=True))
    points = np.array(body.point_coords or (), dtype=np.float64).reshape(-1, 2)
    labels = body.point_labels or [1] * len(points)
    if len(labels) != len(points):
        raise RefusedError(422, f"point_labels: expected {len(points)}; got {len(labels)}")
    for inside in (True, False):
        chosen = points[[bool(label) == inside for label in labels]]
        if len(chosen):
            prompts.append(click(view.shape, 0, chosen, inside=inside))
    if not prompts:
        raise RefusedError(422, "expected bbox or point_coords")
    return prompts


def _feature(mask: Array, number: int, quality: float | None, model: ServedModel) -> dict[str, Any]:
    """Return a mask (h, w) as a GeoJSON feature."""
    return {
        "type": "Feature",
        "geometry": polygons(mask),
        "properties": {
            "object_idx": number,
            "label": "object",
            "quality": quality,
            "sam_model": model.name,
        },
    }
