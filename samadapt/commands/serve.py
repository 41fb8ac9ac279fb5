"""``samadapt serve``: adapters for the programs in which people annotate."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt import console
from samadapt.config.compose import parse_settings
from samadapt.config.prediction_machine import PredictionMachine
from samadapt.errors import ConfigError
from samadapt.system.settings import List, Whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.serving.server_state import ServerState

HELP = """
Serves adapters to annotation programs until Ctrl-C. The first adapter answers where a program
cannot choose; its base model is served beside them, under the name base. Adapters of the same base
and image size share it in memory, and each image is encoded once for those that do not change the
encoder.

  3D Slicer, napari, MITK   nnInteractive's remote protocol 2.6; the token is the API key
  QuPath                    its SAM extension, at ADDRESS/token/TOKEN/sam/
  Label Studio              an ML backend, at ADDRESS/token/TOKEN/label-studio
  your own programs         the interface that ADDRESS/api/docs describes

The server listens on this machine alone, host=127.0.0.1, and answers only to those who know the
token that it prints. host=ADDRESS lets other machines in, over plain HTTP: put a proxy with TLS in
front of it, or use an SSH tunnel. It reads no file that a client names, and sends no request,
except for images to the address of label_studio=.

Masks that clients accept go to corrections=FOLDER, which `samadapt engine accept input=FOLDER`
reads. The token of Label Studio is read from the environment variable LABEL_STUDIO_API_KEY.

  samadapt serve adapter=runs/photos/RUN/adapter
  samadapt serve adapter=DIR adapter=DIR2 port=8000 corrections=accepted
  samadapt serve adapter=DIR label_studio=http://localhost:8080
"""

_TOKEN = r"[A-Za-z0-9_~.-]{16,200}"


@dataclass(frozen=True)
class ServeArguments(PredictionMachine):
    """The keys of ``samadapt serve``: what is served, where, and how much is accepted."""

    adapter: str | List[str] = Field(
        default="",
        description="adapter directory, or hf:USER/NAME[@REVISION]; several as adapter=A "
        "adapter=B, or [A,B]",
    )
    host: str = Field(
        default="127.0.0.1",
        description="address to listen on; 0.0.0.0: all addresses of this machine",
    )
    names: List[str] = Field(
        default_factory=list,
        description="further names by which clients address the server, such as that of a proxy; "
        "requests under other names are refused",
    )
    port: Annotated[Whole, Field(ge=0, le=65535)] = Field(
        default=1527, description="port to listen on; 0: any that is free"
    )
    token: str | None = Field(
        default=None,
        description="what every request must know, 16 letters at least; null: the environment "
        "variable SAMADAPT_TOKEN, or a new one at each start",
    )
    corrections: str | None = Field(
        default=None, description="folder for masks that clients accept; null: none are kept"
    )
    label_studio: str | None = Field(
        default=None,
        description="address of the Label Studio whose images are fetched; null: none are",
    )
    sessions: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        default=8, description="images that clients may have open at the same time"
    )
    idle_minutes: float = Field(
        default=10.0, gt=0, le=10_000, description="after which an image nobody uses is dropped"
    )
    upload_mb: Annotated[Whole, Field(ge=1, le=100_000)] = Field(
        default=512, description="MB that one request may send"
    )
    voxels: Annotated[Whole, Field(ge=1)] = Field(
        default=134_217_728, description="voxels that an image may have, over all channels"
    )


SCHEMA = ServeArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Serve until a signal comes.

    Raises:
        ConfigError: the arguments are wrong, or the address cannot be used.
        AdapterError: an adapter is refused.
        MissingExtraError: the extra ``serve`` is not installed.
    """
    asked = parse_settings(ServeArguments, _joined(arguments))
    token = asked.token or os.environ.get("SAMADAPT_TOKEN")
    if token is not None and not re.fullmatch(_TOKEN, token):
        raise ConfigError(
            "token: expected 16 to 200 letters, digits, or any of _ ~ . -, which an address can "
            "hold"
        )
    from samadapt.serving.server import Listener, new_token, serve

    listener = Listener(asked.host, asked.port, token or new_token(), tuple(asked.names))
    listener.listen().close()  # before the models are loaded, which takes seconds
    state = open_state(asked)
    serve(state, listener, lambda url: _announce(url, listener.token, state))
    return {"served": [model.name for model in state.models]}


def open_state(asked: ServeArguments) -> ServerState:
    """Load what is served.

    Raises:
        ConfigError: no adapter is named, or the folder of corrections cannot be made.
        AdapterError: an adapter is refused.
    """
    from samadapt.serving.label_studio_files import LabelStudioFiles
    from samadapt.serving.limits import MB, ServingLimits
    from samadapt.serving.served_models import load_models
    from samadapt.serving.server_state import ServerState
    from samadapt.system.limits import set_limits

    named = [asked.adapter] if isinstance(asked.adapter, str) else list(asked.adapter)
    if not any(named):
        raise ConfigError("serve: expected adapter=DIR; got none")
    files = None
    if asked.label_studio is not None:
        files = LabelStudioFiles(asked.label_studio, os.environ.get("LABEL_STUDIO_API_KEY", ""))
    folder = None
    if asked.corrections is not None:
        folder = Path(asked.corrections).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"corrections={folder}: cannot be made ({error.strerror})") from None
    limits = ServingLimits(
        sessions=asked.sessions,
        idle_seconds=60 * asked.idle_minutes,
        upload_bytes=asked.upload_mb * MB,
        json_bytes=min(64, asked.upload_mb) * MB,
        voxels=asked.voxels,
    )
    # What readers accept where a header cannot be read before: float32, and pictures of a quarter.
    set_limits(max_gb=16 * asked.voxels / 2**30)
    models = load_models(
        named, checkpoint=asked.checkpoint, device=asked.device, precision=asked.precision
    )
    return ServerState(models, limits, corrections=folder, label_studio=files)


def render(result: dict[str, Any]) -> str:
    """Return what is printed at the end."""
    return ""


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which ``adapter=A adapter=B`` is ``adapter=[A,B]``."""
    named = [text.partition("=")[2] for text in arguments if text.startswith("adapter=")]
    if len(named) < 2:
        return list(arguments)
    inner = ",".join(name.removeprefix("[").removesuffix("]") for name in named)
    others = [text for text in arguments if not text.startswith("adapter=")]
    return [*others, f"adapter=[{inner}]"]


def _announce(url: str, token: str, state: ServerState) -> None:
    for model in state.models:
        for note in model.notes:
            console.log(f"samadapt: {model.name}: {note}")
    console.log(f"samadapt: open {url}/?token={token}")
    console.log(f"samadapt: address {url}, API key or Bearer token {token}; Ctrl-C ends it")
