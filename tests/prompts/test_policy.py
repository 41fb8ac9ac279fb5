"""The prompt policy as it is recorded with an adapter."""

from __future__ import annotations

import json

import pytest

from samadapt.errors import PromptError
from samadapt.prompts.policy import PromptPolicy


@pytest.mark.parametrize(
    "kind", ["box", "point", "scribble", "mask", "interactive", "semantic", "auto"]
)
def test_a_policy_survives_json(kind):
    policy = PromptPolicy(kind, objects="class", jitter=0.05, max_jitter_px=3, min_area=7)
    assert PromptPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert policy.is_semantic == (kind in {"semantic", "auto"})
    assert policy.is_drawing == (kind in {"scribble", "mask"})
    assert policy.multimask is {"point": True, "interactive": None}.get(kind, False)


@pytest.mark.parametrize("values", [{"kind": "contour"}, {"kind": "box", "jiter": 0.1}])
def test_another_record_is_refused(values):
    with pytest.raises(PromptError, match="not a prompt policy"):
        PromptPolicy.from_dict(values)
