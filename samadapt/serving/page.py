"""The page at the root: the files of the folder ``web``, which are read once at the start."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from samadapt.serving.refused import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER = "web"
START = "index.html"
MEDIA = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "json": "application/json",
    "txt": "text/plain",
}


def page_routes() -> list[Route]:
    """Return the routes of the page, of its modules below ``/page``, and of NiiVue.

    A client names a file only by its key in a table, so it reaches no other file.
    """
    known = page_files()

    async def start(request: Request) -> Response:
        return _answer(START, known)

    async def part(request: Request) -> Response:
        return _answer(request.path_params["name"], known)

    return [
        Route("/", start, methods=["GET"]),
        Route("/page/{name:path}", part, methods=["GET"]),
    ]


def page_files() -> dict[str, bytes]:
    """Return the files of the page by their path below its folder, such as ``vendor/niivue.js``."""
    return dict(_below(files(__package__) / FOLDER, ""))


def _below(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for one in folder.iterdir():
        if one.is_dir():
            found += _below(one, f"{prefix}{one.name}/")
        elif one.name.rpartition(".")[2] in MEDIA:
            found.append((prefix + one.name, one.read_bytes()))
    return found


def _answer(name: str, known: Mapping[str, bytes]) -> Response:
    if name not in known:
        raise RefusedError(404, "the page has no such file")
    return Response(known[name], media_type=MEDIA[name.rpartition(".")[2]])
