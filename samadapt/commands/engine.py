"""``samadapt engine``: the data engine of SAM's paper, one stage a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.commands import masks
from samadapt.config.compose import parse_settings, stored_values
from samadapt.config.engine_arguments import (
    AcceptArguments,
    AutomaticArguments,
    EngineModel,
    ProposeArguments,
    RankArguments,
    RetrainArguments,
)
from samadapt.errors import ConfigError, nearest
from samadapt.system.launchers import refuse_several_processes

if TYPE_CHECKING:
    from samadapt.engine.proposals import Proposer
    from samadapt.engine.workspace import Workspace
    from samadapt.inference.automatic import MaskFinder
    from samadapt.inference.segmenter import Segmenter

HELP = """
Builds a labelled data set with people and a model in turn, as the data engine of SAM's paper. The
first argument is the stage:

  propose    masks for images without labels: from prompts, an adapter, or everything found
  rank       the images whose labels would help most, each with the reason
  accept     corrected masks come back as versions; what was changed is measured
  retrain    fine-tune from the last adapter on what is accepted; quality by round
  automatic  the masks of everything in a folder, without people, as the paper's third stage

The first four work in a folder, workspace=DIR, which holds proposals, accepted masks with their
versions, rounds, and an index of them. The images stay where they are. Any tool corrects the masks
that reads and writes PNG, NIfTI, COCO or labelme.

  samadapt engine propose workspace=cells input=pictures/ adapter=DIR
  samadapt engine rank workspace=cells
  samadapt engine accept workspace=cells names=[a,b]
  samadapt engine accept workspace=cells input=checked.json held_out=true
  samadapt engine retrain workspace=cells recipe=photos
  samadapt engine propose workspace=cells

`samadapt engine STAGE --help` explains a stage and lists its keys.
"""
SCHEMA = None

PROPOSE = """
Draws a mask for each image that has no accepted one. input=FOLDER begins a workspace. An adapter
that was trained without prompts finds its classes; prompts=FILE prompts the model with boxes and
points; any other model finds everything, and the masks number objects. Without adapter or model the
adapter of the last round draws.

The masks are in WORKSPACE/proposals, where they stay, and as copies in WORKSPACE/correct, where
people correct them. A copy that somebody has changed is not replaced. Images that have a proposal
of the same model are skipped, so the command continues after an interruption.

  samadapt engine propose workspace=cells input=pictures/ adapter=DIR
  samadapt engine propose workspace=cells input=pictures/ model=vit_b prompts=boxes.yaml
  samadapt engine propose workspace=cells top=20
"""

RANK = """
Puts the images without an accepted mask in the order in which labelling them helps most, and says
why. The model is unsure of an image if the IoU that it predicts for its masks is low, if their
outlines depend on the threshold (stability), and if several views disagree: adapters of several
folds (adapter=CROSS_VALIDATION or [a,b]) or the mirrored copy (tta=flip). An image is new if its
embedding is far from those of all labelled images and of all that are ranked before it.

The order is in WORKSPACE/ranking.csv; propose top=N proposes for its first images.

  samadapt engine rank workspace=cells tta=flip
  samadapt engine rank workspace=cells adapter=runs/photos/CROSS_VALIDATION diversity=0.3
"""

ACCEPT = """
Reads corrected masks back and keeps them as new versions; older ones stay. For each mask the index
records what proposed it (the sha256 of the adapter), who corrected it, and what was changed: the
share of pixels, Dice, and the objects that were added and removed.

input is a folder of mask files named as their images, a COCO file, or a folder of labelme's files.
Without input the files in WORKSPACE/correct count, for the images that names lists: list those that
somebody has looked at. held_out=true accepts masks that measure each round and never train.

A workspace can also begin with masks that were drawn by hand: images=FOLDER names the images, and
classes the classes.

  samadapt engine accept workspace=cells names=[a,b] by=anna
  samadapt engine accept workspace=cells input=export/ held_out=true
  samadapt engine accept workspace=new images=pictures/ input=masks/ 'classes={cell: 255}'
"""

RETRAIN = """
Fine-tunes on the last versions of all masks that are accepted for training, from the adapter of the
last round (init=DIR names another one for the first; otherwise the adapter that proposed the masks,
or the base model). The held-out masks measure every round and are refused as training data, also
under another name. Recipe and keys are those of samadapt finetune; the workspace decides the data.
A round that was stopped goes on when the command is repeated.

