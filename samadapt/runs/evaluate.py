"""Score an adapter on a data set, beside its base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.data.channels import MANY, listed_channels, parse_channel
from samadapt.data.checks.training_record import seen
from samadapt.data.tiles import recorded_tiling
from samadapt.errors import AdapterError, ConfigError
from samadapt.runs.context import Session, open_session
from samadapt.runs.oracle_gap import OracleGap
from samadapt.runs.recorded_configuration import as_config
from samadapt.runs.results import Scored, check_objects, summarise_run, write_scores
from samadapt.runs.run_directory import kept_if_started, open_run_dir

if TYPE_CHECKING:
    from samadapt.config.schema import Data
    from samadapt.data.types import SliceRef


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation leaves.

    Attributes:
        run_dir: where scores and overlays are.
        summary: what ``eval/summary.json`` holds.
    """

    run_dir: Path
    summary: dict[str, Any]


def evaluate(arguments: EvaluateArguments) -> EvaluateResult:
    """Score an adapter and its base on a data set.

    Raises:
        AdapterError: when the adapter or the base weights are not what was recorded.
        DataError: for the errors of the data set's files.
    """
    started = time.perf_counter()
    adapter = Path(arguments.adapter).expanduser()
    record = read_record(adapter)
    config = as_config(arguments, record)
    run_dir = open_run_dir(config)
    with kept_if_started(run_dir, keep=False):
        session = open_session(config, run_dir, adapter.parent)
        if session.policy.is_semantic and record.prompt.get("background_token"):
            session.policy = replace(session.policy, background_token=True)
        check_fit(session, adapter, record)
        chosen = choose(session, adapter, record, arguments)
        refs = chosen.refs
        check_objects(session, refs)
        session.plan({"test": refs})
    session.warm()
    gap = OracleGap(session, refs) if arguments.prompts.name == "matrix" else None
    with session.progress.phase("zero-shot"):
        zero_shot = session.score(refs, session.zero_shot_policy)
    if gap:
        gap.measure("zero_shot")
    session.replace_adapter(adapter)
    with session.progress.phase("adapted"):
        adapted = session.score(refs, session.policy)
    slices = {"train": [], "validation": [], "test": refs}
    never = untrained_before(record, session.dataset.classes)
    summary = summarise_run(session, slices, zero_shot, adapted, None, chosen, never)
    if gap:
        gap.measure("adapted")
        summary |= gap.summary()
        gap.write(session.run_dir / "eval")
    summary["seconds"] = time.perf_counter() - started
    write_scores(session, refs, zero_shot, adapted, summary)
    return EvaluateResult(session.run_dir, summary)


def untrained_before(record: AdapterRecord, classes: Sequence[str]) -> list[str]:
    """Return the classes of which the record says that the training never saw them."""
    scores = record.scores.get("adapted") if isinstance(record.scores, dict) else None
    per_class = scores.get("per_class") if isinstance(scores, dict) else None
    known = per_class if isinstance(per_class, dict) else {}
    return [
        name
        for name in classes
        if isinstance(known.get(name), dict) and known[name].get("untrained") is True
    ]


def check_fit(session: Session, adapter: Path, record: AdapterRecord) -> None:
    """Refuse other base weights and, where mask tokens stand for classes, other classes.

    Raises:
        AdapterError: for base weights that are not those recorded.
        ConfigError: naming both lists of classes.
    """
    if session.base_sha256 != record.base_sha256:
        raise AdapterError(
            f"{adapter}: trained on base {record.base} with sha256 {record.base_sha256}; found one "
            f"with {session.base_sha256}. Give the file that it was trained with as checkpoint=FILE"
        )
    found = session.dataset.classes
    if session.policy.is_semantic and found != record.classes:
        raise ConfigError(
            f"{adapter}: predicts {', '.join(record.classes)}, in this order; the data set has "
            f"{', '.join(found)}. Name the same classes with data.classes={{name: value}}"
        )
    if session.policy.is_semantic and session.dataset.overlapping is not record.overlapping:
        kind = "may overlap" if record.overlapping else "do not overlap"
        key = "data.regions" if record.overlapping else "data.classes"
        raise ConfigError(
            f"{adapter}: its classes ({', '.join(record.classes)}) {kind}; name those of the data "
            f"set with {key}={{name: [values]}}"
        )


