"""``samadapt engine retrain``: a training on what is accepted, from the last adapter.

A round is a run like any other, in ``rounds/0001/run`` of the workspace. Its data set is the folder
``rounds/0001/data``: the images as links, and copies of the masks in the versions that were the
last when the round began. The held-out images are those that were accepted with ``held_out=true``.
A round that was stopped goes on when the command is repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.adapters.record import read_record, sha256_of
from samadapt.adapters.store import WEIGHTS
from samadapt.config.compose import parse_settings, resolved, to_dict
from samadapt.config.engine_arguments import RetrainArguments
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.config.schema import Config, Data
from samadapt.data.formats.base import AXES
from samadapt.engine.workspace import AcceptedMask, Round, Workspace, now
from samadapt.errors import ConfigError, DataError, UserError
from samadapt.reports.rounds import masks_table, write_rounds_page
from samadapt.runs.batch_size import with_batch_size
from samadapt.runs.evaluate import evaluate
from samadapt.runs.finetune import train_and_score
from samadapt.runs.initial_adapter import adapter_folder, with_initial_digest
from samadapt.runs.part_runs import is_finished, prepare_part, read_summary
from samadapt.runs.recorded_configuration import recorded_keys
from samadapt.runs.run_description import configuration_text
from samadapt.system import atomic


@dataclass(frozen=True)
class RoundResult:
    """What ``retrain`` returns.

    Attributes:
        run_dir: the run of the round.
        rows: quality by round; see ``reports.rounds.rounds_table``.
        report: the page of the workspace.
    """

    run_dir: Path
    rows: list[dict[str, Any]]
    report: Path


def retrain(workspace: Workspace, arguments: RetrainArguments) -> RoundResult:
    """Train on the accepted masks of a workspace, and score the held-out ones.

    Args:
        workspace: the workspace, open in this process.
        arguments: the keys of the run; what the workspace decides is replaced.

    Raises:
        ConfigError: keys contradict the engine, or nothing is accepted yet.
        DataError: an image or a mask is missing, or trains and is held out.
        UserError: as ``finetune``.
        InterruptedRunError: the round was stopped; it goes on when the command is repeated.
    """
    refuse_other_divisions(arguments)
    shared = {item.name: getattr(arguments, item.name) for item in fields(Config)}
    one = started_round(workspace) or begin_round(workspace, arguments.init)
    folder = workspace.root / "rounds" / f"{one.number:04d}"
    build_data(workspace, one, folder / "data")
    config = round_config(workspace, Config(**shared), one, folder / "data")
    run_dir = folder / "run"
    if one.number == 1 and one.init is not None and one.before is None:
        one.before = score_before(Path(one.init), config, folder)
        workspace.save()
    if not is_finished(run_dir):
        config = resolved(config)
        if config.init is not None:
            config = with_initial_digest(config)
        with hint(workspace, one, folder):
            train_and_score(prepare_part(with_batch_size(config), run_dir), run_dir)
    summary = read_summary(run_dir)
    if summary["adapted"] is None:
        raise ConfigError(
            "retrain: this configuration trains nothing (peft=none), so a round brings no adapter"
        )
    one.after = scores_of(summary["adapted"])
    one.run_dir = run_dir.relative_to(workspace.root).as_posix()
    one.adapter_sha256 = sha256_of(run_dir / "adapter" / WEIGHTS)
    workspace.save()
    rows = round_rows(workspace)
    return RoundResult(run_dir, rows, write_report(workspace, rows, summary, config))


def refuse_other_divisions(arguments: RetrainArguments) -> None:
    """Refuse keys that the engine sets itself.

    Raises:
        ConfigError: naming the key.
    """
    for key in ("folds", "resume"):
        value = getattr(arguments, key)
        if value is not None:
            raise ConfigError(
                f"{key}={value}: a round is one run, and repeating the command resumes it; leave "
                f"{key} out"
            )
    if arguments.baseline.name is not None:
        raise ConfigError("baseline: a round trains an adapter; leave baseline out")


def started_round(workspace: Workspace) -> Round | None:
    """Return the last round if it was stopped, with the masks that it began with."""
    rounds = workspace.index.rounds
    if not rounds or rounds[-1].run_dir:
        return None
    console.log(f"samadapt: round {rounds[-1].number} was begun before and goes on")
    return rounds[-1]


def begin_round(workspace: Workspace, init: str | None) -> Round:
    """Record a new round on the last versions of the accepted masks.

    Args:
        workspace: the workspace.
        init: the adapter that the user names; None: that of the last round, or the one that
            proposed the accepted masks.

    Raises:
        ConfigError: there is nothing to train on, or nothing to score.
        DataError: an image trains and is held out.
    """
    training, held_out = (workspace.current(held_out=side) for side in (False, True))
    if not training:
        raise ConfigError("retrain: no mask is accepted for training yet (samadapt engine accept)")
    if not held_out:
        raise ConfigError(
            "retrain: no image is held out, so no round could be compared with another. Accept "
            "some masks with held_out=true first; they measure every round and never train"
        )
    check_sides(workspace, training, held_out)
    first = workspace.last_adapter()
    adapter = adapter_folder(init) if init is not None else first or proposing(workspace)
    one = Round(
        number=len(workspace.index.rounds) + 1,
        time=now(),
        masks={name: mask.version for name, mask in training.items()},
        held_out={name: mask.version for name, mask in held_out.items()},
        init=None if adapter is None else str(adapter.resolve()),
        init_sha256=None if adapter is None else sha256_of(adapter / WEIGHTS),
    )
    workspace.index.rounds.append(one)
    return one


def check_sides(
    workspace: Workspace,
    training: Mapping[str, AcceptedMask],
    held_out: Mapping[str, AcceptedMask],
) -> None:
    """Refuse held-out images as training data, whatever they are called.

    Raises:
        DataError: naming the two.
    """
    digests = {workspace.index.images[name].digest: name for name in held_out}
    for name in training:
        digest = workspace.index.images[name].digest
        if digest and digest in digests:
            raise DataError(
                f"{name}: this image is {digests[digest]}, which is held out, and held-out images "
                "never train. Remove one of the two from the images, and accept the other again"
            )


def proposing(workspace: Workspace) -> Path | None:
    """Return the adapter of the last proposals; None: a base model, or several adapters."""
    makers = workspace.index.makers
    if not makers or len(makers[-1].adapters) != 1:
        return None
    return Path(makers[-1].adapters[0])


def build_data(workspace: Workspace, one: Round, folder: Path) -> None:
    """Make the data set of a round: ``images/``, ``masks/`` and ``held_out.txt``.

    Raises:
        DataError: an image or a mask is missing, or a mask was changed after it was accepted.
    """
    versions = {(mask.image, mask.version): mask for mask in workspace.index.accepted}
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, version in {**one.masks, **one.held_out}.items():
        image, mask = workspace.image_path(name), versions[name, version]
        source = workspace.root / mask.file
        if not image.is_file():
            raise DataError(f"{image}: this image of the workspace is gone; restore it")
        if not source.is_file() or sha256_of(source) != mask.sha256:
            raise DataError(f"{source}: this mask was changed or removed after it was accepted")
        link(image, folder / "images" / image.name)
        ending = workspace.ending(name)
        shutil.copyfile(source, folder / "masks" / f"{name}{ending}")
    atomic.write_text(folder / "held_out.txt", "".join(f"{name}\n" for name in one.held_out))


def link(source: Path, target: Path) -> None:
    """Link to a file, or copy it where the system has no links for this user."""
    if target.exists():
        return
    try:
        target.symlink_to(source.resolve())
    except OSError:
        with atomic.file(target) as part:
            shutil.copyfile(source, part)


def round_config(workspace: Workspace, config: Config, one: Round, folder: Path) -> Config:
    """Return the configuration of a round: the user's keys with the data of the workspace."""
    index, reading = workspace.index, workspace.index.reading
    axis = next((name for name, axis in AXES.items() if axis == reading["axis"]), None)
    intensity: Any = config.data.intensity
    if one.init is not None:  # what the adapter has learnt to see
        intensity = read_record(Path(one.init)).intensity
    kept = ("neighbours", "empty_slices", "slice_step", "tile", "tile_overlap", "patient")
    data = Data(
        **{key: getattr(config.data, key) for key in kept},
        name=index.reader,
        root=str(folder),
        axis=axis if index.reader != "folder" else None,
        channel=reading["channel"],
        spacing=reading["spacing"],
        intensity=intensity,
        exif=(reading["exif"] or "apply") if index.reader == "folder" else None,
        classes=None
        if index.objects
        else {name: value for value, name in enumerate(index.classes, start=1)},
        instances=index.objects,
        held_out=str(folder / "held_out.txt"),
        max_gb=config.data.max_gb,
        max_seconds=config.data.max_seconds,
    )
    cache = config.cache
    if cache.dir is None:  # frozen features of an image are the same in every round
        cache = replace(cache, dir=str(workspace.root / "features"))
    return replace(config, data=data, cache=cache, init=one.init, init_sha256=one.init_sha256)