The run is in WORKSPACE/rounds, and WORKSPACE/report.html shows quality by round: Dice of the
held-out images, and how many of the new masks needed correction.

  samadapt engine retrain workspace=cells recipe=photos train.steps=100
"""

AUTOMATIC = """
Finds the masks of everything in a folder of images with the settings of SAM's paper (Kirillov et
al. 2023, appendix B): a grid of 32 x 32 points on the image, 16 x 16 on each of 2 x 2 crops and
8 x 8 on each of 4 x 4 crops; predicted IoU above 0.88, stability of at least 0.95 at 1 logit,
NMS at 0.7 in each crop and between crops, where the finer crop wins; masks that end at the inner
border of a crop or cover 95 % of the image are dropped, and so are components, holes and masks
below 100 pixels. Every value is a key.

Run the command again to continue a folder that was interrupted. masks_settings.yaml beside the
masks says which model, which adapter (by its sha256) and which settings found them.

The thresholds fit SAM's own weights. A model that predicts lower IoUs keeps few masks or none: use
min_iou=0 relative_iou=0.85 min_stability=0.5, or samadapt masks, which chooses by the model.

  samadapt engine automatic model=vit_b input=pictures/ output=found/
  samadapt engine automatic adapter=DIR input=pictures/ output=found.json min_iou=0.8
"""


@dataclass(frozen=True)
class Stage:
    """One stage of the engine, as ``cli`` runs a command.

    Attributes:
        HELP: the text of ``samadapt engine STAGE --help``.
        SCHEMA: the class of settings with its keys.
        run: takes the arguments and returns plain values.
        render: takes these values and returns text for people.
    """

    HELP: str
    SCHEMA: type[Any]
    run: Callable[[Sequence[str]], dict[str, Any]]
    render: Callable[[dict[str, Any]], str]


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Refuse arguments that name no stage; ``cli`` calls the stages themselves.

    Raises:
        ConfigError: always.
    """
    named = arguments[0] if arguments else ""
    found = f"got {named!r}{nearest(named, STAGES)}" if named else "got none"
    raise ConfigError(
        f"engine: expected a stage as the first argument ({', '.join(STAGES)}); {found}"
    )


def render(result: dict[str, Any]) -> str:
    """Return nothing: ``run`` never ends."""
    return ""


def _propose(arguments: Sequence[str]) -> dict[str, Any]:
    """Draw masks for the images of a workspace, which is made if it is new.

    Raises:
        ConfigError: the arguments are wrong.
        AdapterError: the adapter is refused, or does not fit the workspace.
        DataError: the workspace or the folder of images cannot be used.
    """
    asked = parse_settings(ProposeArguments, arguments)
    asked.check_workspace()
    if asked.names is not None and asked.top is not None:
        raise ConfigError("names and top both choose images: give one of the two")
    from samadapt.engine.proposals import check_workspace, propose, wanted_images
    from samadapt.engine.workspace import opened

    root = Path(asked.workspace).expanduser()
    loaded = _begin(asked, root)
    with opened(root) as workspace, ExitStack() as shown:
        _refuse_other_beginning(asked, workspace)
        workspace.refresh()
        names = None if asked.names is None else workspace.named(asked.names)
        model = loaded or _load(asked, workspace)
        proposer = model.proposer(workspace.index.objects)
        maker = proposer.maker(model.adapter)
        check_workspace(workspace, proposer)
        if asked.top is not None:
            labelled = {one.image for one in workspace.index.accepted}
            order = [one.image for one in workspace.index.ranking if one.image not in labelled]
            if not order:
                raise ConfigError("top: there is no ranking of unlabelled images; rank them first")
            names = order[: asked.top]
        wanted = wanted_images(workspace, proposer, maker, names)
        rows = propose(workspace, proposer, maker, wanted, _bars(shown, wanted))
    _log_errors(rows)
    return {
        "workspace": asked.workspace,
        "how": proposer.how,
        "adapter": maker.adapters,
        "images": rows,
        "exit_code": int(any("error" in row for row in rows)),
    }


