"""The plain interface below ``/api``: send an image, prompt objects in it, fetch their masks.

An image is encoded once and prompted any number of times, by several adapters. Its address holds a
token that nobody can guess, and it is dropped when nobody has used it for a while.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from samadapt.data.intensity import visible
from samadapt.errors import UserError
from samadapt.inference.options import PredictionOptions
from samadapt.serving.bodies import read_body, read_bytes
from samadapt.serving.masks_out import file_of, from_run_lengths, labels_of, run_lengths
from samadapt.serving.prompting import (
    SlicePrompt,
    box_between,
    click,
    lasso,
    polygon,
    rough_masks,
)
from samadapt.serving.refused import RefusedError
from samadapt.serving.rest_bodies import (
    Accepted,
    BatchBody,
    BatchPicture,
    ChosenAdapter,
    Labelled,
    NewObject,
    Prompt,
)
from samadapt.serving.served_object import Change, ServedObject
from samadapt.serving.uploads import file_name, image_of_file, stem
from samadapt.system import atomic

if TYPE_CHECKING:
    from starlette.requests import Request

    from samadapt.serving.served_image import ImageView, ServedImage
    from samadapt.serving.served_models import ServedModel
    from samadapt.serving.server_state import ServerState
    from samadapt.serving.sessions import Session
    from samadapt.system.arrays import Array

MEDIA = {"png": "image/png", "nii.gz": "application/gzip", "json": "application/json"}


class Rest:
    """The routes of the interface.

    Args:
        state: what the protocols share.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[Route]:
        """Return the routes; the first line of each docstring describes it."""
        image, one = "/api/images/{image}", "/api/images/{image}/objects/{number:int}"
        return [
            Route("/api/adapters", self.adapters, methods=["GET"]),
            Route("/api/images", self.add_image, methods=["POST"]),
            Route(image, self.image, methods=["GET"]),
            Route(image, self.drop_image, methods=["DELETE"]),
            Route(image + "/encode", self.encode, methods=["POST"]),
            Route(image + "/slices/{index:int}", self.picture, methods=["GET"]),
            Route(image + "/classes", self.classes, methods=["POST"]),
            Route(image + "/labels", self.labels, methods=["GET"]),
            Route(image + "/accept", self.accept, methods=["POST"]),
            Route(image + "/objects", self.add_object, methods=["POST"]),
            Route(one, self.drop_object, methods=["DELETE"]),
            Route(one, self.relabel, methods=["PATCH"]),
            Route(one + "/prompts", self.prompt, methods=["POST"]),
            Route(one + "/carry", self.carry, methods=["POST"]),
            Route(one + "/undo", self.undo, methods=["POST"]),
            Route(one + "/mask", self.mask, methods=["GET"]),
            Route(one + "/masks", self.masks, methods=["GET"]),
            Route("/api/batch", self.batch, methods=["POST"]),
        ]

    async def adapters(self, request: Request) -> Response:
        """List the models with their classes and prompts."""
        return JSONResponse([_described(model) for model in self.state.models])

    async def add_image(self, request: Request) -> Response:
        """Send the bytes of a file and get the address of the image."""
        state = self.state
        name = file_name(request.query_params.get("name", ""))
        model = state.models.get(request.query_params.get("adapter"))
        content = await read_bytes(request, state.limits.upload_bytes)
        session = state.sessions.claim(heartbeats=False)
        try:
            image = await state.read(
                lambda: image_of_file(content, name, state.models, state.limits)
            )
            state.sessions.replace_image(session, image)
            view = await state.call(lambda: image.seen_by(model))
        except BaseException:
            state.sessions.release(session.token)
            raise
        state.encode_ahead(view)
        return JSONResponse({"image": session.token, **_about(view)}, 201)

    async def image(self, request: Request) -> Response:
        """Say what is encoded, which objects there are, and how long the image is kept."""
        session, image = self._image(request, acts=False)
        return JSONResponse(
            {
                "name": image.name,
                "remaining_seconds": self.state.sessions.remaining(session),
                "encoded": {
                    name: {"slices": done, "of": count}
                    for name, (done, count) in image.encoded().items()
                },
                "objects": [
                    {
                        "object": number,
                        "adapter": one.view.model.name,
                        "label": one.label,
                        "pixels": int(np.count_nonzero(one.mask)),
                    }
                    for number, one in session.objects.items()
                ],
            }
        )

    async def drop_image(self, request: Request) -> Response:
        """Drop the image with its objects."""
        self.state.sessions.release(request.path_params["image"])
        return JSONResponse({})

    async def encode(self, request: Request) -> Response:
        """Begin to encode the image for another adapter."""
        _, image = self._image(request)
        body = await read_body(request, ChosenAdapter, self.state.limits)
        model = self.state.models.get(body.adapter)
        view = await self.state.call(lambda: image.seen_by(model))
        self.state.encode_ahead(view)
        return JSONResponse(_about(view))

    async def picture(self, request: Request) -> Response:
        """Return a slice as the model sees it, as PNG."""
        _, image = self._image(request)
        model = self.state.models.get(request.query_params.get("adapter"))
        index = int(request.path_params["index"])

        def draw() -> bytes:
            from PIL import Image

            view = image.seen_by(model)
            if index >= view.shape[2]:
                raise RefusedError(404, f"slice must be 0 to {view.shape[2] - 1}; got {index}")
            out = BytesIO()
            Image.fromarray(visible(view.pictures(index))).save(out, format="png")
            return out.getvalue()

        return Response(await self.state.call(draw), media_type="image/png")

    async def classes(self, request: Request) -> Response:
        """Find the classes of the whole image without prompts."""
        session, image = self._image(request)
        body = await read_body(request, ChosenAdapter, self.state.limits)
        model = self.state.models.get(body.adapter)
        async with session.lock:
            found = await self.state.call(lambda: _found_classes(image.seen_by(model)))
        return JSONResponse({"classes": model.classes, "slices": found})

    async def labels(self, request: Request) -> Response:
        """Return objects as a file: format=png, json (COCO) or nii.gz; objects=1,2: only these."""
        session, image = self._image(request)
        ending = request.query_params.get("format", "")
        numbers = _numbers(request.query_params.get("objects"))
        if ending not in MEDIA:
            raise RefusedError(422, f"format: expected {', '.join(MEDIA)}; got {ending[:20]!r}")
        async with session.lock:
            content = await self.state.read(
                lambda: self._labels_file(session, image, numbers, ending)
            )
        disposition = f'attachment; filename="labels.{ending}"'
        return Response(
            content, media_type=MEDIA[ending], headers={"Content-Disposition": disposition}
        )

    async def accept(self, request: Request) -> Response:
        """Write the objects as a mask into the folder that samadapt engine accept reads."""
        session, image = self._image(request)
        body = await read_body(request, Accepted, self.state.limits)
        folder = self.state.corrections
        if folder is None:
            raise RefusedError(409, "this server keeps no masks; start it with corrections=FOLDER")
        async with session.lock:
            if not session.objects:
                raise RefusedError(409, "there is no object yet")
            is_picture = next(iter(session.objects.values())).view.volume.source is None
            ending = "png" if is_picture else "nii.gz"
            content = await self.state.read(
                lambda: self._labels_file(session, image, body.objects, ending)
            )
            # The name has neither folders nor special characters (uploads.file_name).
            path = folder / f"{stem(image.name)}.{ending}"
            await self.state.read(lambda: atomic.write_bytes(path, content))
        return JSONResponse({"file": path.name})

    async def add_object(self, request: Request) -> Response:
        """Begin an object."""
        session, image = self._image(request)
        body = await read_body(request, NewObject, self.state.limits)
        model = self.state.models.get(body.adapter)
        _check_label(body.label, model)
        async with session.lock:
            if len(session.objects) >= self.state.limits.objects:
                raise RefusedError(409, f"an image has at most {self.state.limits.objects} objects")
            made = await self.state.call(lambda: ServedObject(image.seen_by(model), body.label))
            number = max(session.objects, default=0) + 1
            session.objects[number] = made
        return JSONResponse({"object": number}, 201)

    async def drop_object(self, request: Request) -> Response:
        """Drop an object."""
        session, _ = self._image(request)
        async with session.lock:
            session.objects.pop(request.path_params["number"], None)
        return JSONResponse({})

    async def relabel(self, request: Request) -> Response:
        """Give an object another class."""
        session, _ = self._image(request)
        body = await read_body(request, Labelled, self.state.limits)
        async with session.lock:
            one = self._object(session, request)
            _check_label(body.label, one.view.model)
            one.label = body.label
        return JSONResponse({})

    async def prompt(self, request: Request) -> Response:
        """Add a prompt and get the mask of its slice."""
        body = await read_body(request, Prompt, self.state.limits)
        session, _ = self._image(request)
        async with session.lock:
            one = self._object(session, request)
            wanted = await self.state.read(lambda: _prompts(body, one.view))
            if body.kind == "mask":
                change = await self.state.call(lambda: one.start_from(wanted))
            else:
                change = await self.state.compute(one.prompt(wanted, carry=body.carry))
            return JSONResponse(_changed(one, change, wanted[0].index))

    async def carry(self, request: Request) -> Response:
        """Carry the object from its prompted slices to the others."""
        session, _ = self._image(request)
        async with session.lock:
            one = self._object(session, request)
            return JSONResponse(_changed(one, await self.state.compute(one.carry()), None))

    async def undo(self, request: Request) -> Response:
        """Take the last prompt back."""
        session, _ = self._image(request)
        async with session.lock:
            one = self._object(session, request)
            change = await self.state.call(one.undo)
            if change is None:
                raise RefusedError(409, "there is nothing to undo")
            return JSONResponse(_changed(one, change, None))

    async def mask(self, request: Request) -> Response:
        """Return the mask of a slice (slice=N) as run lengths."""
        session, _ = self._image(request)
        one = self._object(session, request)
        text = request.query_params.get("slice", "0")
        depth = one.view.shape[2]
        if not (text.isascii() and text.isdecimal() and len(text) < 8 and int(text) < depth):
            raise RefusedError(422, f"slice: expected 0 to {depth - 1}")
        return JSONResponse({"mask": run_lengths(one.slices[:, :, int(text)])})

    async def masks(self, request: Request) -> Response:
        """Return the masks of all slices that the object reaches, as run lengths."""
        session, _ = self._image(request)
        one = self._object(session, request)
        return JSONResponse(await self.state.read(lambda: _all_masks(one)))

    async def batch(self, request: Request) -> Response:
        """Segment several pictures; one that fails does not stop the others."""
        body = await read_body(request, BatchBody, self.state.limits)
        if len(body.pictures) > self.state.limits.batch:
            raise RefusedError(413, f"a batch has at most {self.state.limits.batch} pictures")
        model = self.state.models.get(body.adapter)
        rows = []
        for one in body.pictures:
            try:
                rows.append({"name": one.name} | await self._of_batch(one, model))
            except RefusedError as error:
                rows.append({"name": one.name, "error": error.detail})
            except UserError as error:
                rows.append({"name": one.name, "error": str(error)})
        return JSONResponse({"pictures": rows})

    async def _of_batch(self, body: BatchPicture, model: ServedModel) -> dict[str, Any]:
        """Segment one picture of a batch."""
        state = self.state
        try:
            content = base64.b64decode(body.data, validate=True)
        except (binascii.Error, ValueError):
            raise RefusedError(422, "data: expected base64") from None
        name = file_name(body.name)
        image = await state.read(lambda: image_of_file(content, name, state.models, state.limits))
        try:
            view = await state.call(lambda: image.seen_by(model))
            prompts = _batch_prompts(body, view)
            if not prompts:
                found = await state.call(lambda: _found_classes(view))
                return {"classes": model.classes, "slices": found}
            objects = []
            for prompt in prompts:
                made = ServedObject(view)
                await state.compute(made.prompt([prompt], carry=False))
                objects.append(_answer(made, prompt.index))
            return {"objects": objects}
        finally:
            state.close_image(image)

    def _labels_file(
        self, session: Session, image: ServedImage, numbers: Sequence[int] | None, ending: str
    ) -> bytes:
        """Return the objects of an image as a file.

        An object of the base has the classes of the first adapter.

        Raises:
            RefusedError: there is no such object (404), or none at all (409).
        """
        wanted = list(session.objects) if numbers is None else list(numbers)
        if missing := [number for number in wanted if number not in session.objects]:
            raise RefusedError(404, f"there is no object {missing[0]}")
        if not wanted:
            raise RefusedError(409, "there is no object yet")
        objects = [session.objects[number] for number in wanted]
        default = self.state.models.first.classes
        classes = list(
            dict.fromkeys(name for one in objects for name in one.view.model.classes or default)
        )
        volume = objects[0].view.volume
        return file_of(labels_of(objects, classes), volume, image.name, classes, ending)

    def _image(self, request: Request, *, acts: bool = True) -> tuple[Session, ServedImage]:
        session = self.state.sessions.get(request.path_params["image"], acts=acts)
        return session, session.open_image()

    def _object(self, session: Session, request: Request) -> ServedObject:
        number = request.path_params["number"]
        if number not in session.objects:
            raise RefusedError(404, f"there is no object {str(number)[:20]}")
        return session.objects[number]


