"""What a run writes down once it has scored: summary, tables, overlays, the adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from samadapt.errors import ConfigError

if TYPE_CHECKING:
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.evaluate import Evaluation
    from samadapt.runs.context import Session
    from samadapt.training.state import TrainingState

ZERO_SHOT_NOTE = (
    "zero-shot is the untrained base model with the exact ground-truth box of each class "
    "(an oracle that favours it), since it knows no classes; adapted has no prompt"
)
ORACLE_NOTE = "prompts come from the ground truth, before and after: an upper bound of real use"


@dataclass(frozen=True)
class Scored:
    """What is scored.

    Attributes:
        refs: slices or tiles.
        which: ``"held-out"``, ``"unseen"`` (whatever was not trained on) or ``"all"``.
        notes: what the reader of the scores must know of it.
    """

    refs: list[SliceRef]
    which: Literal["held-out", "unseen", "all"] = "held-out"
    notes: Sequence[str] = ()


def summarise_run(
    session: Session,
    slices: dict[str, list[SliceRef]],
    zero_shot: Evaluation,
    adapted: Evaluation | None,
    state: TrainingState | None,
    scored: Scored | None = None,
    untrained: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what ``summary.json`` records; without ``scored`` the held-out cases are.

    ``untrained`` are classes that the adapter never saw in training: their scores are marked.
    """
    from samadapt.evaluation.comparison import compare_states
    from samadapt.system.machine import peak_memory_bytes

    policy, base = session.policy, session.zero_shot_policy
    best = state.best_score if state else math.nan
    notes = [session.dataset.note] if session.dataset.note else []
    notes.append(ZERO_SHOT_NOTE if policy.is_semantic else ORACLE_NOTE)
    scored = scored or Scored(slices["test"])
    notes += scored.notes
    if adapted and untrained:
        notes.append(untrained_text(untrained))
        for name in untrained:
            adapted.summary["per_class"][name]["untrained"] = True
    notes += ignored_notes(session, slices["test"], zero_shot)
    if session.dataset.left_out:
        notes.append(f"cases left out for errors: {', '.join(session.dataset.left_out)}")
    return {
        "zero_shot": {
            **zero_shot.summary,
            "prompt": base.to_dict(),
            "oracle_prompt": not base.is_semantic,
        },
        "adapted": adapted
        and {
            **adapted.summary,
            "prompt": policy.to_dict(),
            "oracle_prompt": not policy.is_semantic,
        },
        "paired": adapted and compare_states(zero_shot.rows, adapted.rows, session.dataset.classes),
        "prompt": policy.kind,
        "oracle_prompt": not policy.is_semantic,
        "data": session.dataset.name,
        "scored": scored.which,
        "split": session.dataset.parts.rule,
        "case_is": case_is(session),
        "nsd_tolerance": session.config.eval.nsd_tolerance_mm,
        "cases": len({ref.case for ref in slices["test"]}),
        "slices": len(slices["test"]),
        "parts": "slices" if session.dataset.tiling is None else "tiles",
        "training_slices": len(slices["train"]),
        "validation_slices": len(slices["validation"]),
        "best_step": state and state.best_step,
        "best_validation_dice": best if math.isfinite(best) else None,
        "skipped_steps": state and state.skipped,
        "trained_parameters": session.injection.trainable,
        "total_parameters": session.injection.total,
        "precision": session.precision.name,
        "peak_memory_bytes": peak_memory_bytes(),
        "notes": notes,
    }


def untrained_classes(session: Session, slices: Mapping[str, Sequence[SliceRef]]) -> list[str]:
    """Return the classes that are scored and occur in none of the slices that train."""
    data = session.dataset
    learned = set(data.classes_in(slices["train"]))
    return [name for name in data.classes_in(slices["test"]) if name not in learned]


def untrained_text(names: Sequence[str]) -> str:
    """Return what a run says of classes that occur in the held-out cases alone."""
    which = f"class {names[0]} occurs" if len(names) == 1 else f"classes {', '.join(names)} occur"
    return (
        f"{which} in the held-out cases and in no training slice: not learned, and the score says "
        "nothing about training. Use more cases, or another division (data.val_every, data.fold)"
    )


def ignored_notes(session: Session, refs: Sequence[SliceRef], scored: Evaluation) -> list[str]:
    """Say how much of the scored cases is not annotated; nothing where all of it is."""
    data, notes = session.dataset, []
    if "ignored" in scored.summary:
        share = scored.summary["ignored"]["share"]
        notes.append(f"{share:.1%} of the scored voxels are ignored: they have no score")
    cases = dict.fromkeys(ref.case for ref in refs)
    slab = data.parts.slab
    held = {case: slab.indices("val") if slab else slice(None) for case in cases}
    unknown = sum(int((~data.annotated(case)[held[case]]).sum()) for case in cases)
    if unknown:
        part = "slices" if data.tiling is None else "tiles"
        notes.append(f"{unknown} {part} of the scored cases are not annotated: they have no score")
    counts = {name: len(cases) for name in data.classes}
    for row in scored.rows:
        counts[row.class_name] -= 1
    missing = ", ".join(f"{name} in {count}" for name, count in counts.items() if count)
    if missing:
        notes.append(f"classes that are not annotated in some of {len(cases)} cases: {missing}")
    return notes