def _rank(arguments: Sequence[str]) -> dict[str, Any]:
    """Put the images without an accepted mask in the order of labelling.

    Raises:
        ConfigError: the arguments are wrong.
        AdapterError: the adapter is refused, or does not fit the workspace.
        DataError: the workspace or an image cannot be read.
    """
    asked = parse_settings(RankArguments, arguments)
    asked.check_workspace()
    from samadapt.engine.proposals import check_workspace
    from samadapt.engine.ranking import CSV_NAME, rank_images, write_ranking
    from samadapt.engine.workspace import opened

    root = Path(asked.workspace).expanduser()
    with opened(root) as workspace, ExitStack() as shown:
        workspace.refresh()
        model = _load(asked, workspace)
        proposer = model.proposer(workspace.index.objects)
        check_workspace(workspace, proposer)
        several = asked.tta is not None or model.segmenter.member_count > 1
        ranking = rank_images(
            workspace,
            proposer,
            several=several,
            diversity=asked.diversity,
            progress=_bars(shown, list(workspace.index.images)),
        )
        workspace.index.ranking = ranking
        file = write_ranking(root / CSV_NAME, ranking)
    return {
        "workspace": asked.workspace,
        "file": str(file),
        "top": asked.top,
        "ranking": [asdict(one) for one in ranking],
    }


def _accept(arguments: Sequence[str]) -> dict[str, Any]:
    """Keep corrected masks as new versions.

    Raises:
        ConfigError: the arguments are wrong.
        DataError: the workspace or the masks cannot be read.
    """
    asked = parse_settings(AcceptArguments, arguments)
    asked.check_workspace()
    if asked.input is None and asked.names is None:
        raise ConfigError(
            "accept: expected input=PATH, or names=[a,b] of the images in correct/ that somebody "
            "has looked at; got neither"
        )
    from samadapt.engine.acceptance import accept
    from samadapt.engine.corrections import detect_format
    from samadapt.engine.proposals import CORRECT
    from samadapt.engine.workspace import opened

    root = Path(asked.workspace).expanduser()
    source = root / CORRECT if asked.input is None else Path(asked.input).expanduser()
    _begin_by_hand(asked, root)
    with opened(root) as workspace:
        workspace.refresh()
        if asked.names is not None:
            workspace.named(asked.names)
        rows = accept(
            workspace,
            source,
            detect_format(source) if asked.format == "auto" else asked.format,
            names=asked.names,
            values=asked.classes,
            by=asked.by,
            held_out=asked.held_out,
        )
        counts = {
            "training": len(workspace.current(held_out=False)),
            "held_out": len(workspace.current(held_out=True)),
            "unlabelled": len(workspace.unlabelled()),
        }
    _log_errors(rows)
    failed = any("error" in row for row in rows)
    return {"workspace": asked.workspace, "images": rows, **counts, "exit_code": int(failed)}


def _retrain(arguments: Sequence[str]) -> dict[str, Any]:
    """Train on what is accepted, and return quality by round.

    Raises:
        ConfigError: the arguments are wrong, or nothing is accepted yet.
        UserError: as ``samadapt finetune``.
    """
    refuse_several_processes()
    path, base, others = stored_values(arguments)
    asked = parse_settings(RetrainArguments, others, base, origin=str(path))
    from samadapt.engine.workspace import opened
    from samadapt.runs.engine_round import retrain

    with opened(Path(asked.workspace).expanduser()) as workspace:
        result = retrain(workspace, asked)
    return {
        "workspace": asked.workspace,
        "run_dir": str(result.run_dir),
        "adapter_dir": str(result.run_dir / "adapter"),
        "report": str(result.report),
        "rounds": result.rows,
    }


def _render_rounds(result: dict[str, Any]) -> str:
    """Return quality by round, and the paths."""
    from samadapt.reports.rounds import rounds_table

    table = console.to_text(rounds_table(result["rounds"]))
    return f"{table}\nadapter  {result['adapter_dir']}\nreport   {result['report']}"


