"""nnInteractive's remote protocol 2.6, which 3D Slicer, napari and MITK speak.

A client claims a session and names it in the header ``X-Lease-Token``. It sends an image
(c, z, y, x) and then points, boxes, scribbles, lassos and initial segmentations in voxels of this
array. Every answer has the part of the mask that changed, and its place in the header ``X-Meta``.
The model answers in its slices, and the answer is carried through the volume.

A session that has expired is answered with 410, and a claim at a full server with 503.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from samadapt.data.formats.shared.volume_slices import slices_view
from samadapt.errors import UserError
from samadapt.serving.bodies import ForeignBody, checked, read_body, read_bytes
from samadapt.serving.packed_arrays import DTYPES, pack, unpack
from samadapt.serving.prompting import (
    SlicePrompt,
    box_between,
    click,
    lasso,
    rough_masks,
    scribble,
)
from samadapt.serving.refused import RefusedError
from samadapt.serving.served_object import Change, ServedObject
from samadapt.serving.uploads import image_of_array

if TYPE_CHECKING:
    from starlette.requests import Request

    from samadapt.serving.served_image import ImageView
    from samadapt.serving.server_state import ServerState
    from samadapt.serving.sessions import Session
    from samadapt.serving.worker import Job
    from samadapt.system.arrays import Array

LEASE, META = "x-lease-token", "x-meta"
VERSION = 2
"""The version of the session that a client sees; 2 has ``supported_interactions``."""

Three = tuple[int, int, int]
Sides = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class InteractionBody(ForeignBody):
    """What every interaction says."""

    include_interaction: bool = True
    run_prediction: bool = True


class PointBody(InteractionBody):
    """A point, a voxel (z, y, x)."""

    coordinates: Three


class BoxBody(InteractionBody):
    """A box: the first voxel and the one after the last, along each axis."""

    bbox_coords: Sides


class DrawingBody(InteractionBody):
    """What is said beside a drawing: where it lies, if it is a part of the image."""

    interaction_bbox: Sides | None = None


class InitialBody(ForeignBody):
    """What is said beside an initial segmentation."""

    run_prediction: bool = False


class ImageBody(ForeignBody):
    """What is said beside an image."""

    image_properties: dict[str, Any] = Field(default_factory=dict)


class BufferBody(ForeignBody):
    """The array into which the client writes the mask."""

    shape: list[int] = Field(min_length=2, max_length=3)
    dtype: str = Field(max_length=20)


class NnInteractive:
    """The routes of the protocol.

    Args:
        state: what the protocols share.
    """

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[Route]:
        """Return the routes, which lie at the root."""
        gets = {
            "/healthz": self.health,
            "/capabilities": self.capabilities,
            "/lease_status": self.lease_status,
        }
        posts = {
            "/claim": self.claim,
            "/release": self.release,
            "/heartbeat": self.heartbeat,
            "/set_image": self.set_image,
            "/set_target_buffer": self.set_target_buffer,
            "/set_do_autozoom": self.set_do_autozoom,
            "/reset_interactions": self.reset,
            "/undo": self.undo,
            "/predict": self.predict,
            "/add_point_interaction": self.add_point,
            "/add_bbox_interaction": self.add_box,
            "/add_scribble_interaction": self.add_scribble,
            "/add_lasso_interaction": self.add_lasso,
            "/add_initial_seg_interaction": self.add_initial,
        }
        return [
            *(Route(path, _as_400(answer), methods=["GET"]) for path, answer in gets.items()),
            *(Route(path, _as_400(answer), methods=["POST"]) for path, answer in posts.items()),
        ]

    async def health(self, request: Request) -> Response:
        """Say that the server is there."""
        return JSONResponse({"ok": True})

    async def capabilities(self, request: Request) -> Response:
        """Say which interactions the default model answers to."""
        model = self.state.models.first
        kinds = ("points", "bbox2d", "bbox3d", "scribble", "lasso")
        return JSONResponse(
            {
                "supported_interactions": dict.fromkeys(kinds, model.takes_prompts),
                # The model has no channels for interactions; clients show these to nobody.
                "channel_mapping": {kind: [2 * i, 2 * i + 1] for i, kind in enumerate(kinds)},
                "num_interaction_channels": 2 * len(kinds),
                "supports_initial_label": model.takes_prompts,
                "supports_zero_shot_label_refinement": model.takes_prompts,
                "preferred_scribble_thickness": [1, 1, 1],
                "interaction_decay": None,
                "patch_size": [1, model.sam.image_size, model.sam.image_size],
                "do_autozoom": False,
                "inference_session_version": VERSION,
                "supports_undo": True,
                "license": model.bundle.record.licence or "!!MISSING!!",
            }
        )

    async def claim(self, request: Request) -> Response:
        """Open a session."""
        session = self.state.sessions.claim(heartbeats=True)
        limits = self.state.limits
        return JSONResponse(
            {
                "lease_token": session.token,
                "idle_timeout_seconds": limits.idle_seconds,
                "liveness_timeout_seconds": limits.liveness_seconds,
                "max_sessions": limits.sessions,
            }
        )

    async def release(self, request: Request) -> Response:
        """End a session; one that has ended already is no mistake."""
        self.state.sessions.release(request.headers.get(LEASE))
        return JSONResponse({"released": True})

    async def heartbeat(self, request: Request) -> Response:
        """Note that the client is there; its user may still be idle."""
        session = self.state.sessions.get(request.headers.get(LEASE), acts=False)
        return JSONResponse({"remaining_seconds": self.state.sessions.remaining(session)})

    async def lease_status(self, request: Request) -> Response:
        """Say how long the session lasts without changing that."""
        session = self.state.sessions.peek(request.headers.get(LEASE))
        return JSONResponse(
            {
                "remaining_seconds": self.state.sessions.remaining(session),
                "idle_timeout_seconds": self.state.limits.idle_seconds,
            }
        )

    async def set_image(self, request: Request) -> Response:
        """Take an image (c, z, y, x) in the place of the last one, and begin to encode it."""
        session = self._session(request)
        about = _meta(request, ImageBody)
        state = self.state
        body = await read_bytes(request, state.limits.upload_bytes)
        values = await state.read(lambda: unpack(body, state.limits.voxels))
        if values.ndim != 4:
            raise RefusedError(400, f"an image must be (c, z, y, x); got shape {values.shape}")
        spacing = about.image_properties.get("spacing")
        image = await state.read(
            lambda: image_of_array(values, spacing, state.models, state.limits)
        )
        async with session.lock:
            state.sessions.replace_image(session, image)
            try:
                view = await state.call(lambda: image.seen_by(state.models.first))
            except BaseException:
                state.sessions.drop_image(session)
                raise
            if view.model.takes_prompts:
                session.objects[1] = ServedObject(view)
            state.encode_ahead(view)
        return JSONResponse({"original_image_shape": list(values.shape)})

    async def set_target_buffer(self, request: Request) -> Response:
        """Note the array of the client; it must be as large as the image, or (y, x) of a picture.

        The client converts what it gets to the type of its array.
        """
        session = self._session(request)
        body = await read_body(request, BufferBody, self.state.limits)
        if body.dtype.removeprefix("torch.") not in DTYPES:
            raise RefusedError(400, f"dtype: expected one of {', '.join(DTYPES)}")
        if session.objects:
            sides = session.objects[1].mask.shape
            if tuple(body.shape) != sides:
                raise RefusedError(400, f"shape: expected that of the image, {list(sides)}")
        return JSONResponse({})

    async def set_do_autozoom(self, request: Request) -> Response:
        """Accept the setting, which has no meaning here: whole slices are seen."""
        self._session(request)
        return JSONResponse({})

    async def reset(self, request: Request) -> Response:
        """Forget the object; the image stays encoded."""
        session = self._session(request)
        async with session.lock:
            if 1 in session.objects:
                session.objects[1] = ServedObject(session.objects[1].view)
        return JSONResponse({})

    async def undo(self, request: Request) -> Response:
        """Take the last interaction back."""
        session = self._session(request)
        async with session.lock:
            known = self._object(session)
            change = await self.state.call(known.undo)
            return _answer(known, change)

    async def predict(self, request: Request) -> Response:
        """Answer the interactions that were added without an answer."""
        session = self._session(request)
        async with session.lock:
            known = self._object(session)
            if not known.is_due:
                return _answer(known, None)
            return _answer(known, await self.state.compute(known.answer()))

    async def add_point(self, request: Request) -> Response:
        """Answer to a point."""
        body = await read_body(request, PointBody, self.state.limits)

        def prompts(view: ImageView) -> Sequence[SlicePrompt]:
            sides = _sides(view)
            if not all(0 <= at < side for at, side in zip(body.coordinates, sides, strict=True)):
                raise RefusedError(
                    400, f"coordinates: expected a voxel of {sides}; got {body.coordinates}"
                )
            place = view.axes.to_slices([(at, at + 1) for at in body.coordinates])
            (row, _), (column, _), (index, _) = place
            points = np.array([[column + 0.5, row + 0.5]])
            return [click(view.shape, index, points, inside=body.include_interaction)]

        return await self._add(request, body, prompts)

    async def add_box(self, request: Request) -> Response:
        """Answer to a box: in one plane, or across slices, which then bound the object."""
        body = await read_body(request, BoxBody, self.state.limits)

        def prompts(view: ImageView) -> Sequence[SlicePrompt]:
            ranges = _within(body.bbox_coords, _sides(view))
            (y0, y1), (x0, x1), (first, end) = view.axes.to_slices(ranges)
            box = np.array([x0, y0, x1, y1], dtype=np.float64)
            inside = body.include_interaction
            return [box_between(view.shape, box, first, end - 1, inside=inside)]

        return await self._add(request, body, prompts)

    async def add_scribble(self, request: Request) -> Response:
        """Answer to a scribble."""

        def prompts(view: ImageView, drawn: Array, inside: bool) -> list[SlicePrompt]:
            count = view.model.bundle.policy.scribble_points
            return list(scribble(drawn, count, inside=inside))

        return await self._add_drawing(request, prompts)

    async def add_lasso(self, request: Request) -> Response:
        """Answer to a region, or its outline."""

        def prompts(view: ImageView, drawn: Array, inside: bool) -> list[SlicePrompt]:
            return list(lasso(drawn, inside=inside))

        return await self._add_drawing(request, prompts)

    async def add_initial(self, request: Request) -> Response:
        """Take a segmentation as it is; the model refines it only if the client asks for that."""
        session = self._session(request)
        body = _meta(request, InitialBody)
        drawn = await self._unpacked(request)
        async with session.lock:
            known = self._object(session)
            view = known.view
            slices = _in_slices(view, drawn, None)

            def begin() -> Change:
                return known.start_from(list(rough_masks(slices)))

            change = await self.state.call(begin)
            if not body.run_prediction:
                return _answer(known, change, ran=False)
            refined = await self.state.compute(known.refine())
            return _answer(known, refined)

    async def _add_drawing(
        self,
        request: Request,
        prompts: Callable[[ImageView, Array, bool], Sequence[SlicePrompt]],
    ) -> Response:
        body = _meta(request, DrawingBody)
        drawn = await self._unpacked(request)

        def on_slices(view: ImageView) -> Sequence[SlicePrompt]:
            slices = _in_slices(view, drawn, body.interaction_bbox)
            return prompts(view, slices, body.include_interaction)

        return await self._add(request, body, on_slices)

    async def _add(
        self,
        request: Request,
        body: InteractionBody,
        prompts: Callable[[ImageView], Sequence[SlicePrompt]],
    ) -> Response:
        """Add an interaction, and answer it if the client asks for that."""
        session = self._session(request)
        async with session.lock:
            known = self._object(session)
            wanted = await self.state.read(lambda: prompts(known.view))
            if not body.run_prediction:
                await self.state.call(lambda: known.add(wanted))
                return _answer(known, None)
            job: Job[Change] = known.prompt(wanted)
            change = await self.state.compute(job)
            if await request.is_disconnected():
                # The client did not wait, so it does not know of this interaction.
                await self.state.call(known.undo)
            return _answer(known, change)

    async def _unpacked(self, request: Request) -> Array:
        limits = self.state.limits
        body = await read_bytes(request, limits.upload_bytes)
        return await self.state.read(lambda: unpack(body, limits.voxels))

    def _session(self, request: Request) -> Session:
        return self.state.sessions.get(request.headers.get(LEASE))

    def _object(self, session: Session) -> ServedObject:
        """Return the object of a session.

        Raises:
            RefusedError: there is no image, or its model takes no prompts (400).
        """
        session.open_image()
        if 1 not in session.objects:
            raise RefusedError(400, f"{self.state.models.first.notes[0]}")
        return session.objects[1]


def _as_400(answer: Callable[[Request], Awaitable[Response]]) -> Any:
    """Turn refusals of content into status 400, the one that clients of this protocol expect."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except UserError as error:
            raise RefusedError(400, str(error)) from None
        except RefusedError as error:
            status = 400 if error.status == 422 else error.status
            raise RefusedError(status, error.detail, error.headers) from None

    return answered


