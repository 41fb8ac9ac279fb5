"""``samadapt import``: an adapter that another project trained, as an adapter directory."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings
from samadapt.system.settings import Settings, Whole

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Reads an adapter of another project, known by its keys, and writes it as an adapter directory that
predict, evaluate and export take. Before it is kept, its masks are compared with those of the base
with the weights that were read folded in; the source's own program is not run. `from=PATH` is the
same as `source=PATH`. Pickles are read with tensors only.

  SAMed's .pth (w_a_000, w_b_000, decoder and prompt encoder), the w_a_/w_b_ files of the small
  SAM-LoRA projects, micro-sam's LoRA state, and PEFT directories with segment-anything's or
  transformers' module names.

  samadapt import from=epoch_159.pth output=samed model=vit_b image_size=512
"""


@dataclass(frozen=True)
class ImportArguments(Settings):
    """The keys of ``samadapt import``."""

    source: str = Field(description="the file or PEFT directory; also from=PATH")
    output: str = Field(description="adapter directory to create")
    model: str = Field(description="the base model, as `samadapt ls models` names it")
    checkpoint: str | None = Field(
        default=None, description="file of the base weights; null: found by name"
    )
    image_size: Whole | None = Field(
        default=None, description="side trained at, in pixels; null: the base's", ge=1
    )
    scale: float = Field(
        default=1.0, description="of the updates, where the file does not say (micro-sam: alpha)"
    )
    prompt: Literal["box", "point", "semantic"] | None = Field(
        default=None, description="how it was prompted; null: semantic for SAMed, else box"
    )
    classes: list[str] = field(default_factory=list)
    intensity: str = Field(
        default="rgb", description="intensity rule: rgb, mri, or a CT window's name"
    )


SCHEMA = ImportArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what was read, as which method, and how far the adapter is from what was read.

    Raises:
        ConfigError: naming everything wrong with the arguments.
        AdapterError: no format that is known, or it does not fit the model.
        WeightsError: a file cannot be read.
        RunError: the adapter does not predict as what was read does.
    """
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
    """Return what it was, what it is, the difference and the notes."""
    options = ", ".join(f"{key}={value}" for key, value in result["method"].items())
    lines = [f"{result['source']}: {result['format']}", f"{result['output']}: {options}"]
    lines += [result["compared"], *(f"note: {note}" for note in result["notes"])]
    return "\n".join(lines)