@dataclass(frozen=True)
class LoadedModel:
    """The model of a stage.

    Attributes:
        asked: the keys of the stage.
        segmenter: the model.
        adapter: what was loaded; None: a base model.
        prompts: the prompts of each image; None: there are none.
    """

    asked: EngineModel
    segmenter: Segmenter
    adapter: str | Sequence[str] | None
    prompts: dict[str, dict[str, Any]] | None

    def proposer(self, objects: bool | None) -> Proposer:
        """Return what draws masks; ``objects`` is what the workspace holds, None if it is new."""
        from samadapt.engine.proposals import make_proposer

        return make_proposer(
            self.segmenter,
            prompts=self.prompts,
            find=self._finders,
            tta=self.asked.tta,
            is_adapted=self.adapter is not None,
            objects=objects,
        )

    def _finders(self) -> list[MaskFinder]:
        """Return what finds masks without prompts: one for each adapter."""
        from samadapt.inference.automatic import MaskFinder
        from samadapt.inference.ensemble import member_directories

        options = masks.mask_options(self.asked)
        if self.adapter is None:
            return [MaskFinder(self.segmenter, options, is_adapted=False)]
        folders = member_directories(self.adapter)
        members = [self.segmenter]
        if len(folders) > 1:
            members = [masks.open_model(self.asked, str(folder)) for folder in folders]
        return [MaskFinder(member, options, is_adapted=True) for member in members]


def _begin(asked: ProposeArguments, root: Path) -> LoadedModel | None:
    """Make a workspace if there is none, and return the model that it was made for.

    Raises:
        ConfigError: the keys of a new workspace are missing or contradict each other.
    """
    from samadapt.engine.workspace import INDEX, create_workspace
    from samadapt.inference.options import PredictionOptions

    if (root / INDEX).is_file():
        return None
    if asked.input is None:
        raise ConfigError(f"input: {root} is a new workspace; name the folder of its images")
    asked.check_model("engine propose")
    model = _load(asked, None)
    proposer = model.proposer(asked.objects)
    classes = list(asked.classes or model.segmenter.classes)
    if proposer.objects and len(classes) > 1:
        raise ConfigError(
            f"classes: masks that number objects have one class; got {', '.join(classes)}. Name one"
        )
    how = model.segmenter.reader_options(PredictionOptions())
    folder = Path(asked.input).expanduser()
    create_workspace(root, folder, classes, how, objects=proposer.objects)
    return model


def _begin_by_hand(asked: AcceptArguments, root: Path) -> None:
    """Make a workspace for masks that were drawn without a model, if images names its folder.

    Raises:
        ConfigError: the workspace is there already, or no class is named.
    """
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.engine.workspace import INDEX, create_workspace

    if asked.images is None and asked.objects is None:
        return
    if asked.images is None or (root / INDEX).is_file():
        raise ConfigError(
            f"images and objects begin a workspace together, and {root} "
            + ("is there already; leave them out" if asked.images else "needs images=FOLDER")
        )
    if not asked.classes or (asked.objects and len(asked.classes) > 1):
        raise ConfigError(
            "classes: a workspace that begins with masks needs the names of its classes, such as "
            "{cell: 1}, and one of them if masks number objects"
        )
    folder = Path(asked.images).expanduser()
    create_workspace(
        root, folder, list(asked.classes), ReaderOptions(), objects=bool(asked.objects)
    )


def _refuse_other_beginning(asked: ProposeArguments, workspace: Workspace) -> None:
    """Refuse keys that were settled when the workspace was made.

    Raises:
        ConfigError: naming the key.
    """
    index = workspace.index
    settled: dict[str, tuple[Any, Any]] = {
        "input": (asked.input and str(Path(asked.input).expanduser().resolve()), index.folder),
        "classes": (asked.classes and list(asked.classes), index.classes),
        "objects": (asked.objects, index.objects),
    }
    for key, (given, known) in settled.items():
        if given is not None and given != known:
            raise ConfigError(
                f"{key}: this workspace was begun with {known}; got {given}. Leave the key out, or "
                "begin another workspace"
            )


def _load(asked: EngineModel, workspace: Workspace | None) -> LoadedModel:
    """Load the model of a stage: the one that is named, or the adapter of the last round.

    Raises:
        ConfigError: no model is known.
    """
    from samadapt.engine.proposals import read_prompts

    adapter: Any = asked.adapter
    if adapter is None and asked.model is None and workspace is not None:
        last = workspace.last_adapter()
        if last is None:
            raise ConfigError(
                "adapter: there is no round yet whose adapter could be used; give adapter=DIR, or "
                "model=NAME for a base model"
            )
        adapter = str(last)
    elif workspace is not None:
        asked.check_model("engine")
    prompts = None if asked.prompts is None else read_prompts(Path(asked.prompts).expanduser())
    return LoadedModel(asked, masks.open_model(asked, adapter), adapter, prompts)


