"""``samadapt import``: turn an adapter of another project into an adapter directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings
from samadapt.system.settings import List, Settings, Whole

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Reads an adapter of another project and writes it as an adapter directory for predict, evaluate and
export. The format is recognised by the names of the tensors. The masks are compared with those of
the base model with the source's weights merged into it, and the directory is kept only if they
agree; the program of the source is not run. `from=PATH` means the same as `source=PATH`. Only
tensors are read from pickles.

  SAMed's .pth (w_a_000, w_b_000, decoder and prompt encoder), the w_a_/w_b_ files of the small
  SAM-LoRA projects, micro-sam's LoRA state, the states of micro-sam's version 2 on SAM 2 (LoRA,
  FacT, SSF, AdaptFormer), and PEFT directories with segment-anything's or transformers' names.

  samadapt import from=epoch_159.pth output=samed model=vit_b image_size=512
"""


@dataclass(frozen=True)
class ImportArguments(Settings):
    """The keys of ``samadapt import``."""

    source: str = Field(
        description="file or PEFT directory of the other project; from=PATH is the same"
    )
    output: str = Field(description="adapter directory that is created")
    model: str = Field(description="name of the base model; `samadapt ls models` lists them")
    checkpoint: str | None = Field(
        default=None, description="file of the base weights; null: search by the model's name"
    )
    image_size: Whole | None = Field(
        default=None,
        description="side of the images in training, in pixels; null: the base model's",
        ge=1,
    )
    scale: float = Field(
        default=1.0,
        description="factor of the updates, if the file does not hold it (alpha in micro-sam)",
    )
    prompt: Literal["box", "point", "semantic"] | None = Field(
        default=None, description="kind of prompt in training; null: semantic for SAMed, else box"
    )
    classes: List[str] = Field(
        default=[], description="names of the classes, in the order of the training"
    )
    intensity: str = Field(
        default="rgb",
        description="intensity rule of the training: rgb, mri, or the name of a CT window",
    )


SCHEMA = ImportArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the format, the method, and how much the adapter differs from the source.

    Raises:
        ConfigError: the arguments are wrong. The message lists every problem.
        AdapterError: the format is unknown, or the adapter does not fit the model.
        WeightsError: a file cannot be read.
        RunError: the adapter does not predict the same masks as the source.
    """
    # `from` is a keyword of Python, so no field can have this name.
    named = [f"source={a[5:]}" if a.startswith("from=") else a for a in arguments]
    asked = parse_settings(ImportArguments, named)
    from samadapt.imports import import_adapter

    done = import_adapter(
        asked.source,
        asked.output,
        model=asked.model,
        checkpoint=asked.checkpoint,
        image_size=asked.image_size,
        scale=asked.scale,
        prompt=asked.prompt,
        classes=asked.classes,
        intensity=asked.intensity,
    )
    return {
        "source": asked.source,
        "format": done.source,
        "output": str(done.output),
        "method": done.method.to_dict(),
        "largest_logit_difference": done.difference.logits,
        "compared": str(done.difference),
        "notes": done.notes,
    }


def render(result: dict[str, Any]) -> str:
    """Return the source's format, the adapter's options, the difference and the notes."""
    options = ", ".join(f"{key}={value}" for key, value in result["method"].items())
    lines = [f"{result['source']}: {result['format']}", f"{result['output']}: {options}"]
    lines += [result["compared"], *(f"note: {note}" for note in result["notes"])]
    return "\n".join(lines)
