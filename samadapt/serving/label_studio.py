"""Label Studio's ML backend below ``/label-studio``: clicks and boxes become brush labels.

Label Studio sends no header of ours, so its project is given the address
``http://HOST:PORT/token/TOKEN/label-studio``. It calls ``/setup`` and ``/health`` when it is
connected, ``/predict`` with what a person has drawn, and ``/webhook`` after events. The server
trains nothing, so events change nothing.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from samadapt.serving.bodies import ForeignBody, read_body
from samadapt.serving.label_studio_files import inline
from samadapt.serving.label_studio_rle import brush_runs
from samadapt.serving.prompting import SlicePrompt, box_between, click
from samadapt.serving.refused import RefusedError
from samadapt.serving.served_object import ServedObject

if TYPE_CHECKING:
    from starlette.requests import Request

    from samadapt.serving.served_image import ImageView
    from samadapt.serving.server_state import ServerState

MOST_CONFIGURATION = 200_000
"""Letters of a labelling configuration."""


class Context(ForeignBody):
    """What a person has drawn."""

    result: list[dict[str, Any]] = Field(default_factory=list, max_length=1000)


class PredictParameters(ForeignBody):
    """Parameters of a prediction."""

    context: Context | None = None


class PredictBody(ForeignBody):
    """Tasks to answer; with a context it is one."""

    tasks: list[dict[str, Any]] = Field(default_factory=list, max_length=1000)
    label_config: str | None = Field(default=None, max_length=MOST_CONFIGURATION)
    params: PredictParameters | None = None


class SetupBody(ForeignBody):
    """A project that is connected."""

    schema_: str | None = Field(default=None, alias="schema", max_length=MOST_CONFIGURATION)


class LabelStudio:
    """The routes of the backend.

    Args:
        state: what the protocols share.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state

    @property
    def version(self) -> str:
        """What predictions are marked with."""
        return f"samadapt {self.state.models.first.name}"

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/label-studio", self.health, methods=["GET"]),
            Route("/label-studio/", self.health, methods=["GET"]),
            Route("/label-studio/health", self.health, methods=["GET"]),
            Route("/label-studio/setup", self.setup, methods=["POST"]),
            Route("/label-studio/predict", self.predict, methods=["POST"]),
            Route("/label-studio/webhook", self.webhook, methods=["POST"]),
        ]

    async def health(self, request: Request) -> Response:
        """Say that the backend is there."""
        return JSONResponse({"status": "UP", "model_class": "samadapt"})

    async def setup(self, request: Request) -> Response:
        """Accept a project whose configuration has brush labels."""
        body = await read_body(request, SetupBody, self.state.limits)
        if body.schema_:
            brush_tag(body.schema_)
        return JSONResponse({"model_version": self.version})

    async def webhook(self, request: Request) -> Response:
        """Accept an event, which changes nothing."""
        await read_body(request, ForeignBody, self.state.limits)
        return JSONResponse({"status": "ok"}, 201)

    async def predict(self, request: Request) -> Response:
        """Answer to what a person has drawn; without a drawing there is nothing to answer."""
        body = await read_body(request, PredictBody, self.state.limits)
        drawn = body.params.context.result if body.params and body.params.context else []
        if not drawn or not body.tasks:
            return JSONResponse({"results": [{"result": [], "score": 0.0} for _ in body.tasks]})
        if not body.label_config:
            raise RefusedError(422, "label_config: expected the configuration of the project")
        tag = brush_tag(body.label_config)
        view = await self._view(body.tasks[0], tag.key)
        prompts, label = _prompts(drawn, view)
        made = await self.state.call(lambda: ServedObject(view))
        await self.state.compute(made.prompt(prompts, carry=False))
        mask = made.slices[:, :, 0] != 0
        quality = made.predicted_iou.get(0, 0.0)
        height, width = mask.shape
        result = {
            "id": secrets.token_hex(5),
            "from_name": tag.name,
            "to_name": tag.to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "type": "brushlabels",
            "value": {
                "format": "rle",
                "rle": await self.state.read(lambda: brush_runs(mask)),
                "brushlabels": [label],
            },
            "score": quality,
            "readonly": False,
        }
        answer = {"result": [result], "score": quality, "model_version": self.version}
        return JSONResponse({"results": [answer]})

    async def _view(self, task: dict[str, Any], key: str) -> ImageView:
        """Return the image of a task as the first model sees it."""
        data = task.get("data")
        address = data.get(key) if isinstance(data, dict) else None
        if not isinstance(address, str):
            raise RefusedError(422, f"tasks[0].data: expected the address of the image as {key!r}")
        files, most = self.state.label_studio, self.state.limits.upload_bytes
        if address.startswith("data:"):
            content = inline(address)
        elif files is None:
            raise RefusedError(
                403, "images are fetched only from the address that label_studio= names"
            )
        else:
            content = await self.state.read(lambda: files.fetch(address, most))
        image = await self.state.picture(content, "image.png")
        return await self.state.call(lambda: image.seen_by(self.state.models.first))


class BrushTag:
    """The brush labels of a configuration.

    Args:
        name: of the tag.
        to_name: of the image that it labels.
        key: of the image in a task's data.
    """

    def __init__(self, name: str, to_name: str, key: str) -> None:
        self.name, self.to_name, self.key = name, to_name, key


def brush_tag(text: str) -> BrushTag:
    """Return the brush labels of a labelling configuration.

    Raises:
        RefusedError: it is no XML, or has no ``BrushLabels`` for an ``Image`` (422).
    """
    if "<!" in text.replace("<!--", ""):  # entities can grow without a bound
        raise RefusedError(422, "label_config: declarations are not accepted")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        raise RefusedError(422, "label_config: expected XML") from None
    images = {one.get("name"): one.get("value", "") for one in root.iter("Image")}
    for brush in root.iter("BrushLabels"):
        to_name = brush.get("toName")
        if to_name in images and brush.get("name"):
            return BrushTag(str(brush.get("name")), str(to_name), images[to_name].lstrip("$"))
    raise RefusedError(
        422,
        "label_config: expected BrushLabels for an Image; clicks come from KeyPointLabels and "
        'boxes from RectangleLabels, both with smart="true"',
    )


def _prompts(drawn: list[dict[str, Any]], view: ImageView) -> tuple[list[SlicePrompt], str]:
    """Return what a person has drawn, in pixels, and the label of the last drawing.

    Raises:
        RefusedError: it is neither a key point nor a rectangle (422).
    """
    height, width, _ = view.shape
    prompts, label = [], ""
    for one in drawn:
        kind, value = one.get("type"), one.get("value")
        if kind not in ("keypointlabels", "rectanglelabels") or not isinstance(value, dict):
            raise RefusedError(422, "expected key points and rectangles")
        names = value.get(kind)
        label = str(names[0])[:200] if isinstance(names, list) and names else label
        # Label Studio measures in percent of the picture.
        x, y = _percent(value, "x", width), _percent(value, "y", height)
        if kind == "keypointlabels":
            inside = bool(one.get("is_positive", True))
            prompts.append(click(view.shape, 0, np.array([[x, y]]), inside=inside))
            continue
        box = [x, y, x + _percent(value, "width", width), y + _percent(value, "height", height)]
        prompts.append(box_between(view.shape, np.array(box), 0, 0, inside=True))
    return prompts, label


def _percent(value: dict[str, Any], name: str, side: int) -> float:
    share = value.get(name)
    if isinstance(share, bool) or not isinstance(share, int | float) or not abs(share) < 1e6:
        raise RefusedError(422, f"{name}: expected a number of percent")
    return share * side / 100
