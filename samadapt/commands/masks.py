"""``samadapt masks``: the masks of everything in pictures and volumes, without prompts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt import console
from samadapt.config.compose import parse_settings, read_yaml
from samadapt.config.folder_jobs import FolderJobs
from samadapt.config.prediction_machine import ChosenModel
from samadapt.errors import ConfigError
from samadapt.inference.mask_options import MaskOptions
from samadapt.system import processes
from samadapt.system.launchers import refuse_several_processes
from samadapt.system.settings import Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from samadapt.config.engine_arguments import AutomaticArguments
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.inference.files import PredictionPlan
    from samadapt.inference.folder_work import FolderWork, Part
    from samadapt.inference.segmenter import Segmenter
    from samadapt.runs.prediction_jobs import OpenedFolder

HELP = """
Finds the masks of everything in a picture, a volume or every image of a folder without a prompt: a
grid of points prompts an adapter that was trained with boxes or points, or a base model
(model=NAME). Masks with a low predicted IoU or stability are dropped, and so are duplicates.

The suffix of the output chooses the format: .png (the number of the mask of each pixel, in colours)
or .json (COCO with a score for each mask; format=sa1b writes the JSON of SA-1B) for pictures, and
.nii.gz for volumes, whose slices are seen one by one. For a folder the output is a folder with
files of the same stems, or one COCO file. Run the command again to continue a folder that was
interrupted: what is written already is skipped. Several processes share the images of a folder
(torchrun -m samadapt masks ...), and so do the jobs of a cluster (launcher=submitit
launcher.jobs=8).

The thresholds of SAM's paper fit SAM's own weights alone. For other models the predicted IoU is
compared with the best one of the image. preview=true also draws the masks over each image.
tune=true chooses the thresholds on the validation cases of the adapter's training, scores them
(mean segmentation accuracy, mAP, PQ) on held-out cases, and keeps the given ones if no others are
better; settings=FILE then uses them.

  samadapt masks adapter=runs/photos/RUN/adapter input=cells.png output=masks.png preview=true
  samadapt masks adapter=DIR input=pictures/ output=masks.json
  samadapt masks adapter=DIR tune=true output=cells.yaml
  samadapt masks adapter=DIR settings=cells.yaml input=pictures/ output=masks/
  samadapt masks model=vit_b input=pictures/ output=masks/ format=sa1b crop_layers=1
"""

SCORES = {
    "msa": "mSA",
    "map": "mAP",
    "pq": "PQ",
    "mean_iou": "mean IoU",
    "masks": "masks",
}
"""Scores of tune=true and their heads; msa is the mean segmentation accuracy."""

Format = Literal["coco", "sa1b"]


@dataclass(frozen=True)
class MaskArguments(FolderJobs, ChosenModel, MaskOptions):
    """The keys of ``samadapt masks``: the files, how masks are found, and the machine."""

    input: str = Field(
        default="", description="picture, volume, DICOM series, or a folder of images"
    )
    output: str = Field(
        default="",
        description="file to write, .png or .json for a picture and .nii.gz for a volume, or a "
        "folder or one .json for a folder",
    )
    format: Format | None = Field(
        default=None,
        description="coco: one JSON file with a score for each mask; sa1b: JSON as SA-1B has it, "
        "one file for each picture; null: what the output's ending says, .json for COCO",
    )
    settings: str | None = Field(
        default=None,
        description="YAML file of tune=true, whose keys hold where the command line names none",
    )
    tune: bool = Field(
        default=False,
        description="choose the thresholds of adapter on the validation cases of its training, "
        "score them on held-out cases, and write them to output, a .yaml file for settings; no "
        "input is read",
    )
    root: str | None = Field(
        default=None,
        description="for tune: folder of the data set; null: where the training found it",
    )
    tune_images: Whole = Field(
        default=8,
        ge=1,
        description="for tune: largest number of pictures or slices that choose, and of those that "
        "are scored",
    )
    preview: bool = Field(
        default=False, description="also write OUTPUT_preview.png, the masks over the image"
    )


SCHEMA = MaskArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the output and the number of masks; for a folder, these for each file.

    Raises:
        ConfigError: the arguments are wrong. The message lists every problem.
        AdapterError: the adapter is refused, or takes no prompts.
        DataError: a file cannot be read or written.
    """
    asked = _parse(arguments)
    _check(asked)
    if asked.tune:
        return _tune(asked)
    from samadapt.inference.folder_work import asked_part
    from samadapt.inference.mask_store import with_format

    if asked.launcher.name is not None:
        return _submit(asked, arguments, with_format(plan_masks(asked), asked.format))
    part = asked_part(asked.only_part, asked.parts)
    with processes.together(asked.device):
        plan = with_format(plan_masks(asked), asked.format)
        return find_masks(asked, plan, sa1b=asked.format == "sa1b", part=part)


