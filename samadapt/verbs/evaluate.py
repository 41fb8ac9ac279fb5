"""``samadapt evaluate``: score an adapter on a data set, beside its base model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samadapt import console
from samadapt.config import Cache, Config, Data, Device, Eval, Model, Output, Precision, Prompts
from samadapt.errors import AdapterError, ConfigError
from samadapt.overrides import parse
from samadapt.typed import knob
from samadapt.verbs import finetune

if TYPE_CHECKING:
    from samadapt.methods.store import AdapterRecord
    from samadapt.session import Session

HELP = """
Scores an adapter on the held-out cases of a data set, and its base model with the same prompts.
Needs the adapter directory alone: base model, intensity, axis, classes and prompts are what it
records, and the base weights are found again and checked by their hash. data.root=PATH says where
the data set is; without it, where the run that trained the adapter found it. Other data:
data=NAME. All cases instead of the held-out ones: all_cases=true.

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
    all_cases: bool = knob(False, help="score every case, and not only those held out")
    data: Data = field(default_factory=Data)
    prompts: EvaluatePrompts = field(default_factory=EvaluatePrompts)
    cache: Cache = field(default_factory=Cache)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    checkpoint: str | None = knob(None, help="file of the base weights; null: found by name")
    precision: Precision = knob("auto", help="auto: bf16 where the device is fast in it")
    device: Device = knob("auto", help="auto: cuda, then mps, then cpu")


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
    from samadapt.evaluation.gap_report import forgetting_text, gap_table

    gap = console.to_text(gap_table(summary["oracle_gap"]))
    return f"{gap}\n{forgetting_text(summary['forgetting'])}\n\n{text}"


def evaluate(arguments: EvaluateArguments) -> EvaluateResult:
    """Score an adapter and its base on a data set.

    Raises:
        AdapterError: when the adapter or the base weights are not what was recorded.
        DataError: for the errors of the data set's files.
    """
    from samadapt.methods.store import read_record
    from samadapt.oracle_gap import OracleGap
    from samadapt.results import check_objects, summarise_run, write_scores
    from samadapt.session import open_session

    started = time.perf_counter()
    adapter = Path(arguments.adapter).expanduser()
    record = read_record(adapter)
    config = as_config(arguments, record)
    run_dir = finetune.open_run_dir(config)
    with finetune.kept_if_started(run_dir, keep=False):
        session = open_session(config, run_dir)
        if session.policy.is_semantic and record.prompt.get("background_token"):
            session.policy = replace(session.policy, background_token=True)
        check_fit(session, adapter, record)
        refs = held_out(session, arguments.all_cases)
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
    summary = summarise_run(session, slices, zero_shot, adapted, None)
    if gap:
        gap.measure("adapted")
        summary |= gap.summary()
        gap.write(session.run_dir / "eval")
    summary["seconds"] = time.perf_counter() - started
    write_scores(session, refs, zero_shot, adapted, summary)
    return EvaluateResult(session.run_dir, summary)


def recorded(adapter: Path) -> dict[str, Any]:
    """Return what the adapter says about data and prompts, as the command line would.

    Raises:
        AdapterError: when there is no readable record.
    """
    from samadapt.config import from_yaml
    from samadapt.methods.store import read_record

    record = read_record(adapter)
    data = dict(record.data_options) or {"name": record.data}
    data |= {"intensity": record.intensity}
    config_file = adapter.parent / "config.yaml"
    found: dict[str, Any] = {}
    if config_file.is_file():
        config = from_yaml(config_file)
        data["root"], found["checkpoint"] = config.data.root, config.model.checkpoint
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
    return Config(
        model=Model(record.base, arguments.checkpoint, record.image_size),
        peft=method_from_dict(record.method),
        data=data,
        prompts=Prompts(**prompts),
        cache=arguments.cache,
        eval=arguments.eval,
        output=arguments.output,
        precision=arguments.precision,
        device=arguments.device,
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


def held_out(session: Session, all_cases: bool) -> list[Any]:
    """Return the slices to score.

    Raises:
        ConfigError: when no case is held out.
    """
    refs = list(session.dataset.slices("val"))
    if all_cases:
        refs = sorted({*refs, *session.dataset.slices("train", empty="keep", step=1)})
    limit = session.config.eval.max_cases
    if not refs:
        raise ConfigError("data: no case is held out; score every case with all_cases=true")
    kept = list(dict.fromkeys(ref.case for ref in refs))[:limit]
    return [ref for ref in refs if ref.case in kept]
