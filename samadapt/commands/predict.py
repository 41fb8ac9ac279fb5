"""``samadapt predict``: segment an image, a volume or a folder of them with an adapter."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samadapt import console
from samadapt.config.overrides import parse
from samadapt.system.limits import MAX_GB, MAX_SECONDS, set_limits
from samadapt.system.typed import knob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from samadapt.inference.files import PredictionPlan

HELP = """
Segments a picture, a volume, a DICOM series (its folder) or every image of a folder with an
adapter, and writes the labels. The output's ending chooses the format: .png (class numbers, with
a palette) or .json (COCO) for pictures, .nii.gz or .nii on the source's grid for volumes (NRRD and
MetaImage also as .nrrd or .mha, a DICOM series also as DICOM SEG, .dcm). A folder gives a folder
with the same stems, or one .json; a file that cannot be done is named at the end, and the exit
code is 1. Classes that may overlap (data.regions) are written as one mask each, OUTPUT_NAME. The
base model is found by the name that the adapter records and checked by its hash.

An adapter trained without prompts needs no more. One trained with boxes or points needs them, in
pixels (x, y) of the upright picture or slice: for a volume either the same for every slice, or a
mapping of slice indices. Where the adapter has several classes, labels names one for each object.
propagate=true carries each object from the slices where it is prompted to the others: the box
around its mask, a little wider, is the prompt on the next slice, both ways, until it vanishes.

  samadapt predict adapter=runs/medical/RUN/adapter input=scan.nii.gz output=labels.nii.gz
  samadapt predict adapter=DIR input=cell.png output=mask.png 'boxes=[[10,20,90,80]]'
  samadapt predict adapter=DIR input=ct.nii output=out.nii 'boxes={12: [[30,40,60,70]]}'
  samadapt predict adapter=DIR input=ct.nii output=out.nii 'boxes={12: [[30,40,60,70]]}' \\
      propagate=true labels=liver keep_largest=true
  samadapt predict adapter=DIR input=pictures/ output=masks/
"""

Boxes = list[list[float] | None]
Points = list[list[float]] | list[list[list[float]] | None]
Signs = list[int] | list[list[int] | None]


@dataclass(frozen=True)
class PredictArguments:
    """The keys of ``samadapt predict``."""

    adapter: str = knob(help="adapter directory")
    input: str | list[str] = knob(
        help="picture, volume, DICOM series, or a folder of images; of several channels a list of "
        "files, 'CASE_{channel}.nii.gz' or the case's folder"
    )
    output: str = knob(help=".png or .json for a picture, .nii.gz for a volume; or a folder")
    boxes: Boxes | dict[int, Boxes] | None = knob(
        None, help="[[x0,y0,x1,y1]], or {slice: [[x0,y0,x1,y1]]}; null: no box of that object here"
    )
    points: Points | dict[int, Points] | None = knob(
        None, help="[[x,y]]: points of one object; [[[x,y]],[[x,y]]]: of two; or by slice"
    )
    point_labels: Signs | dict[int, Signs] | None = knob(
        None, help="[1,0]: 1 in the object, 0 outside; null: all 1"
    )
    labels: str | list[str] | None = knob(
        None, help="class of each object, [liver,spleen], or one for all; null: the only class"
    )
    propagate: bool = knob(False, help="carry each object from slice to slice, both ways")
    carry: Literal["prompt", "mask", "both"] = knob(
        "prompt", help="what a mask becomes on the next slice: a box or point, a mask prompt, both"
    )
    slices: list[int] | None = knob(None, help="[first,last] to carry to; null: all")
    vanish: float = knob(
        0.1, help="an object ends below this share of its prompted area", low=0, below=1
    )
    keep_largest: bool | list[str] = knob(
        False, help="only the largest component of each class, or of [classes]; 3D in volumes"
    )
    fill_holes: bool | list[str] = knob(
        False, help="fill the holes of each class, or of [classes], after keep_largest"
    )
    tile: int | None = knob(
        None,
        help="pixels a side of the tiles that a picture is cut into; null: as trained; 0: whole",
        low=0,
    )
    exif: Literal["apply", "ignore"] | None = knob(
        None,
        help="apply: pictures are turned as their EXIF orientation says; ignore: their pixels stay "
        "as stored; null: as trained, or applied",
    )
    probabilities: bool = knob(
        False, help="also write OUTPUT_probabilities: 4D .nii.gz, or .npz for a picture"
    )
    channel: int | str | list[int | str] | None = knob(
        None,
        help="which volume of a 4D file: from 0, or its name in dataset.json; [a,b]: of an adapter "
        "of several channels; null: as trained",
        low=0,
    )
    spacing: Literal["affine", "pixdim"] | None = knob(
        None,
        help="which voxel size is true where a NIfTI header contradicts itself; null: as trained",
    )
    series: str | None = knob(
        None,
        help="DICOM series where a folder holds several: a modality (CT), a series number, "
        "largest, or the digits that the message shows; null: as trained",
    )
    max_gb: float = knob(
        MAX_GB,
        help="GB that the header of one file may declare, unpacked; more is refused",
        above=0,
    )
    max_seconds: float = knob(MAX_SECONDS, help="seconds that reading one file may take", above=0)
    checkpoint: str | None = knob(None, help="file of the base weights; null: found by name")
    precision: Literal["auto", "fp32", "bf16"] = knob(
        "fp32", help="fp32 gives the same masks everywhere; auto: bf16 where that is fast"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = knob("auto", help="auto: cuda, mps, then cpu")


SCHEMA = PredictArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what was written: the path, the shape as sliced, the voxels of each class.

    For a folder these by file, the names of what is no image, and ``exit_code`` 1 if a file could
    not be done.

    Raises:
        ConfigError: naming everything wrong with the arguments.
        AdapterError: the adapter is refused.
        DataError: a file cannot be read or written.
        PromptError: a prompt is missing, not wanted, or wrong.
    """
    asked = parse(PredictArguments, arguments)
    from samadapt.inference.options import PredictionOptions
    from samadapt.inference.segmenter import load_adapter

    set_limits(asked.max_gb, asked.max_seconds)
    plan = _plan(asked)  # before any model is loaded
    segmenter = load_adapter(
        asked.adapter,
        checkpoint=asked.checkpoint,
        device=asked.device,
        precision=asked.precision,
    )
    given = {item.name: getattr(asked, item.name) for item in fields(PredictionOptions)}
    options = PredictionOptions(**given)
    with ExitStack() as shown:

        def start(name: str) -> Callable[[int, int], None]:
            shown.close()
            return shown.enter_context(console.bar(name))

        rows = segmenter.predict_plan(plan, options, progress=start)
    head = {"adapter": asked.adapter, "input": asked.input}
    if not plan.is_folder:
        _warn(rows)
        return head | _plain(rows[0])
    for row in rows:
        if "error" in row:
            console.log(f"samadapt: {row['error']}")
    _warn(rows)
    failed = any("error" in row for row in rows)
    return head | {
        "output": asked.output,
        "files": [_plain(row) for row in rows],
        "other_files": list(plan.others),
        "exit_code": int(failed),
    }