def _submit(asked: MaskArguments, arguments: Sequence[str], plan: PredictionPlan) -> dict[str, Any]:
    """Submit the images of a folder to a cluster and, if asked, wait for the results."""
    from samadapt.inference.automatic import MaskFinder
    from samadapt.inference.mask_store import open_store
    from samadapt.runs.prediction_jobs import OpenedFolder, submit_folder

    def open_folder(work: FolderWork) -> OpenedFolder:
        # Not on the GPU, which the machine that submits may not have.
        segmenter, _ = _load(replace(asked, device="cpu", precision="fp32"))
        finder = MaskFinder(segmenter, mask_options(asked), is_adapted=asked.adapter is not None)
        store = open_store(work, finder.settings, finder.category, overwrite=asked.overwrite)
        return OpenedFolder(store.done_rows(plan), store.finish)

    submitted = submit_folder("masks", arguments, plan, asked, open_folder)
    result = submitted.result(wait=asked.launcher.wait)
    head = {"adapter": asked.adapter, "model": asked.model, "input": asked.input}
    head |= {"output": asked.output}
    if "files" not in result:
        return head | result
    _say(result["files"])
    return head | result | {"other_files": list(plan.others)}


def _say(rows: Sequence[dict[str, Any]]) -> None:
    """Print the warnings and errors of the images."""
    for row in rows:
        for text in row.get("warnings", ()):
            console.log(f"samadapt: warning: {text}")
        if "error" in row:
            console.log(f"samadapt: {row['error']}")


def find_masks(
    asked: MaskArguments | AutomaticArguments,
    plan: PredictionPlan,
    *,
    sa1b: bool,
    part: Part | None = None,
) -> dict[str, Any]:
    """Find and write the masks of the images of a plan, with a bar for each of them.

    Args:
        asked: the model, how masks are found, and whether the folder is continued.
        plan: from ``plan_masks``, made before any model is loaded.
        sa1b: a ``.json`` output is that of SA-1B.
        part: the part of the folder that is done; None: all of it.

    Returns:
        What ``run`` returns.
    """
    from samadapt.inference.automatic import MaskFinder, find_planned
    from samadapt.inference.folder_work import FolderWork
    from samadapt.inference.mask_store import open_store
    from samadapt.inference.output_settings import check_processes, refuse_single_image

    work = FolderWork(plan, "masks", part)
    refuse_single_image(work)
    plan = work.own
    segmenter, how = _load(asked)
    finder = MaskFinder(segmenter, mask_options(asked), is_adapted=asked.adapter is not None)
    check_processes(plan, finder.settings)
    with work, ExitStack() as shown:
        store = open_store(work, finder.settings, finder.category, overwrite=asked.overwrite)
        places = {planned.path.name: i for i, planned in enumerate(plan.images, start=1)}

        def start(name: str) -> Callable[[int, int], None]:
            # The bar of one image ends when the next image starts.
            shown.close()
            count = f"{places[name]}/{len(places)} " if name in places else ""
            return shown.enter_context(console.bar(f"{count}{name}"))

        progress = start if processes.is_first() else None
        rows = find_planned(
            finder, plan, how, store, sa1b=sa1b, preview=asked.preview, progress=progress
        )
    _say(rows)
    head = {"adapter": asked.adapter, "model": segmenter.record.base, "input": asked.input}
    if not plan.is_folder:
        return head | rows[0]
    failed = any("error" in row for row in rows)
    return head | {
        "output": asked.output,
        "files": rows,
        "other_files": list(plan.others),
        "exit_code": int(failed),
    }


def _parse(arguments: Sequence[str]) -> MaskArguments:
    """Return the keys of the command line, over those of ``settings=FILE``."""
    named = [text.split("=", 1)[1] for text in arguments if text.startswith("settings=")]
    if not named:
        return parse_settings(MaskArguments, arguments)
    file = Path(named[-1]).expanduser()
    keys = read_yaml(file).get("options")
    known = {item.name for item in fields(MaskOptions)}
    if not isinstance(keys, dict) or not set(keys) <= known:
        raise ConfigError(f"{file}: expected a file that samadapt masks tune=true wrote")
    return parse_settings(MaskArguments, arguments, keys, origin=str(file))


def _tune(asked: MaskArguments) -> dict[str, Any]:
    """Choose the thresholds, write them, and return them with their scores."""
    import yaml

    from samadapt.adapters.hub import adapter_path
    from samadapt.runs.tune_masks import tune_masks, tuned_yaml
    from samadapt.system import atomic

    refuse_several_processes()
    segmenter, _ = _load(asked)
    adapter = adapter_path(str(asked.adapter))
    with console.bar("tune") as show:
        tuned = tune_masks(
            segmenter,
            adapter,
            mask_options(asked),
            asked.root,
            images=asked.tune_images,
            progress=show,
        )
    content = tuned_yaml(tuned)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    atomic.write_text(Path(asked.output).expanduser(), text)
    for warning in tuned.warnings:
        console.log(f"samadapt: warning: {warning}")
    return {"adapter": asked.adapter, "output": asked.output, **content}


