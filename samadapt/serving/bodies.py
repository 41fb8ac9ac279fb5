"""Read the JSON of requests: everything a client sends is checked here before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from samadapt.serving.refused import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request

    from samadapt.serving.limits import ServingLimits


class Body(BaseModel):
    """Base of the bodies of our own interface, in which an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ForeignBody(BaseModel):
    """Base of the bodies of other programs, which may send more than is used here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


BodyT = TypeVar("BodyT", bound=BaseModel)


async def read_body(request: Request, kind: type[BodyT], limits: ServingLimits) -> BodyT:
    """Read the JSON of a request.

    Raises:
        RefusedError: it is too large (413), no JSON (400), or holds something else (422).
    """
    return checked(await read_bytes(request, limits.json_bytes), kind)


async def read_bytes(request: Request, most: int) -> bytes:
    """Read the body of a request.

    Raises:
        RefusedError: it has more than ``most`` bytes (413).
    """
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise RefusedError(413, f"the body may have at most {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


def checked(text: bytes | str, kind: type[BodyT]) -> BodyT:
    """Return JSON as an object of a class.

    Raises:
        RefusedError: it is no JSON (400), or holds something else (422).
    """
    try:
        return kind.model_validate_json(text or b"{}")
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise RefusedError(400, f"the body is not JSON: {found[0]['msg']}"[:300]) from None
        raise RefusedError(422, "; ".join(_text(one) for one in found[:5])[:1000]) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body cannot be read ({type(error).__name__})") from None


def _text(found: Any) -> str:
    where = ".".join(str(part)[:50] for part in found["loc"])
    return f"{where}: {found['msg']}" if where else str(found["msg"])
