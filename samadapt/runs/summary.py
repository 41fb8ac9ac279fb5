"""The summary of a run, ``eval/summary.json``: scores, what they are over, and honest notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from samadapt.baselines.unet import UNet
from samadapt.evaluation.comparison import compare_states
from samadapt.system.peak_memory import peak_memory_bytes

if TYPE_CHECKING:
    from samadapt.baselines.build import UNetBuild
    from samadapt.data.dataset import Dataset
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.evaluate import Evaluation
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.runs.run_slices import RunSlices
    from samadapt.runs.scorer import Scorer
    from samadapt.training.state import TrainingState

ZERO_SHOT_NOTE = (
    "zero-shot is the untrained base model with the exact ground-truth box of each class "
    "(an oracle that favours it), since it knows no classes; adapted has no prompt"
)
OBJECTS_NOTE = (
    "zero-shot is the untrained base model with the exact ground-truth box of each object "
    "(an oracle that favours it), since it finds no objects; adapted has no prompt"
)
BASELINE_NOTE = (
    "no SAM and no prompt; the slices, the intensity rule, the augmentation and the number of "
    "steps are those of a run without baseline"
)
CARRIED_NOTE = (
    "each object is prompted on its middle slice alone, and the memory of SAM 2 carries it through "
    "its volume, before and after; the prompts come from the ground truth, so this is an upper "
    "bound of real use. `samadapt evaluate prompts=box` scores a box on every slice"
)
ORACLE_NOTE = "prompts come from the ground truth, before and after: an upper bound of real use"
NOT_SCORED = (
    "no case is held out (data.val_every=0), so nothing was scored: how good the adapter is on "
    "images that it was not trained on is not known"
)
SCORES_LEFT_OUT = (
    "the held-out cases were left alone (eval.max_cases=0), so nothing was scored: how good the "
    "adapter is on images that it was not trained on is not known"
)
NOT_VALIDATED = (
    "no case chose the best step (train.validate_cases=0): all labelled cases trained, and the "
    "weights of the last step were kept"
)


def summarise_run(
    scorer: Scorer,
    slices: RunSlices,
    zero_shot: Evaluation | None,
    adapted: Evaluation | None,
    *,
    state: TrainingState | None = None,
    scored: str = "held-out",
    notes: Sequence[str] = (),
    untrained: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the content of ``eval/summary.json``.

    Args:
        scorer: what scored the model of the run.
        slices: the slices that trained, chose the best step, and were scored.
        zero_shot: the scores of the base model; None if nothing was scored, or for a baseline.
        adapted: the scores of the adapted model; None if nothing was trained or scored.
        state: the end of the training; None if there was none.
        scored: ``"held-out"``, ``"unseen"`` (everything that was not trained on) or ``"all"``.
        notes: what the reader must know about the choice of the scored slices.
        untrained: the classes that no training slice held; their scores are marked.
    """
    context = scorer.context
    data, policy = context.dataset, context.policy
    if adapted:
        for name in untrained:
            adapted.summary["per_class"][name]["untrained"] = True
    build = context.model.build if isinstance(context.model, UNet) else None
    last = adapted or zero_shot
    return {
        # In a run with baseline=unet, "adapted" has the scores of the U-Net.
        **({"baseline": {"title": build.title, **build.to_dict()}} if build else {}),
        "zero_shot": zero_shot and scores_of(zero_shot, context.zero_shot_policy),
        "adapted": adapted and scores_of(adapted, policy),
        "paired": zero_shot
        and adapted
        and compare_states(zero_shot.rows, adapted.rows, data.classes),
        "prompt": policy.kind,
        "oracle_prompt": not policy.is_semantic,
        **({"propagate": "memory"} if policy.clip > 1 else {}),
        "data": data.name,
        "scored": scored if last else "nothing",
        "split": data.case_splits.rule,
        "case_is": case_is(data),
        "nsd_tolerance": scorer.nsd_tolerance_mm,
        **({"tta": "flip"} if len(scorer.mirrors) > 1 else {}),
        **({"second_pass": "base"} if scorer.second_pass else {}),
        "cases": len({ref.case for ref in slices.test}),
        "slices": len(slices.test),
        "parts": "slices" if data.tiling is None else "tiles",
        **_labelled(slices),
        **_training(state),
        "trained_parameters": context.injection.trainable,
        "total_parameters": context.injection.total,
        "precision": context.precision.name,
        "peak_memory_bytes": peak_memory_bytes(),
        "notes": [
            *([data.note] if data.note else []),
            _note_on_scores(last, policy, build, context.zero_shot_policy) or why_not_scored(data),
            *notes,
            *([untrained_text(untrained)] if adapted and untrained else []),
            *(annotation_notes(data, slices.test, last) if last else []),
            *([f"cases left out for errors: {', '.join(data.left_out)}"] if data.left_out else []),
            *_notes_on_training(slices, state),
        ],
    }


