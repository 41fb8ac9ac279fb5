"""``samadapt export``: write an adapter for another program, and compare the masks."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt import console
from samadapt.config.compose import parse_settings
from samadapt.errors import ConfigError
from samadapt.system.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.export import Target

HELP = """
Writes an adapter for another program into a new folder, loads it as that program does, and compares
its masks with those of the adapted model. It prints the largest difference, and keeps the folder
only if the difference is small.

  to=adapter  the adapter itself, to publish it: others then load hf:USER/NAME
  to=peft  a PEFT directory (PeftModel.from_pretrained); naming=transformers for a SamModel
  to=sam   the merged weights as segment-anything's .pth, and as safetensors
  to=hf    the merged model as transformers' SamModel directory, with its processor
  to=onnx  encoder.onnx and decoder.onnx, with the names of segment-anything's own export
  to=web   a page that segments pictures in the browser, without a server program
  to=anylabeling  a model for AnyLabeling and X-AnyLabeling, which fix names and sizes

push=USER/NAME uploads the folder to the Hugging Face Hub, with the token of `hf auth login`.

  samadapt export adapter=runs/medical/RUN/adapter to=sam output=merged
  samadapt export adapter=DIR to=onnx output=onnx_model precision=fp16
"""


@dataclass(frozen=True)
class ExportArguments(Settings):
    """The keys of ``samadapt export``."""

    adapter: str = Field(description="adapter directory, or hf:USER/NAME[@REVISION]")
    to: Literal["adapter", "peft", "sam", "hf", "onnx", "web", "anylabeling"] = Field(
        description="target, that is the program that the folder is for"
    )
    output: str = Field(description="folder that is created")
    checkpoint: str | None = Field(
        default=None, description="file of the base weights; null: search by the model's name"
    )
    naming: Literal["sam", "transformers"] | None = Field(
        default=None, description="for to=peft: whose module names are written; null: those of sam"
    )
    precision: Literal["fp32", "fp16", "int8"] | None = Field(
        default=None,
        description="for to=onnx, web and anylabeling: number format of the encoder's weights, as "
        "the decoder stays fp32; null: fp32",
    )
    push: str | None = Field(
        default=None,
        description="USER/NAME of a repository on the Hugging Face Hub to upload the folder to",
    )
    private: bool = Field(
        default=False, description="for push: create the repository as a private one"
    )


SCHEMA = ExportArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what was written, and how much it differs from the adapted model.

    Raises:
        ConfigError: the arguments are wrong. The message lists every problem.
        AdapterError: the adapter is refused, or the target cannot hold it.
        MissingExtraError: a package that the target needs is not installed.
        RunError: the written model does not predict the same masks, or the upload failed.
    """
    asked = parse_settings(ExportArguments, arguments)
    from samadapt.export import export_adapter
    from samadapt.export.adapter_copy import copy_adapter
    from samadapt.export.hub import check_name, push

    target = None if asked.to == "adapter" else _target(asked)
    # A wrong name is reported before the export, which takes longer.
    if asked.push is not None:
        check_name(asked.push)
    if target is None:
        _refuse_options(asked)
        done = copy_adapter(asked.adapter, asked.output)
    else:
        done = export_adapter(asked.adapter, target, asked.output, checkpoint=asked.checkpoint)
    difference = done.difference
    address = push(done.output, asked.push, private=asked.private) if asked.push else None
    return {
        "adapter": asked.adapter,
        "to": done.to,
        "output": str(done.output),
        "files": done.files,
        "largest_logit_difference": difference and difference.logits,
        "largest_iou_difference": difference and difference.iou,
        "largest_logit": difference and difference.largest,
        "pixels_that_differ": difference and difference.disagreement,
        "compared": str(difference or "the files are copies, and their digests agree"),
        "notes": done.notes,
        "pushed": address,
    }


def _refuse_options(asked: ExportArguments) -> None:
    """Refuse options of other targets for a copy of the adapter.

    Raises:
        ConfigError: naming the option.
    """
    for name in ("naming", "precision", "checkpoint"):
        if getattr(asked, name) is not None:
            raise ConfigError(f"{name} is no option of to=adapter, which copies the adapter")


def _target(asked: ExportArguments) -> Target:
    """Return the target with its options.

    Raises:
        ConfigError: an option belongs to another target.
    """
    from samadapt.export import TARGETS

    # Keys that are left out have the target's defaults, so they fit every target.
    options = {
        name: value
        for name in ("naming", "precision")
        if (value := getattr(asked, name)) is not None
    }
    cls = TARGETS[asked.to]
    known = [item.name for item in fields(cls)]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"{unknown[0]} is no option of to={asked.to} ({', '.join(known) or 'it has none'})"
        )
    return cls(**options)


def render(result: dict[str, Any]) -> str:
    """Return the files with their sizes, the difference and the notes."""
    rows = [[name, f"{size / 1e6:.2f} MB"] for name, size in result["files"].items()]
    lines = [console.table([result["output"], "size"], rows), "", result["compared"]]
    lines += [f"note: {note}" for note in result["notes"]]
    if result["pushed"]:
        lines.append(f"uploaded to {result['pushed']}")
    return "\n".join(lines)