def _bars(shown: ExitStack, names: Sequence[str]) -> Callable[[str], Callable[[int, int], None]]:
    """Return what shows a bar for each image; the bar of one ends when the next one starts."""

    def start(name: str) -> Callable[[int, int], None]:
        shown.close()
        return shown.enter_context(console.bar(f"{names.index(name) + 1}/{len(names)} {name}"))

    return start


def _log_errors(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if "error" in row:
            console.log(f"samadapt: {row['error']}")


def _render_proposed(result: dict[str, Any]) -> str:
    """Return a line for each image, and where the masks are."""
    rows = result["images"]
    if not rows:
        return "nothing to propose: every image has an accepted mask, or one of this model"
    cells = [
        [row["image"], "failed" if "error" in row else f"{row['foreground']:.1%}", _copied(row)]
        for row in rows
    ]
    table = console.table(["image", "foreground", "to correct"], cells)
    done = sum("error" not in row for row in rows)
    return f"{table}\n\n{result['how']}: {done} of {len(rows)} images in {result['workspace']}"


def _copied(row: dict[str, Any]) -> str:
    if "error" in row:
        return ""
    return row["correct"] or "kept: somebody has corrected an earlier proposal"


def _render_ranked(result: dict[str, Any]) -> str:
    """Return the first images with their reasons, and the file of all."""
    rows = [
        [str(place), one["image"], f"{one['score']:.2f}", one["reason"]]
        for place, one in enumerate(result["ranking"][: result["top"]], start=1)
    ]
    if not rows:
        return "nothing to rank: every image has an accepted mask"
    table = console.table(["place", "image", "score", "reason"], rows)
    return f"{table}\n\n{len(result['ranking'])} images: {result['file']}"


def _render_accepted(result: dict[str, Any]) -> str:
    """Return what was changed in each mask, and how many masks there are now."""
    rows = [[row["image"], *_changed(row)] for row in result["images"]]
    head = ["image", "version", "pixels changed", "Dice", "objects", "added", "removed"]
    counts = "{training} images for training, {held_out} held out, {unlabelled} unlabelled"
    return f"{console.table(head, rows)}\n\n{counts.format_map(result)}"


def _changed(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return ["failed", *[""] * 5]
    version = str(row["version"])
    if row.get("same"):
        return [version, "as before", *[""] * 4]
    changes = row["changes"]
    if changes is None:
        return [version, "drawn by hand", *[""] * 4]
    return [
        version,
        f"{changes['pixels']:.2%}",
        f"{changes['dice']:.3f}",
        str(changes["objects_after"]),
        str(changes["added"]),
        str(changes["removed"]),
    ]


def _automatic(arguments: Sequence[str]) -> dict[str, Any]:
    """Find the masks of a folder as the paper's third stage does.

    Raises:
        ConfigError: the arguments are wrong.
        AdapterError: the adapter is refused, or takes no prompts.
        DataError: a file cannot be read or written.
    """
    asked = parse_settings(AutomaticArguments, arguments)
    asked.check_model("engine automatic")
    if missing := [key for key in ("input", "output") if not getattr(asked, key)]:
        raise ConfigError(f"{missing[0]}: this key is required")
    plan = masks.plan_masks(asked)
    sa1b = asked.format == "sa1b" and plan.is_folder and not plan.is_coco
    if sa1b:  # pictures alone: the masks of volumes are numbers on their grid
        images = [
            replace(one, output=one.output.with_suffix(".json"))
            if isinstance(one.output, Path) and one.output.suffix == ".png"
            else one
            for one in plan.images
        ]
        plan = replace(plan, images=images)
    return masks.find_masks(asked, plan, sa1b=sa1b)


STAGES: Mapping[str, Stage] = {
    "propose": Stage(PROPOSE, ProposeArguments, _propose, _render_proposed),
    "rank": Stage(RANK, RankArguments, _rank, _render_ranked),
    "accept": Stage(ACCEPT, AcceptArguments, _accept, _render_accepted),
    "retrain": Stage(RETRAIN, RetrainArguments, _retrain, _render_rounds),
    "automatic": Stage(AUTOMATIC, AutomaticArguments, _automatic, masks.render),
}
"""The stages by name."""
