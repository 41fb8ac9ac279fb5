"""The description of the plain interface: ``/api/openapi.json``, and a page made of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from samadapt.serving import rest_bodies
from samadapt.version import __version__

if TYPE_CHECKING:
    from starlette.routing import Route

BODIES = {
    ("POST", "/api/images/{image}/encode"): rest_bodies.ChosenAdapter,
    ("POST", "/api/images/{image}/classes"): rest_bodies.ChosenAdapter,
    ("POST", "/api/images/{image}/accept"): rest_bodies.Accepted,
    ("POST", "/api/images/{image}/objects"): rest_bodies.NewObject,
    ("PATCH", "/api/images/{image}/objects/{number}"): rest_bodies.Labelled,
    ("POST", "/api/images/{image}/objects/{number}/prompts"): rest_bodies.Prompt,
    ("POST", "/api/batch"): rest_bodies.BatchBody,
}
"""The bodies of JSON. The others are empty, or the bytes of a file."""

QUERIES = {
    ("POST", "/api/images"): {
        "name": "name of the file, whose ending says how it is read",
        "adapter": "model that encodes it first",
    },
    ("GET", "/api/images/{image}/slices/{index}"): {"adapter": "model that sees it"},
    ("GET", "/api/images/{image}/labels"): {
        "format": "png, json (COCO) or nii.gz",
        "objects": "numbers as 1,2; all without it",
    },
    ("GET", "/api/images/{image}/objects/{number}/mask"): {"slice": "the slice"},
}
REFUSALS = {
    "400": "the body is broken",
    "401": "the token is missing or wrong",
    "403": "the request comes from another origin",
    "404": "there is no such object or slice",
    "408": "the body arrived too slowly",
    "409": "the state of the image does not allow this",
    "410": "the image has expired or is unknown",
    "413": "the body or the image is too large",
    "415": "files of this kind are not read",
    "422": "a value is wrong; the message names it",
    "503": "as many images are open as the server takes",
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of routes.

    Args:
        routes: of the plain interface. The docstrings of their handlers describe them.
    """
    kinds = [(kind, "validation") for kind in dict.fromkeys(BODIES.values())]
    _, schemas = models_json_schema(
        kinds,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r":\w+}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, method, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "samadapt serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": (route.endpoint.__doc__ or "").splitlines()[0],
        "operationId": route.name,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ],
        "responses": {
            "200": {"description": "done"},
            **{status: {"description": text} for status, text in REFUSALS.items()},
        },
    }
    found["parameters"] += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in QUERIES.get((method, path), {}).items()
    ]
    if kind := BODIES.get((method, path)):
        schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
        found["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    elif (method, path) == ("POST", "/api/images"):
        found["requestBody"] = {"content": {"application/octet-stream": {"schema": {}}}}
    return found


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; }
td, th { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; }
"""


def page(description: dict[str, Any]) -> str:
    """Return the interface as a page for people, which needs no script."""
    parts = []
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation['summary'])}</p>")
            rows = [
                (one["name"], one["description"])
                for one in operation["parameters"]
                if one["in"] == "query"
            ]
            content = operation.get("requestBody", {}).get("content", {})
            if "application/octet-stream" in content:
                parts.append("<p>The body is the file.</p>")
            elif content:
                reference = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
                rows += _keys(description["components"]["schemas"], reference)
            parts.append(_table(rows))
    refusals = _table(list(REFUSALS.items()))
    return html(
        "Interface",
        "<p>Every request needs <code>Authorization: Bearer TOKEN</code>. The same description "
        'for programs: <a href="/api/openapi.json">openapi.json</a>.</p>'
        + "".join(parts)
        + f"<h2>Refusals</h2><p>They have a <code>detail</code>.</p>{refusals}",
    )


def html(title: str, content: str) -> str:
    """Return a page of the server."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<title>samadapt serve: {escape(title)}</title><link rel="stylesheet" href="/style.css">'
        f"</head><body><h1>{escape(title)}</h1>{content}</body></html>"
    )


def _keys(schemas: dict[str, Any], name: str) -> list[tuple[str, str]]:
    """Return the keys of a body with their meaning, those of parts of it included."""
    rows = []
    for key, value in schemas[name]["properties"].items():
        text = value.get("description", "")
        choices = value.get("enum")
        rows.append((key, f"{text} ({', '.join(choices)})" if choices else text))
        part = value.get("items", {}).get("$ref", "").rpartition("/")[2]
        if part:
            rows += [(f"{key}[].{inner}", meaning) for inner, meaning in _keys(schemas, part)]
    return rows


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th><code>{escape(name)}</code></th><td>{escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<table>{cells}</table>" if rows else ""
