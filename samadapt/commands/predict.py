"""``samadapt predict``: segment an image, a volume or a folder of them with an adapter."""

from __future__ import annotations

from contextlib import ExitStack
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt import console
from samadapt.config.compose import parse_settings
from samadapt.config.folder_jobs import FolderJobs
from samadapt.config.prediction_machine import PredictionMachine
from samadapt.config.schema import Data
from samadapt.errors import ConfigError
from samadapt.inference.options import PredictionOptions
from samadapt.system import processes
from samadapt.system.limits import set_limits
from samadapt.system.settings import List, Settings, Whole, settings_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from samadapt.inference.files import PredictionPlan
    from samadapt.inference.folder_work import FolderWork
    from samadapt.runs.prediction_jobs import OpenedFolder

HELP = """
Segments a picture, a volume, a DICOM series (its folder) or every image of a folder with an
adapter, and writes the labels. The suffix of the output chooses the format: .png (class numbers
with a palette) or .json (COCO) for pictures, and .nii.gz or .nii on the grid of the source for
volumes. NRRD and MetaImage can also be written as .nrrd or .mha, and a DICOM series as DICOM SEG,
.dcm. For a folder the output is a folder with files of the same stems, or one .json. Files that
fail are named at the end, and the exit code is 1. Run the command again to go on with a folder that
was interrupted: files that are done are skipped. predict_settings.yaml there says how they were
made, and a command with another adapter or other options is refused unless it says overwrite=true.
Several processes share the files of a folder (torchrun -m samadapt predict ...), and so do the jobs
of a cluster (launcher=submitit launcher.jobs=8). Classes that may overlap (data.regions) are
written as one mask each, OUTPUT_NAME. The base model is found by the name that the adapter records,
and checked by its hash.

An adapter that was trained without prompts needs nothing else. An adapter that was trained with
prompts needs boxes, points, scribbles or rough masks. Coordinates are pixels (x, y) of the upright
picture or slice. For a volume they are either the same on every slice, or a mapping from slice
indices. If the adapter has several classes, labels names the class of each object. propagate=true
carries each object from the slices where it is prompted to the others, both ways, until it
vanishes: the box around its mask, slightly widened, prompts the next slice. With propagate=memory
the memory of SAM 2 finds it there, without a prompt.

adapter=[a,b,c], or the run directory of a cross-validation, lets several adapters segment together:
their probabilities are averaged. tta=flip averages over mirrored copies as well. second_pass=base
lets the base model refine what an adapter without prompts has found. uncertainty=true
writes OUTPUT_uncertainty, and objects=true lists the objects, each with its class, box, area and,
if the training had enough validation objects, a calibrated confidence.

  samadapt predict adapter=runs/medical/RUN/adapter input=scan.nii.gz output=labels.nii.gz
  samadapt predict adapter=DIR input=cell.png output=mask.png 'boxes=[[10,20,90,80]]'
  samadapt predict adapter=DIR input=cell.png output=mask.png 'scribbles=[[12,30],[40,42],[70,35]]'
  samadapt predict adapter=DIR input=cell.png output=mask.png masks=rough.png
  samadapt predict adapter=DIR input=ct.nii output=out.nii 'boxes={12: [[30,40,60,70]]}'
  samadapt predict adapter=DIR input=ct.nii output=out.nii 'boxes={12: [[30,40,60,70]]}' \\
      propagate=true labels=liver keep_largest=true
  samadapt predict adapter=DIR input=pictures/ output=masks/
  samadapt predict adapter=runs/medical/CROSS_VALIDATION input=scan.nii.gz output=labels.nii.gz \\
      tta=flip uncertainty=mutual_information objects=true --json
"""

Boxes = List[List[float] | None]
Points = List[List[float]] | List[List[List[float]] | None]
Curve = List[List[float]]
Scribbles = Curve | List[Curve | List[Curve] | None]
ScribbleLabels = List[Whole | List[Whole] | None]
PointLabels = List[Whole] | List[List[Whole] | None]


@dataclass(frozen=True)
class PredictFiles(Settings):
    """The keys that name what a prediction reads and writes."""

    adapter: str | List[str] = Field(
        description="adapter directory, or hf:USER/NAME[@REVISION]; a list of them, or the run "
        "directory of a cross-validation: their probabilities are averaged"
    )
    input: str | List[str] = Field(
        description="picture, volume, DICOM series, or a folder of images; for several channels a "
        "list of files, 'CASE_{channel}.nii.gz' or the folder of the case"
    )
    output: str = Field(
        description="file to write, .png or .json for a picture and .nii.gz for a volume, or a "
        "folder for a folder"
    )


