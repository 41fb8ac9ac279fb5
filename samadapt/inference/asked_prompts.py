"""What the prompts of a user ask of an adapter that answers to several kinds of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.inference.bundle import AdapterBundle
    from samadapt.inference.options import PredictionOptions
    from samadapt.prompts.policy import PromptPolicy


def asked_policy(policy: PromptPolicy, options: PredictionOptions) -> PromptPolicy:
    """Return how an adapter answers: without prompts by its classes, else to boxes or points."""
    if not options.has_prompts:
        return policy.of_kind("semantic")
    return policy.answering(points=options.points is not None)


def why_uncalibrated(members: Sequence[AdapterBundle], options: PredictionOptions) -> str:
    """Return why objects get no confidence; empty if they get one.

    The confidence of an adapter for several kinds of prompts is fitted to its main kind.

    Args:
        members: the adapters that predict together.
        options: the prompts of the user.
    """
    policy = members[0].policy
    if policy.is_mixed and (kind := asked_policy(policy, options).kind) != policy.main_kind:
        return (
            f"the confidence of this adapter was fitted to prompts={policy.main_kind}, and this "
            f"is prompts={kind}"
        )
    reasons = [one.curve for one in members if isinstance(one.curve, str)]
    return reasons[0] if reasons else ""
