"""prompts=propagate in whole runs: trained on clips, scored by memory, resumed, and refused."""

from __future__ import annotations

import json

import pytest

from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.errors import ConfigError
from samadapt.runs.context import prompt_policy

CLIPS = ("data.name=nifti", "model.name=tiny_h", "prompts=propagate", "prompts.clip=2")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("prompts=box", "prompts.clip=4"), r"prompts\.clip=4 has no effect with prompts=box"),
        (("prompts=propagate", "prompts.negatives=0.2"), r"does not go with prompts\.negatives="),
        (("prompts=propagate", "cache.variants=3"), r"does not go with cache\.variants=3"),
        (("prompts=propagate", "peft=adapter", "peft.depth=3"), r"does not go with peft\.depth=3"),
    ],
)
def test_keys_that_clips_do_not_go_with_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        prompt_policy(compose("photos", ["data.root=nowhere", *keys]))


def test_a_clip_is_prompted_by_boxes():
    policy = prompt_policy(compose("photos", ["data.root=nowhere", "prompts=propagate"]))
    assert (policy.kind, policy.clip) == ("box", 4)


def test_the_model_has_a_memory_and_the_data_are_volumes(make_pictures, make_scans, run):
    with pytest.raises(ConfigError, match="tiny has none; only SAM 2 has"):
        run(make_scans(), "data.name=nifti", "prompts=propagate")
    with pytest.raises(ConfigError, match=r"no training volume has prompts\.clip=2 neighbouring"):
        run(make_pictures(), *CLIPS[1:])


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), ("cache.enabled=off", "train.augment=[flip,noise]")])
def test_what_is_trained_on_clips_is_scored_by_memory(make_scans, run, capsys, keys):
    root = make_scans()
    result = run(root, *CLIPS, *keys)
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if entry["kind"] == "train"]
    assert len(losses) == 4
    given = [f"adapter={result.adapter_dir}", f"data.root={root}", "precision=fp32"]
    assert main(["evaluate", *given, "prompts=volume_clicks", "propagate=memory", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["summary"]["volume_clicks"]
    assert set(scores) == {"zero_shot", "adapted"}
    assert main(["evaluate", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["adapted"]["dice"] is not None


@pytest.mark.slow
def test_a_stopped_training_on_clips_ends_bit_equal(make_scans, resumes_bit_equal):
    resumes_bit_equal(make_scans(6), list(CLIPS), ["adapter/adapter_model.safetensors"])