def check_objects(session: Session, refs: Sequence[SliceRef]) -> None:
    """Refuse ``eval.instances=true`` where the data set does not number its objects.

    Raises:
        ConfigError: naming the other choice.
    """
    if session.config.eval.instances is not True:
        return
    for case in dict.fromkeys(ref.case for ref in refs):
        depth = session.dataset.case(case).shape[2]
        sample = session.dataset.sample(next(ref for ref in refs if ref.case == case))
        if depth > 1 or sample.instances is None:
            what = "a volume" if depth > 1 else "a picture without them"
            raise ConfigError(
                f"eval.instances=true counts the numbered objects of pictures; {case} is {what}. "
                "Use eval.instances=components"
            )


def case_is(session: Session) -> str:
    """Return what one score is over: a picture, a slice, a slab or a whole volume."""
    data = session.dataset
    if data.parts.slab is not None:
        return "slab: the held-out slices of one volume together"
    depths = {case.shape[2] for case in data.cases}
    if depths == {1}:
        pictures = all(case.axis is None for case in data.cases)
        whole = "picture: one 2D image" + (", its tiles together" if data.tiling else "")
        return whole if pictures else "slice: one slice of a volume, in 2D"
    return "volume: all of its slices together"


def write_scores(
    session: Session,
    refs: Sequence[SliceRef],
    zero_shot: Evaluation,
    adapted: Evaluation | None,
    summary: dict[str, Any],
) -> None:
    """Write ``eval/``, ``overlays/`` and ``report.html``."""
    from samadapt.reports.objects import write_objects
    from samadapt.reports.plots import plot_progress
    from samadapt.reports.tables import write_per_case, write_summary
    from samadapt.runs.run_page import write_page

    if zero_shot.objects:
        states = {"zero_shot": zero_shot, "adapted": adapted}
        objects = {state: found.objects for state, found in states.items() if found}
        write_objects(session.run_dir / "eval", objects)
    rows = {"zero_shot": zero_shot.rows} | ({"adapted": adapted.rows} if adapted else {})
    write_summary(session.run_dir / "eval", summary)
    write_per_case(session.run_dir / "eval", rows)
    draw_overlays(session, zero_shot, adapted)
    if adapted and (metrics := session.run_dir / "metrics.jsonl").is_file():
        plot_progress(metrics, session.run_dir / "progress.png")
    results = {"zero_shot": zero_shot} | ({"adapted": adapted} if adapted else {})
    write_page(session, refs, results, summary)


def write_adapter(session: Session, summary: dict[str, Any]) -> Path:
    """Write the best step's adapter; return its directory."""
    from samadapt.adapters.record import RECORD, read_record
    from samadapt.adapters.store import save_adapter
    from samadapt.data.checks.resumed_run import merge_trained_on

    scores = {key: summary[key] for key in ("zero_shot", "adapted", "oracle_prompt", "data")}
    directory = session.run_dir / "adapter"
    record = replace(session.record(), scores=scores)
    if (directory / RECORD).is_file():  # a resumed run was trained on what it was before, too
        before = read_record(directory).trained_on
        record = replace(record, trained_on=merge_trained_on(before, record.trained_on or {}))
    save_adapter(directory, session.sam, session.injection, record)
    return directory


def draw_overlays(session: Session, zero_shot: Evaluation, adapted: Evaluation | None) -> None:
    """Draw the best, median and worst cases, each on its slice with the most ground truth."""
    from samadapt.data.intensity import visible
    from samadapt.reports.overlays import choose_cases, draw_overlay

    final = adapted or zero_shot
    chosen = list(choose_cases(final.rows).items())[: session.config.eval.overlays]
    states = {"zero_shot": zero_shot} | ({"adapted": adapted} if adapted else {})
    for place, case in chosen:
        ref, at = final.shown[case]
        sample = session.dataset.sample(ref)
        spacing = session.dataset.case(case).spacing_mm
        draw_overlay(
            visible(sample.image),
            sample.shown,
            zero_shot.labels[case][at],
            final.labels[case][at] if adapted else None,
            session.dataset.classes,
            path=session.run_dir / "overlays" / f"{place}_{case}.png",
            title=f"{place}: {case}, {sample.part} {ref.index}",
            scores={
                state: {row.class_name: row.dice for row in result.rows if row.case == case}
                for state, result in states.items()
            },
            spacing=spacing[:2] if spacing else (1.0, 1.0),
        )