def _same(name: str) -> Any:
    """Return the default, help text and bounds of a prediction option."""
    item = next(item for item in fields(PredictionOptions) if item.name == name)
    return Field(default=item.default, **item.metadata)


def _as_in_data(name: str) -> Any:
    """Return the default, help text and bounds of a key of ``data``."""
    return copy(settings_fields(Data)[name])


@dataclass(frozen=True)
class PredictArguments(FolderJobs, PredictionMachine, PredictionOptions, PredictFiles):
    """The keys of ``samadapt predict``: the files, every prediction option, and the machine.

    Prompts are redeclared, because the command line knows lists and Python arrays as well.
    """

    boxes: Boxes | dict[Whole, Boxes] | None = _same("boxes")
    points: Points | dict[Whole, Points] | None = _same("points")
    point_labels: PointLabels | dict[Whole, PointLabels] | None = _same("point_labels")
    scribbles: str | Scribbles | dict[Whole, Scribbles] | None = _same("scribbles")
    scribble_labels: ScribbleLabels | dict[Whole, ScribbleLabels] | None = _same("scribble_labels")
    masks: str | None = _same("masks")
    max_gb: float = _as_in_data("max_gb")
    max_seconds: float = _as_in_data("max_seconds")


SCHEMA = PredictArguments

MAPS = ("probabilities", "uncertainty", "mutual_information")
"""Files that are written beside the labels, by their name in a result."""

MOST_OBJECTS = 20
"""Objects that the table shows; --json lists all."""


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the output path, the shape as sliced, and the number of voxels of each class.

    For a folder, return these for each file, the names of files that are no images, and
    ``exit_code`` 1 if a file failed.

    Raises:
        ConfigError: the arguments are wrong. The message lists every problem.
        AdapterError: the adapter is refused.
        DataError: a file cannot be read or written.
        PromptError: a prompt is missing, unwanted or wrong.
    """
    asked = parse_settings(PredictArguments, arguments)
    asked.check_part()
    set_limits(asked.max_gb, asked.max_seconds)
    if asked.launcher.name is not None:
        return _submit(asked, arguments)
    with processes.together(asked.device):
        plan, rows = _predict(asked)
    head = {"adapter": asked.adapter, "input": asked.input}
    # A single image that fails has raised its error; in a folder each failure is a row.
    if not plan.is_folder:
        _warn(rows)
        return head | _plain(rows[0])
    failed = any("error" in row for row in rows)
    return head | _said(asked, plan, rows) | {"exit_code": int(failed)}


def _submit(asked: PredictArguments, arguments: Sequence[str]) -> dict[str, Any]:
    """Submit the images of a folder to a cluster and, if asked, wait for the results."""
    from samadapt.inference.planned_predictions import coco_writer
    from samadapt.inference.prediction_store import PredictionStore
    from samadapt.inference.segmenter import load_adapter
    from samadapt.runs.prediction_jobs import OpenedFolder, submit_folder

    if asked.precision == "auto":
        raise ConfigError(
            "precision=auto is chosen by the machine that computes, and the jobs of a folder must "
            "agree; give precision=fp32, bf16 or fp16"
        )
    plan = _plan(asked)

    def open_folder(work: FolderWork) -> OpenedFolder:
        # Not on the GPU, which the machine that submits may not have.
        segmenter = load_adapter(asked.adapter, checkpoint=asked.checkpoint, device="cpu")
        precision = asked.precision + (", compiled" if asked.compile else "")
        settings = segmenter.settings_of(asked) | {"precision": precision}
        store = PredictionStore(work, settings, asked, overwrite=asked.overwrite)
        write = coco_writer(segmenter.classes, plan.target) if plan.is_coco else None
        return OpenedFolder(store.done, lambda rows: store.finish(rows, write))

    submitted = submit_folder("predict", arguments, plan, asked, open_folder)
    result = submitted.result(wait=asked.launcher.wait)
    head = {"adapter": asked.adapter, "input": asked.input, "output": asked.output}
    return head | result | (_said(asked, plan, result["files"]) if "files" in result else {})


def _said(
    asked: PredictArguments, plan: PredictionPlan, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Print the errors and warnings of a folder; return its rows as plain values."""
    for row in rows:
        if "error" in row:
            console.log(f"samadapt: {row['error']}")
    _warn(rows)
    files = [_plain(row) for row in rows]
    return {"output": asked.output, "files": files, "other_files": list(plan.others)}