def _described(model: ServedModel) -> dict[str, Any]:
    record = model.bundle.record
    return {
        "name": model.name,
        "is_base": model.is_base,
        "base": record.base,
        "classes": model.classes,
        "takes_prompts": model.takes_prompts,
        "finds_classes": model.finds_classes,
        "trained_with": [] if model.is_base else list(model.bundle.policy.kinds),
        "image_size": model.sam.image_size,
        "channels": model.channels,
        "axis": record.axis,
        "notes": model.notes,
    }


def _about(view: ImageView) -> dict[str, Any]:
    height, width, depth = view.shape
    spacing, rule = view.volume.spacing_mm, view.pictures.rule
    return {
        "adapter": view.model.name,
        "height": height,
        "width": width,
        "slices": depth,
        "spacing_mm": None if spacing is None else list(spacing),
        "axes": view.axes.described() if view.volume.source is not None else None,
        "window": [rule.low, rule.high] if rule.kind == "window" else None,
    }


def _answer(one: ServedObject, index: int) -> dict[str, Any]:
    return {
        "slice": index,
        "mask": run_lengths(one.slices[:, :, index]),
        "predicted_iou": one.predicted_iou.get(index),
    }


def _all_masks(one: ServedObject) -> dict[str, Any]:
    reached = np.flatnonzero(one.slices.any(axis=(0, 1)))
    return {
        "masks": {str(index): run_lengths(one.slices[:, :, index]) for index in reached},
        "predicted_iou": {str(index): iou for index, iou in one.predicted_iou.items()},
    }