def choose(
    session: Session, adapter: Path, record: AdapterRecord, arguments: EvaluateArguments
) -> Scored:
    """Choose the slices to score: held out, not trained on, or all.

    Raises:
        ConfigError: when none is left, or some that are held out were trained on.
    """
    if arguments.all_cases and arguments.unseen:
        raise ConfigError("unseen=true leaves out what all_cases=true scores: choose one")
    refs = list(session.dataset.slices("val"))
    if arguments.all_cases or arguments.unseen:
        refs = sorted({*refs, *session.dataset.slices("train", empty="keep", step=1)})
    known, reason = trained_among(session, record), unrecognised(session, record)
    if arguments.unseen:
        if known is None:
            raise ConfigError(f"unseen=true: {adapter} {reason}; score all with all_cases=true")
        before = set(known(refs))
        refs = [ref for ref in refs if ref not in before]
        if not refs:
            raise ConfigError(f"unseen=true: {adapter} was trained on every case of these data")
    if not refs:
        raise ConfigError("data: no case is held out; score every case with all_cases=true")
    kept = set(list(dict.fromkeys(ref.case for ref in refs))[: session.config.eval.max_cases])
    refs = [ref for ref in refs if ref.case in kept]
    before = set(known(refs)) if known else set()
    if arguments.all_cases:
        share = f": {_cases(before)} of {_cases(refs)} were" if known else ""
        note = f"cases that the adapter may have been trained on are scored too{share}"
        return Scored(refs, "all", [note])
    if before:
        names = ", ".join(sorted({ref.case for ref in before})[:5])
        raise ConfigError(
            f"data: {adapter} was trained on {_cases(before)} of the {_cases(refs)} cases that are "
            f"held out here: {names}. Divide the data as its training did (data.val_every, "
            "data.fold, data.max_cases, data.patient), or score what it was not trained on with "
            "unseen=true, or everything with all_cases=true"
        )
    note = f"the adapter {reason}: it may have been some of these cases"
    return Scored(refs, "unseen" if arguments.unseen else "held-out", [] if known else [note])


def trained_among(
    session: Session, record: AdapterRecord
) -> Callable[[Sequence[SliceRef]], list[SliceRef]] | None:
    """Return what picks the slices that an adapter was trained on; None where it cannot be told."""
    trained = record.trained_on
    if trained is None or unrecognised(session, record):
        return None
    same_tiles = session.dataset.tiling == recorded_tiling(record.data_options)
    return lambda refs: seen(session.dataset, refs, trained, same_slices=same_tiles)


def unrecognised(session: Session, record: AdapterRecord) -> str:
    """Return why it cannot be told what an adapter was trained on; empty where it can."""
    if record.trained_on is None:
        return "does not say what it was trained on"
    axis = session.dataset.axis
    if axis != record.axis:  # the hash of a volume is of its slices
        return f"was trained on slices along {record.axis}, which are not known again along {axis}"
    return _other_channels(session.config.data, record)


def _other_channels(data: Data, record: AdapterRecord) -> str:
    """Return that other channels of the same data are scored, whose hashes are others."""
    trained, now = (
        ", ".join(map(str, listed_channels(parse_channel(channel, MANY)))) or "the only one"
        for channel in (record.data_options.get("channel"), data.channel)
    )
    if trained == now or data.name != record.data_options.get("name", data.name):
        return ""
    return f"was trained on other channels ({trained}; here {now}), so its images are not known"


def _cases(refs: Iterable[SliceRef]) -> int:
    return len({ref.case for ref in refs})
