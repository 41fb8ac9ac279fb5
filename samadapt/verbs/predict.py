"""``samadapt predict``: segment one image or volume with an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samadapt import console
from samadapt.overrides import parse
from samadapt.typed import knob

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Segments a picture (PNG, JPEG, TIFF) or a volume (NIfTI, NRRD, MetaImage, TIFF stack, .npz, or the
folder of a DICOM series) with an adapter, and writes the labels: a PNG of class numbers, or a NIfTI
file on the source's grid (NRRD and MetaImage also as .nrrd or .mha). The base model is found by
the name that the adapter records and checked by its hash.

An adapter trained without prompts needs no more. One trained with boxes or points needs them, in
pixels (x, y) of the upright picture or slice: for a volume either the same for every slice, or a
mapping of slice indices. Several points are one object.

  samadapt predict adapter=runs/medical/RUN/adapter input=scan.nii.gz output=labels.nii.gz
  samadapt predict adapter=DIR input=cell.png output=mask.png 'boxes=[[10,20,90,80]]'
  samadapt predict adapter=DIR input=ct.nii output=out.nii 'boxes={12: [[30,40,60,70]]}'
"""


@dataclass(frozen=True)
class PredictArguments:
    """The keys of ``samadapt predict``."""

    adapter: str = knob(help="adapter directory")
    input: str = knob(help="picture, volume, or folder of a DICOM series")
    output: str = knob(help=".png for a picture, .nii.gz or .nii for a volume")
    boxes: list[list[float]] | dict[int, list[list[float]]] | None = knob(
        None, help="[[x0,y0,x1,y1]], or {slice: [[x0,y0,x1,y1]]}"
    )
    points: list[list[float]] | dict[int, list[list[float]]] | None = knob(
        None, help="[[x,y]], or {slice: [[x,y]]}: points of one object"
    )
    point_labels: list[int] | dict[int, list[int]] | None = knob(
        None, help="[1,0]: 1 in the object, 0 outside; null: all 1"
    )
    channel: int | str | None = knob(
        None, help="which volume of a 4D file: from 0, or its name in dataset.json", low=0
    )
    checkpoint: str | None = knob(None, help="file of the base weights; null: found by name")
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "fp32", help="fp32 gives the same masks everywhere; auto: bf16 where that is fast"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", help="auto: cuda, mps, then cpu")


SCHEMA = PredictArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what was written: the path, the shape as sliced, the voxels of each class.

    Raises:
        ConfigError: naming everything wrong with the arguments.
        AdapterError: the adapter is refused.
        DataError: a file cannot be read or written.
        PromptError: a prompt is missing, not wanted, or wrong.
    """
    asked = parse(PredictArguments, arguments)
    from samadapt.segmenter import check_files, load_adapter

    check_files(Path(asked.input).expanduser(), Path(asked.output).expanduser())
    segmenter = load_adapter(
        asked.adapter,
        checkpoint=asked.checkpoint,
        device=asked.device,
        precision=asked.precision,
    )
    result = segmenter.predict_file(
        asked.input,
        asked.output,
        boxes=asked.boxes,
        points=asked.points,
        point_labels=asked.point_labels,
        channel=asked.channel,
    )
    return {
        "adapter": asked.adapter,
        "input": asked.input,
        "output": str(result["output"]),
        "shape": list(result["shape"]),
        "voxels": result["voxels"],
    }


def render(result: dict[str, Any]) -> str:
    """Return the voxel counts as a table, and the path."""
    height, width, depth = result["shape"]
    total = max(height * width * depth, 1)
    rows = [
        [str(label), name, f"{count:,}", f"{count / total:.2%}"]
        for label, (name, count) in enumerate(result["voxels"].items(), start=1)
    ]
    size = f"{height} x {width} pixels" + (f", {depth} slices" if depth > 1 else "")
    table = console.table(["label", "class", "voxels", "share"], rows)
    return f"{table}\n\n{result['output']} ({size})"