def _labelled(slices: RunSlices) -> dict[str, int]:
    """Return how much was labelled: cases that choose the step count, held-out ones do not."""
    validation = {ref.case for ref in slices.validation}
    return {
        "training_slices": len(slices.train),
        "validation_slices": len(slices.validation),
        "labelled_cases": len({ref.case for ref in slices.train} | validation),
        "validation_cases": len(validation),
    }


def _training(state: TrainingState | None) -> dict[str, Any]:
    """Return how the training went; None everywhere if there was none."""
    best = state.best_score if state else math.nan
    return {
        "best_step": state and state.best_step,
        # JSON has no NaN.
        "best_validation_dice": best if math.isfinite(best) else None,
        "skipped_steps": state and state.skipped,
        "last_step": state and state.step,
        "ended_by": state and state.ended_by,
        "time": state and state.time,
    }


def _note_on_scores(
    last: Evaluation | None, policy: PromptPolicy, build: UNetBuild | None, zero_shot: PromptPolicy
) -> str:
    """Return what the scores mean; empty if nothing was scored."""
    if last is None:
        return ""
    if build is not None:
        note = f"{build.title}: {BASELINE_NOTE}"
        if build.encoder and not build.pretrained:
            note += "; this row was not measured with pretrained weights"
        return note
    if not policy.is_semantic:
        return CARRIED_NOTE if policy.clip > 1 else ORACLE_NOTE
    return ZERO_SHOT_NOTE if zero_shot.objects == "class" else OBJECTS_NOTE


def why_not_scored(data: Dataset) -> str:
    """Return why a run scored nothing: no case is held out, or none was to be scored."""
    return SCORES_LEFT_OUT if data.val else NOT_SCORED


def _notes_on_training(slices: RunSlices, state: TrainingState | None) -> list[str]:
    """Return why the last weights were kept, and why the training ended before its last step."""
    if state is None:
        return []
    chosen = [] if slices.validation else [NOT_VALIDATED]
    return [*chosen, *([state.ending] if state.ending else [])]


def scores_of(evaluation: Evaluation, policy: PromptPolicy) -> dict[str, Any]:
    """Return the scores of one state, and how the model was prompted."""
    return {
        **evaluation.summary,
        "prompt": policy.to_dict(),
        "oracle_prompt": not policy.is_semantic,
    }


def untrained_classes(data: Dataset, slices: RunSlices) -> list[str]:
    """Return the classes that are scored but occur in no training slice."""
    learned = set(data.classes_in(slices.train))
    return [name for name in data.classes_in(slices.test) if name not in learned]


def untrained_text(names: Sequence[str]) -> str:
    """Return the warning about classes that occur in the held-out cases alone."""
    which = f"class {names[0]} occurs" if len(names) == 1 else f"classes {', '.join(names)} occur"
    return (
        f"{which} in the held-out cases and in no training slice: not learned, and the score says "
        "nothing about training. Use more cases, or another split (data.val_every, data.fold)"
    )


def annotation_notes(data: Dataset, refs: Sequence[SliceRef], evaluation: Evaluation) -> list[str]:
    """Return notes on what is not annotated in the scored cases, and so has no score."""
    notes = []
    if "ignored" in evaluation.summary:
        share = evaluation.summary["ignored"]["share"]
        notes.append(f"{share:.1%} of the scored voxels are ignored: they have no score")
    cases = dict.fromkeys(ref.case for ref in refs)
    # If one volume is divided into a training part and a held-out slab, only the slab counts.
    slab = data.case_splits.slab
    scored = slab.indices("val") if slab else slice(None)
    unknown = sum(int((~data.annotated(case)[scored]).sum()) for case in cases)
    if unknown:
        part = "slices" if data.tiling is None else "tiles"
        notes.append(f"{unknown} {part} of the scored cases are not annotated: they have no score")
    # Every case has one row for each class that is annotated in it.
    missing = dict.fromkeys(data.classes, len(cases))
    for row in evaluation.rows:
        missing[row.class_name] -= 1
    listed = ", ".join(f"{name} in {count}" for name, count in missing.items() if count)
    if listed:
        notes.append(f"classes that are not annotated in some of {len(cases)} cases: {listed}")
    return notes


def case_is(data: Dataset) -> str:
    """Return what one score is over: a picture, a slice, a slab or a whole volume."""
    if data.case_splits.slab is not None:
        return "slab: the held-out slices of one volume together"
    if {case.shape[2] for case in data.cases} == {1}:
        if any(case.axis is not None for case in data.cases):
            return "slice: one slice of a volume, in 2D"
        return "picture: one 2D image" + (", its tiles together" if data.tiling else "")
    return "volume: all of its slices together"