def _meta(request: Request, kind: type[Any]) -> Any:
    """Return the header ``X-Meta``."""
    return checked(request.headers.get(META, "{}"), kind)


def _sides(view: ImageView) -> tuple[int, ...]:
    grid = view.volume.source
    return view.shape if grid is None else (*grid.shape, 1)[:3]


def _within(sides: Sides, shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return ranges clipped to an image; a range of no voxel is one of one voxel.

    Raises:
        RefusedError: one lies outside of the image (400).
    """
    found = []
    for (first, end), side in zip(sides, shape, strict=True):
        low, high = sorted((first, end))
        high = max(high, low + 1)
        if low >= side or high <= 0:
            raise RefusedError(
                400, f"expected a box within {list(shape)}; got {[list(one) for one in sides]}"
            )
        found.append((max(low, 0), min(high, side)))
    return found


def _in_slices(view: ImageView, drawn: Array, sides: Sides | None) -> Array:
    """Return a drawing (z, y, x), or a part of it that lies at ``sides``, as slices (h, w, d).

    Raises:
        RefusedError: it does not fit the image (400).
    """
    shape = _sides(view)
    whole = drawn
    if sides is not None:
        whole = np.zeros(shape, np.uint8)
        if any(not 0 <= a < b <= n for (a, b), n in zip(sides, shape, strict=True)):
            raise RefusedError(400, f"interaction_bbox: expected a part of {list(shape)}")
        part = whole[tuple(slice(a, b) for a, b in sides)]
        if drawn.shape != part.shape:
            raise RefusedError(
                400, f"the drawing has shape {drawn.shape}, and interaction_bbox {part.shape}"
            )
        part[...] = drawn != 0
    if whole.shape != tuple(shape):
        raise RefusedError(400, f"the drawing must have the image's shape {list(shape)}")
    grid = view.volume.source
    return whole if grid is None else slices_view(whole, grid)


def _answer(known: ServedObject, change: Change | None, *, ran: bool | None = None) -> Response:
    """Return the part of the mask that changed.

    Args:
        known: the object.
        change: what changed; None: nothing was computed.
        ran: whether the client is told that the model answered; None: if there is a change.
    """
    ran = change is not None if ran is None else ran
    about: dict[str, Any] = {"ran_prediction": ran, "bbox": None}
    content = b""
    if change is not None and change.region is not None and ran:
        part = known.mask[tuple(slice(a, b) for a, b in change.region)]
        about |= {"bbox": [list(side) for side in change.region], "dtype": "uint8"}
        about |= {"shape": list(part.shape)}
        content = pack(part)
    text = json.dumps(about, separators=(",", ":"))
    return Response(content, media_type="application/octet-stream", headers={"X-Meta": text})