def score_before(adapter: Path, config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the scores of the first adapter on the held-out images: round 0.

    An adapter of other classes or prompts may start a training, but cannot be scored here. Then the
    reason is logged, and the first round has nothing before it.
    """
    try:
        record = read_record(adapter)
        keys = recorded_keys(adapter, record)
        keys.pop("privacy", None)
        keys |= {"data": to_dict(config.data), "output": {"dir": str(folder / "before")}}
        keys |= {"cache": to_dict(config.cache), "device": config.device}
        keys |= {"adapter": str(adapter), "checkpoint": config.model.checkpoint}
        result = evaluate(parse_settings(EvaluateArguments, [], keys), record)
    except UserError as error:
        console.log(f"samadapt: note: the first adapter is not scored: {error}")
        return None
    return scores_of(result.summary["adapted"])


def scores_of(adapted: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the index keeps of the scores in a summary."""
    return {
        "dice": adapted["dice"],
        "interval": adapted["detail"]["dice"].get("interval"),
        "per_class": {name: row.get("dice") for name, row in adapted["per_class"].items()},
    }


@contextmanager
def hint(workspace: Workspace, one: Round, folder: Path) -> Iterator[None]:
    """Say how a round goes on that was stopped; one that was refused is forgotten."""
    try:
        yield
    except UserError:
        workspace.index.rounds.remove(one)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        console.log(
            f"samadapt: round {one.number} goes on with: samadapt engine retrain "
            f"workspace={workspace.root} and the same keys"
        )
        raise


def round_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """Return quality by round, from round 0, the model before the first."""
    done = [one for one in workspace.index.rounds if one.run_dir]
    first = done[0]
    rows = [
        {
            "round": 0,
            "masks": 0,
            "new": 0,
            "needed": None,
            "proposal_dice": None,
            "pixels": None,
            "dice": (first.before or {}).get("dice"),
            "interval": (first.before or {}).get("interval"),
            "adapter_sha256": first.init_sha256 or "",
        }
    ]
    known: dict[str, int] = {}
    versions = {(mask.image, mask.version): mask for mask in workspace.index.accepted}
    for one in done:
        fresh = [versions[key] for key in one.masks.items() if known.get(key[0]) != key[1]]
        changes = [mask.changes for mask in fresh if mask.changes is not None]
        rows.append(
            {
                "round": one.number,
                "masks": len(one.masks),
                "new": len(fresh),
                "needed": _mean([float(change["needed"]) for change in changes]),
                "proposal_dice": _mean([change["dice"] for change in changes]),
                "pixels": _mean([change["pixels"] for change in changes]),
                "dice": (one.after or {}).get("dice"),
                "interval": (one.after or {}).get("interval"),
                "adapter_sha256": one.adapter_sha256,
            }
        )
        known = one.masks
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_report(
    workspace: Workspace, rows: list[dict[str, Any]], summary: Mapping[str, Any], config: Config
) -> Path:
    """Write ``report.html`` of a workspace."""
    sides = {str(sorted(one.held_out.items())) for one in workspace.index.rounds}
    notes = list(summary["notes"])
    if len(sides) > 1:
        notes.insert(0, "the held-out masks are not the same in all rounds: compare with care")
    return write_rounds_page(
        workspace.root,
        rows,
        masks=masks_table([asdict(mask) for mask in workspace.index.accepted]),
        subtitle=f"{summary['cases']} held-out images; a case is a {summary['case_is']}; "
        f"{workspace.root.name}",
        notes=notes,
        configuration=configuration_text(config),
    )