def _predict(asked: PredictArguments) -> tuple[PredictionPlan, list[dict[str, Any]]]:
    """Segment the images, or this process's share of them; return the plan and all rows."""
    from samadapt.inference.folder_work import FolderWork, asked_part
    from samadapt.inference.output_settings import check_processes, refuse_single_image
    from samadapt.inference.prediction_store import PredictionStore
    from samadapt.inference.segmenter import load_adapter

    whole = _plan(asked)  # before any model is loaded
    work = FolderWork(whole, "predict", asked_part(asked.only_part, asked.parts))
    refuse_single_image(work)
    plan, store = work.own, None
    segmenter = load_adapter(
        asked.adapter,
        checkpoint=asked.checkpoint,
        device=asked.device,
        precision=asked.precision,
        compile=asked.compile,
    )
    with work, ExitStack() as shown:
        if plan.is_folder:
            settings = segmenter.settings_of(asked)
            check_processes(plan, settings)
            store = PredictionStore(work, settings, asked, overwrite=asked.overwrite)

        def start(name: str) -> Callable[[int, int], None]:
            # The bar of one image ends when the next image starts.
            shown.close()
            return shown.enter_context(console.bar(name))

        progress = start if processes.is_first() else None
        return plan, segmenter.predict_plan(plan, asked, progress=progress, store=store)


def _plan(asked: PredictArguments) -> PredictionPlan:
    """Find the images and their outputs, and refuse what cannot be read or written."""
    from samadapt.baselines.store import read_trained
    from samadapt.inference.ensemble import member_directories
    from samadapt.inference.files import plan_prediction
    from samadapt.inference.inputs import chosen_channels

    record = read_trained(member_directories(asked.adapter)[0])
    channels = chosen_channels(record, asked.channel)
    return plan_prediction(asked.input, Path(asked.output), channels)


def _warn(rows: Sequence[dict[str, Any]]) -> None:
    """Print the warnings of the readers."""
    for row in rows:
        for text in row.get("warnings", ()):
            console.log(f"samadapt: warning: {text}")


def render(result: dict[str, Any]) -> str:
    """Return the voxel counts as a table and the path; for a folder, a line for each file."""
    if "files" in result:
        table = _render_folder(result)
        return f"{table}\n{_jobs(result)}" if result.get("failed") else table
    if "jobs" in result:
        return _jobs(result)
    height, width, depth = result["shape"]
    total = max(height * width * depth, 1)
    rows = [
        [str(label), name, f"{count:,}", f"{count / total:.2%}"]
        for label, (name, count) in enumerate(result["voxels"].items(), start=1)
    ]
    table = console.table(["label", "class", "voxels", "share"], rows)
    beside = "".join(f"\n{result[name]}" for name in MAPS if name in result)
    written = "\n".join(result.get("masks", {}).values()) or result["output"]
    return f"{table}\n\n{_objects(result)}{written} ({_size(result)}){beside}"


def _jobs(result: dict[str, Any]) -> str:
    """Return the jobs of a folder, and how to go on if one failed."""
    from samadapt.reports.jobs import jobs_text

    return jobs_text(result, f"output: {result['output']}", "the same command")


def _objects(result: dict[str, Any]) -> str:
    """Return the table of the objects, if they were asked for, and a blank line."""
    if "objects" not in result:
        return ""
    found = result["objects"]
    rows = [
        [
            one["class"],
            str(one["box"]),
            str(one.get("slices", "")),
            f"{one['area']:,}",
            "" if one["confidence"] is None else f"{one['confidence']:.2f}",
        ]
        for one in found[:MOST_OBJECTS]
    ]
    lines = [console.table(["object", "box", "slices", "area", "confidence"], rows)]
    if len(found) > MOST_OBJECTS:
        lines.append(f"and {len(found) - MOST_OBJECTS} more objects; --json lists all")
    if "no_confidence" in result:
        lines.append(f"no confidence: {result['no_confidence']}")
    return "\n".join(lines) + "\n\n"


def _render_folder(result: dict[str, Any]) -> str:
    done = [row for row in result["files"] if "error" not in row]
    # Every file has the classes of the adapter, so one that succeeded names the columns.
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
    if before := sum("skipped" in row for row in done):
        lines.append(f"written before: {before} files; overwrite=true does them anew")
    if result["other_files"]:
        lines.append(f"skipped, as they are no images: {', '.join(result['other_files'])}")
    return "\n".join(lines)


def _size(row: dict[str, Any]) -> str:
    height, width, depth = row["shape"]
    return f"{height} x {width} pixels" + (f", {depth} slices" if depth > 1 else "")


def _names(row: dict[str, Any]) -> str:
    """Return the names of the files that hold the labels of one image."""
    paths = row.get("masks", {}).values() or [row["output"]]
    return ", ".join(Path(path).name for path in paths)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with paths as text and shapes as lists."""
    plain = {
        key: str(value) if isinstance(value, Path) else list(value) if key == "shape" else value
        for key, value in row.items()
    }
    if "masks" in row:
        plain["masks"] = {name: str(path) for name, path in row["masks"].items()}
    return plain