def _check(asked: MaskArguments) -> None:
    """Refuse keys that contradict each other.

    Raises:
        ConfigError: naming the keys.
    """
    asked.check_model("masks")
    asked.check_part()
    if asked.tune and (asked.launcher.name or asked.parts):
        raise ConfigError("tune=true runs here, as one call; leave the launcher and parts out")
    needed = ("output",) if asked.tune else ("input", "output")
    if missing := [key for key in needed if not getattr(asked, key)]:
        raise ConfigError(f"{missing[0]}: this key is required")
    if asked.tune and asked.adapter is None:
        raise ConfigError("tune=true: expected adapter=DIR, which knows its data set; got model")
    if asked.tune and Path(asked.output).suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"output: tune=true writes a .yaml file for settings; got {asked.output}")


def mask_options(asked: MaskOptions) -> MaskOptions:
    """Return the keys that say how masks are found."""
    return MaskOptions(**{item.name: getattr(asked, item.name) for item in fields(MaskOptions)})


def plan_masks(asked: MaskArguments | AutomaticArguments) -> PredictionPlan:
    """Find the images and their outputs, and refuse what cannot be read or written."""
    from samadapt.adapters.hub import adapter_path
    from samadapt.adapters.record import read_record
    from samadapt.inference.files import plan_prediction
    from samadapt.inference.inputs import chosen_channels

    channels = None
    if asked.adapter is not None:
        channels = chosen_channels(read_record(adapter_path(asked.adapter)), None)
    return plan_prediction(asked.input, Path(asked.output), channels)


def _load(asked: MaskArguments | AutomaticArguments) -> tuple[Segmenter, ReaderOptions]:
    """Load the adapter or the base model; return it and how it reads images."""
    from samadapt.inference.options import PredictionOptions

    segmenter = open_model(asked, asked.adapter)
    return segmenter, segmenter.reader_options(PredictionOptions())


def open_model(asked: ChosenModel, adapter: str | Sequence[str] | None) -> Segmenter:
    """Load a model as the keys of a command say.

    Args:
        asked: the keys.
        adapter: the adapter, or several; None: the base model that the keys name.
    """
    from samadapt.inference.automatic import open_segmenter

    return open_segmenter(
        adapter,
        asked.model,
        checkpoint=asked.checkpoint,
        image_size=asked.image_size,
        intensity=asked.intensity,
        axis=asked.axis,
        device=asked.device,
        precision=asked.precision,
        compile=asked.compile,
    )


def render(result: dict[str, Any]) -> str:
    """Return the number of masks and the path; for a folder, a line for each file."""
    if "scores" in result:
        return _render_tuned(result)
    if "files" not in result and "jobs" in result:
        return _jobs(result)
    if "files" not in result:
        shown = f"\n{result['preview']}" if "preview" in result else ""
        return f"{result['masks']} masks: {result['output']}{shown}"
    rows = [
        [Path(row["input"]).name, Path(row.get("output", "")).name, _said(row)]
        for row in result["files"]
    ]
    done = sum("error" not in row for row in result["files"])
    lines = [console.table(["file", "output", "masks"], rows), ""]
    lines.append(f"{result['output']}: {done} of {len(rows)} files")
    if result["other_files"]:
        lines.append(f"skipped, as they are no images: {', '.join(result['other_files'])}")
    if result.get("failed"):
        lines.append(_jobs(result))
    return "\n".join(lines)


def _jobs(result: dict[str, Any]) -> str:
    """Return the jobs of a folder, and how to go on if one failed."""
    from samadapt.reports.jobs import jobs_text

    return jobs_text(result, f"output: {result['output']}", "the same command")


def _render_tuned(result: dict[str, Any]) -> str:
    """Return the scores before and after as a table, the chosen keys, and the path."""
    rows = [
        [
            name.replace("_", "-"),
            side,
            *("-" if values[key] is None else f"{values[key]:.3f}" for key in SCORES),
        ]
        for name, sides in result["scores"].items()
        for side, values in sides.items()
    ]
    keys = ", ".join(f"{key}={value}" for key, value in result["options"].items())
    images = result["images"]
    counts = (
        f"\nchosen on {images['chosen_on']} validation pictures with {result['objects']} objects, "
        f"scored on {images['scored_on']} held-out pictures"
    )
    kept = (
        "" if result["is_tuned"] else "no other thresholds were better: the given ones are kept\n"
    )
    return "\n".join(
        [
            console.table(["pictures", "thresholds", *SCORES.values()], rows),
            counts,
            f"{kept}{keys}",
            str(result["output"]),
        ]
    )


def _said(row: dict[str, Any]) -> str:
    if "error" in row:
        return "failed"
    return "written before" if row.get("skipped") else str(row["masks"])