def _changed(one: ServedObject, change: Change, index: int | None) -> dict[str, Any]:
    """Return what an action changed, and the mask of the slice on which it was."""
    about: dict[str, Any] = {"changed_slices": list(change.slices)}
    return about if index is None else about | _answer(one, index)


def _check_label(label: str, model: ServedModel) -> None:
    if label and model.classes and label not in model.classes:
        raise RefusedError(422, f"label: expected one of {', '.join(model.classes)}")


def _numbers(text: str | None) -> list[int] | None:
    """Return the numbers in ``1,2``; None: there is no text."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,7}(,[0-9]{1,7}){0,254}", text):
        raise RefusedError(422, f"objects: expected numbers as 1,2; got {text[:40]!r}")
    return [int(number) for number in text.split(",")]


def _prompts(body: Prompt, view: ImageView) -> Sequence[SlicePrompt]:
    """Return a client's prompt in the slices of the model.

    Raises:
        PromptError: it lies outside of the image, or lacks what its kind needs.
    """
    shape, points = view.shape, np.array(body.points, dtype=np.float64).reshape(-1, 2)
    if body.kind == "box":
        if body.box is None:
            raise RefusedError(422, "box: expected [x0, y0, x1, y1] for kind=box")
        last = body.slice if body.last_slice is None else body.last_slice
        first, last = sorted((body.slice, last))
        box = np.array(body.box, dtype=np.float64)
        return [box_between(shape, box, first, last, inside=body.inside)]
    if body.kind == "mask":
        if body.mask is None:
            raise RefusedError(422, "mask: expected run lengths for kind=mask")
        if tuple(body.mask.size) != shape[:2] or body.slice >= shape[2]:
            raise RefusedError(422, f"mask: expected the size {list(shape[:2])} of a slice")
        drawn = np.zeros(shape, np.uint8)
        drawn[:, :, body.slice] = from_run_lengths(body.mask.size, body.mask.counts)
        return list(rough_masks(drawn))
    if body.kind == "lasso":
        return list(lasso(polygon(shape, body.slice, points), inside=body.inside))
    if body.kind == "scribble":
        points = _along(points, view.model.bundle.policy.scribble_points)
    return [click(shape, body.slice, points, inside=body.inside)]


def _along(points: Array, count: int) -> Array:
    """Return points at equal distances along a curve, as in training."""
    from samadapt.prompts.scribbles import resampled

    return resampled(points.astype(np.float32), count) if len(points) > 1 else points


def _batch_prompts(body: BatchPicture, view: ImageView) -> list[SlicePrompt]:
    if body.boxes and body.points:
        raise RefusedError(422, "a picture of a batch has boxes or points, not both")
    if body.boxes:
        return [
            box_between(view.shape, np.array(box, dtype=np.float64), 0, 0, inside=True)
            for box in body.boxes
        ]
    return [
        click(view.shape, 0, np.array([point], dtype=np.float64), inside=True)
        for point in body.points
    ]


def _found_classes(view: ImageView) -> list[dict[str, Any]]:
    """Return the classes that a model finds without prompts, by slice as run lengths.

    Raises:
        RefusedError: the model needs prompts (422).
    """
    model = view.model
    if not model.finds_classes:
        raise RefusedError(422, f"adapter {model.name!r} was trained with prompts and needs one")
    found = model.predictor().segment(view.volume, PredictionOptions())
    rows = []
    for index in range(view.shape[2]):
        for class_id, name in enumerate(model.classes, start=1):
            labels = found.maps[class_id - 1 if len(found.maps) > 1 else 0][:, :, index]
            mask = labels == class_id
            if mask.any():
                rows.append({"slice": index, "class": name, "mask": run_lengths(mask)})
    return rows
