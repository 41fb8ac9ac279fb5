"""``samadapt evaluate``: score an adapter on a data set, beside its base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samadapt import console
from samadapt.commands import finetune
from samadapt.config.overrides import parse
from samadapt.config.schema import (
    Cache,
    Config,
    Data,
    Device,
    Eval,
    Model,
    Output,
    Precision,
    Prompts,
)
from samadapt.errors import AdapterError, ConfigError
from samadapt.system.typed import knob

if TYPE_CHECKING:
    from samadapt.adapters.record import AdapterRecord
    from samadapt.data.types import SliceRef
    from samadapt.runs.context import Session
    from samadapt.runs.results import Scored

HELP = """
Scores an adapter on the held-out cases of a data set, and its base model with the same prompts.
Needs the adapter directory alone: base model, intensity, axis, classes and prompts are what it
records, and the base weights are found again and checked by their hash. data.root=PATH says where
the data set is; without it, where the run that trained the adapter found it. Other data:
data=NAME. Images that the adapter was trained on, whatever their names, are refused. Instead of the
held-out cases: unseen=true scores every case that it was not trained on, all_cases=true all.

prompts=matrix scores both models with no prompt, 1, 3, 5 and 8 clicks, the exact box and boxes that
are off by 5, 10 and 20 px (eval/oracle_gap.csv and .png); says whether the predicted IoU can be
trusted; and compares both models on photographs, to see what adaptation cost elsewhere.
"""


@dataclass(frozen=True)
class EvaluatePrompts(Prompts):
    """Prompts made from the ground truth; null: as the adapter was trained."""

    name: Literal["box", "point", "semantic", "matrix"] = knob(  # type: ignore[assignment]
        "box", help="semantic: none; matrix: none, clicks, good and bad boxes, side by side"
    )


@dataclass(frozen=True)
class EvaluateArguments:
    """The keys of ``samadapt evaluate``."""

    adapter: str = knob(help="adapter directory")
    all_cases: bool = knob(False, help="score every case, trained on or not")
    unseen: bool = knob(False, help="score every case that the adapter was not trained on")
    data: Data = field(default_factory=Data)
    prompts: EvaluatePrompts = field(default_factory=EvaluatePrompts)
    cache: Cache = field(default_factory=Cache)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    checkpoint: str | None = knob(None, help="file of the base weights; null: found by name")
    precision: Precision = knob("auto", help="auto: bf16 where the device is fast in it")
    device: Device = knob("auto", help="auto: cuda, then mps, then cpu")
    privacy: bool = knob(
        False, help="stable pseudonyms for case names, those of the adapter's run where it has any"
    )


SCHEMA = EvaluateArguments


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation leaves.

    Attributes:
        run_dir: where scores and overlays are.
        summary: what ``eval/summary.json`` holds.
    """

    run_dir: Path
    summary: dict[str, Any]


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Score as the command line says and return plain values.

    Raises:
        SamadaptError: as ``evaluate``.
    """
    # The adapter is read first: what it records stands under what the command line says.
    path = next((a.split("=", 1)[1] for a in arguments if a.startswith("adapter=")), None)
    base = recorded(Path(path).expanduser()) if path is not None else {}
    result = evaluate(parse(EvaluateArguments, arguments, base, origin=str(path)))
    return {
        "run_dir": str(result.run_dir),
        "adapter_dir": path,
        "summary": result.summary,
    }


def render(result: dict[str, Any]) -> str:
    """Return the closing table and paths, after the oracle gap where it was measured."""
    text, summary = finetune.render(result), result["summary"]
    if "oracle_gap" not in summary:
        return text
    from samadapt.reports.oracle_gap import forgetting_text, gap_table

    gap = console.to_text(gap_table(summary["oracle_gap"]))
    return f"{gap}\n{forgetting_text(summary['forgetting'])}\n\n{text}"


def evaluate(arguments: EvaluateArguments) -> EvaluateResult:
    """Score an adapter and its base on a data set.

    Raises:
        AdapterError: when the adapter or the base weights are not what was recorded.
        DataError: for the errors of the data set's files.
    """
    from samadapt.adapters.record import read_record
    from samadapt.runs.context import open_session
    from samadapt.runs.oracle_gap import OracleGap
    from samadapt.runs.results import check_objects, summarise_run, write_scores

    started = time.perf_counter()
    adapter = Path(arguments.adapter).expanduser()
    record = read_record(adapter)
    config = as_config(arguments, record)
    run_dir = finetune.open_run_dir(config)
    with finetune.kept_if_started(run_dir, keep=False):
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


def recorded(adapter: Path) -> dict[str, Any]:
    """Return what the adapter says about data and prompts, as the command line would.

    Raises:
        AdapterError: when there is no readable record.
    """
    from samadapt.adapters.record import LOCAL_OPTIONS, read_record
    from samadapt.config.schema import from_yaml

    record = read_record(adapter)
    data = dict(record.data_options) or {"name": record.data}
    data |= {"intensity": record.intensity}
    config_file = adapter.parent / "config.yaml"
    found: dict[str, Any] = {}
    if config_file.is_file():
        config = from_yaml(config_file)
        found |= {"checkpoint": config.model.checkpoint, "privacy": config.privacy}
        if config.data.name == data["name"]:  # the adapter itself names no file of this machine
            local = asdict(config.data).items()
            data |= {k: v for k, v in local if k in LOCAL_OPTIONS and k != "on_error"}
    keys = {item.name for item in fields(Prompts)}  # others are the adapter's alone
    prompts = {key: value for key, value in record.prompt.items() if key in keys}
    return {**found, "data": data, "prompts": {"name": record.prompt.get("kind", "box"), **prompts}}


def as_config(arguments: EvaluateArguments, record: AdapterRecord) -> Config:
    """Return the configuration of an evaluation: the record's model, the caller's data."""
    from samadapt.data.tiles import recorded_tiling
    from samadapt.methods.base import method_from_dict

    prompts = {item.name: getattr(arguments.prompts, item.name) for item in fields(Prompts)}
    if prompts["name"] == "matrix":
        prompts["name"] = record.prompt.get("kind", "box")
    data = arguments.data  # naming other data made these fall, but they are the adapter's
    cut = recorded_tiling(record.data_options)
    data = replace(
        data,
        intensity=data.intensity or record.intensity or None,
        axis=data.axis if data.axis is not None else record.axis,
    )
    if data.tile is None and cut is not None:
        data = replace(data, tile=cut.side)
    if data.channel is None and "inputs" in record.intensity:
        data = replace(data, channel=record.data_options.get("channel"))
    if record.input_channels > 3 and arguments.prompts.name == "matrix":
        raise ConfigError(
            "prompts=matrix also compares the models on photographs, which have three channels; "
            f"this adapter sees {record.input_channels}. Leave prompts out"
        )
    many = record.input_channels if record.input_channels > 3 else None
    return Config(
        model=Model(record.base, arguments.checkpoint, record.image_size, many),
        peft=method_from_dict(record.method),
        data=data,
        prompts=Prompts(**prompts),
        cache=arguments.cache,
        eval=arguments.eval,
        output=arguments.output,
        precision=arguments.precision,
        device=arguments.device,
        privacy=arguments.privacy,
        recipe="evaluate",
    )


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
    from samadapt.runs.results import Scored

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
    from samadapt.data.checks.training_record import seen
    from samadapt.data.tiles import recorded_tiling

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
    from samadapt.data.channels import MANY, listed, parse_channel

    trained, now = (
        ", ".join(map(str, listed(parse_channel(channel, MANY)))) or "the only one"
        for channel in (record.data_options.get("channel"), data.channel)
    )
    if trained == now or data.name != record.data_options.get("name", data.name):
        return ""
    return f"was trained on other channels ({trained}; here {now}), so its images are not known"


def _cases(refs: Iterable[SliceRef]) -> int:
    return len({ref.case for ref in refs})
