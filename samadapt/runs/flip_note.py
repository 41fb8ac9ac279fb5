"""Say when mirrored training slices teach something wrong; see docs/explanation/augmentation.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samadapt.data.mirroring import sided

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.data.intensity import IntensityRule
    from samadapt.runs.context import RunContext


def say_what_flips_teach(context: RunContext) -> None:
    """Show and log ``flip_note`` for a run whose training slices change at random."""
    data, changes = context.dataset, context.samples.changes
    note = flip_note(
        changes, data.classes, data.intensity, is_semantic=context.policy.finds_classes
    )
    if note:
        context.say(note)


def flip_note(
    changes: Sequence[str], classes: Sequence[str], rule: IntensityRule, *, is_semantic: bool
) -> str:
    """Return a message about ``flip`` among the random changes; empty if there is nothing to say.

    A prompt says which object is meant, so mirroring does no harm there. Without prompts a class
    that names a side gets contradictory labels, and in CT an organ can no longer be told from one
    of the other side by its place.

    Args:
        changes: names of the random changes.
        classes: names of the classes.
        rule: the intensity rule; a window means CT.
        is_semantic: whether the model predicts classes without prompts.
    """
    if "flip" not in changes or not is_semantic:
        return ""
    if found := sided(classes):
        return (
            f"warning: train.augment=flip exchanges left and right but not the labels, and the "
            f"class{'es' * (len(found) > 1)} {', '.join(found)} may name a side; leave flip out "
            "unless they do not"
        )
    rules = rule.inputs or rule.channels or (rule,)
    if all(one.kind == "window" for one in rules):
        return (
            "note: train.augment=flip mirrors the body, so that the side of an organ, such as "
            "spleen or liver, tells nothing any more; with few labelled cases leave flip out"
        )
    return ""