def _plan(asked: PredictArguments) -> PredictionPlan:
    """Find the images and their outputs; refuse what cannot be read or written."""
    from samadapt.adapters.record import read_record
    from samadapt.inference.files import plan_prediction
    from samadapt.inference.inputs import chosen_channels

    record = read_record(Path(asked.adapter).expanduser())
    channels = chosen_channels(record, asked.channel)
    return plan_prediction(asked.input, Path(asked.output), channels)


def _warn(rows: Sequence[dict[str, Any]]) -> None:
    """Tell what the reader warned of."""
    for row in rows:
        for text in row.get("warnings", ()):
            console.log(f"samadapt: warning: {text}")


def render(result: dict[str, Any]) -> str:
    """Return the voxel counts as a table, and the path; of a folder a line a file."""
    if "files" in result:
        return _render_folder(result)
    height, width, depth = result["shape"]
    total = max(height * width * depth, 1)
    rows = [
        [str(label), name, f"{count:,}", f"{count / total:.2%}"]
        for label, (name, count) in enumerate(result["voxels"].items(), start=1)
    ]
    table = console.table(["label", "class", "voxels", "share"], rows)
    beside = f"\n{result['probabilities']}" if "probabilities" in result else ""
    written = "\n".join(result.get("masks", {}).values()) or result["output"]
    return f"{table}\n\n{written} ({_size(result)}){beside}"


def _render_folder(result: dict[str, Any]) -> str:
    done = [row for row in result["files"] if "error" not in row]
    names = list(done[0]["voxels"]) if done else []
    rows = [
        [
            Path(row["input"]).name,
            _names(row) if "error" not in row else "failed",
            _size(row) if "error" not in row else "",
            *(f"{row['voxels'][name]:,}" if "error" not in row else "" for name in names),
        ]
        for row in result["files"]
    ]
    lines = [console.table(["file", "output", "size", *names], rows), ""]
    lines.append(f"{result['output']}: {len(done)} of {len(rows)} files")
    if result["other_files"]:
        lines.append(f"no images, left alone: {', '.join(result['other_files'])}")
    return "\n".join(lines)


def _size(row: dict[str, Any]) -> str:
    height, width, depth = row["shape"]
    return f"{height} x {width} pixels" + (f", {depth} slices" if depth > 1 else "")


def _names(row: dict[str, Any]) -> str:
    """The names of the files that hold the labels of one image."""
    paths = row.get("masks", {}).values() or [row["output"]]
    return ", ".join(Path(path).name for path in paths)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Paths as text, shapes as lists."""
    plain = {
        key: str(value) if isinstance(value, Path) else list(value) if key == "shape" else value
        for key, value in row.items()
    }
    if "masks" in row:
        plain["masks"] = {name: str(path) for name, path in row["masks"].items()}
    return plain
