"""prompts=propagate in whole runs: trained on clips, scored by memory, resumed, and refused."""

from __future__ import annotations

import json

import pytest

from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.errors import ConfigError, PromptError
from samadapt.runs.context import prompt_policy

CLIPS = ("data.name=nifti", "model.name=tiny_h", "prompts=propagate", "prompts.clip=2")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("prompts=box", "prompts.clip=4"), r"prompts\.clip=4 has no effect with prompts=box"),
        (
            ("prompts=box", "prompts.first=mask"),
            r"prompts\.first=mask has no effect with prompts=box",
        ),
        (("prompts=propagate", "prompts.first=line"), r"prompts\.first: expected kinds .* 'line'"),
        (("prompts=box", "peft.memory=full"), r"peft\.memory=full has no effect with prompts=box"),
        (("prompts=propagate", "prompts.negatives=0.2"), r"does not go with prompts\.negatives="),
        (("prompts=propagate", "cache.variants=3"), r"does not go with cache\.variants=3"),
        (("prompts=propagate", "peft=adapter", "peft.depth=3"), r"does not go with peft\.depth=3"),
    ],
)
def test_keys_that_clips_do_not_go_with_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        prompt_policy(compose("photos", ["data.root=nowhere", *keys]))


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ((), ("box",)),
        (("prompts.first=mask",), ("mask",)),
        (("prompts.first={point: 1}",), ("point",)),
        (("prompts.first={mask: 2, box: 1, point: 1}",), ("box", "point", "mask")),
    ],
)
def test_a_clip_begins_with_the_kinds_of_its_key(keys, kinds):
    policy = prompt_policy(compose("photos", ["data.root=nowhere", "prompts=propagate", *keys]))
    assert (policy.kinds, policy.clip) == (kinds, 4)
    assert sum(policy.shares.values()) == (1 if len(kinds) > 1 else 0)
    assert policy.main_kind == ("mask" if "mask" in kinds else kinds[0])


def test_flips_and_tiles_do_not_go_with_memory(make_pictures, make_scans, run):
    with pytest.raises(PromptError, match=r"does not go with eval\.tta=flip"):
        run(make_scans(), *CLIPS, "eval.tta=flip")
    with pytest.raises(PromptError, match=r"does not go with data\.tile=32"):
        run(make_pictures(), *CLIPS[1:], "data.tile=32")


def test_the_model_has_a_memory_and_the_data_are_volumes(make_pictures, make_scans, run):
    with pytest.raises(ConfigError, match="tiny has none; only SAM 2 has"):
        run(make_scans(), "data.name=nifti", "prompts=propagate")
    with pytest.raises(ConfigError, match=r"no training volume has prompts\.clip=2 neighbouring"):
        run(make_pictures(), *CLIPS[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("cache.enabled=off", "train.augment=[flip,noise]", "prompts.first=point"),
        ("prompts.first={box: 1, point: 1, mask: 2}", "prompts.objects=class"),
        ("peft=none", "peft.memory=full", "train.recompute=true"),
    ],
)
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
    # An evaluation prompts as the training did, unless another prompt is named.
    assert main(["evaluate", *given, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["summary"]
    assert again["propagate"] == result.summary["propagate"] == "memory"
    for state in ("zero_shot", "adapted"):
        assert again[state]["dice"] == pytest.approx(result.summary[state]["dice"], abs=1e-4)
    assert again.get("by_prompt", {}).keys() == result.summary.get("by_prompt", {}).keys()
    assert main(["evaluate", *given, "prompts=box", "--json"]) == 0
    boxed = json.loads(capsys.readouterr().out)["summary"]
    assert "propagate" not in boxed
    assert boxed["adapted"]["dice"] != pytest.approx(again["adapted"]["dice"], abs=1e-4)
    assert any("on its middle slice alone" in note for note in again["notes"])


@pytest.mark.slow
def test_a_stopped_training_on_clips_ends_bit_equal(make_scans, resumes_bit_equal):
    keys = [*CLIPS, "prompts.first={box: 1, point: 1, mask: 1}", "peft.memory=full"]
    resumes_bit_equal(make_scans(6), keys, ["adapter/adapter_model.safetensors"])
