"""The application: all protocols over one state, behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from samadapt import console
from samadapt.errors import UserError
from samadapt.serving.guard import Guard
from samadapt.serving.label_studio import LabelStudio
from samadapt.serving.nninteractive import NnInteractive
from samadapt.serving.openapi import STYLE, describe, page
from samadapt.serving.page import page_routes
from samadapt.serving.qupath import QuPath
from samadapt.serving.refused import RefusedError
from samadapt.serving.rest import Rest

if TYPE_CHECKING:
    from starlette.requests import Request

    from samadapt.serving.server_state import ServerState

SWEEP_SECONDS = 5.0


def make_app(
    state: ServerState, token: str, hosts: Collection[str], *, any_address: bool = False
) -> Guard:
    """Return the application.

    Args:
        state: the models and limits.
        token: what every request must know.
        hosts: see ``Guard``, as is ``any_address``.
        any_address: the server listens on all addresses.
    """
    rest = Rest(state).routes()
    description = describe(rest)

    async def openapi(request: Request) -> Response:
        return JSONResponse(description)

    async def documentation(request: Request) -> Response:
        return HTMLResponse(page(description))

    async def style(request: Request) -> Response:
        return Response(STYLE, media_type="text/css")

    routes = [
        *page_routes(),
        Route("/style.css", style, methods=["GET"]),
        Route("/api/openapi.json", openapi, methods=["GET"]),
        Route("/api/docs", documentation, methods=["GET"]),
        *rest,
        *NnInteractive(state).routes(),
        *QuPath(state).routes(),
        *LabelStudio(state).routes(),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        state.worker.start()
        sweeping = asyncio.create_task(_sweep(state))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            state.close()

    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            RefusedError: _refused,
            UserError: _mistake,
            HTTPException: _http,
            MemoryError: _memory,
            Exception: _unexpected,
        },
    )
    return Guard(app, token, hosts, state.limits, any_address=any_address)


async def _sweep(state: ServerState) -> None:
    while True:
        await asyncio.sleep(min(SWEEP_SECONDS, state.limits.idle_seconds / 4))
        state.sessions.sweep()


def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, RefusedError):
        raise error
    return JSONResponse({"detail": error.detail}, error.status, headers=error.headers)


def _mistake(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


def _http(request: Request, error: Exception) -> Response:
    """Answer to an address or a method that is not known."""
    status = getattr(error, "status_code", 404)
    return JSONResponse({"detail": getattr(error, "detail", "")}, status)


def _memory(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "this machine has too little memory for the image"}, 413)


def _unexpected(request: Request, error: Exception) -> Response:
    """Answer to an error of ours: its text stays in the log of the server."""
    console.log(f"samadapt: unexpected {type(error).__name__}: {error}")
    return JSONResponse({"detail": "an unexpected error; the log of the server names it"}, 500)
