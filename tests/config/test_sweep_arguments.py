"""The keys of ``samadapt sweep``."""

from __future__ import annotations

import pytest

from samadapt.config.compose import compose, to_yaml
from samadapt.config.sweep_arguments import sweep_from_arguments
from samadapt.errors import ConfigError


def test_the_recipes_blocks_hold_for_every_method() -> None:
    asked = sweep_from_arguments(["recipe=medical", "peft=lora,ia3"])
    assert asked.space == {"peft": "lora,ia3", "peft.blocks": "last:8"}
    assert asked.trial({"peft": "ia3", "peft.blocks": "last:8"}).peft.blocks == "last:8"
    named = sweep_from_arguments(["recipe=medical", "peft=lora,ia3", "peft.blocks=all,last:2"])
    assert named.space["peft.blocks"] == "all,last:2"
    assert "peft.blocks" not in sweep_from_arguments(["recipe=medical", "peft.rank=2,4"]).space


def test_what_is_typed_holds_for_every_method_and_what_the_recipe_says_for_its_own() -> None:
    asked = sweep_from_arguments(
        ["recipe=medical", "peft=lora,dora,ia3", "peft.rank=4", "train.decoder_lr=0.1", "trials=5"]
    )
    assert asked.space["peft.rank"] == "4"
    assert asked.fixed == ["train.decoder_lr=0.1"]
    lora, dora = (asked.trial({"peft": name, "peft.rank": "4"}) for name in ("lora", "dora"))
    ia3 = asked.trial({"peft": "ia3"})
    assert (lora.train.lr, dora.train.lr, ia3.train.lr) == (2e-3, 3e-3, 3e-2)
    assert {one.train.decoder_lr for one in (lora, dora, ia3)} == {0.1}
    typed = sweep_from_arguments(["recipe=medical", "peft=lora,ia3", "train.lr=0.5"])
    assert typed.trial({"peft": "ia3"}).train.lr == 0.5


def test_a_trial_is_the_run_that_is_started_by_hand() -> None:
    asked = sweep_from_arguments(["recipe=medical", "peft=lora,ia3", "train.steps=7"])
    for name in ("lora", "ia3"):
        by_hand = ["train.steps=7", f"peft={name}", "peft.blocks=last:8", "eval.max_cases=0"]
        found = asked.trial({"peft": name, "peft.blocks": "last:8"})
        assert to_yaml(found) == to_yaml(compose("medical", by_hand))


def test_trials_of_equal_time_share_no_features() -> None:
    call = ["recipe=medical", "peft.rank=2,4", "train.max_cpu_seconds=60"]
    asked = sweep_from_arguments(call)
    trial = asked.trial({"peft.rank": "2"})
    assert (trial.cache.where, trial.train.steps, asked.limits_time) == ("memory", None, True)
    named = sweep_from_arguments([*call, "cache.dir=features"])
    assert named.trial({"peft.rank": "2"}).cache.where == "auto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.steps=3"], "a sweep searches keys with several values, and got none"),
        (["peft.rank=4,8", "folds=3"], "folds=3: every trial of a sweep is one training"),
        (["peft.rank=4,8", "train.validate_cases=0"], "chooses by the validation cases"),
        (["peft.rank=4,8", "eval.max_cases=0"], "leaves the held-out cases alone"),
        (["peft.rank=4,8", "equal_parameters=9"], "equal_parameters=9 chooses peft.rank itself"),
        (["peft.rank=4,8", "workers=0"], "workers: expected a whole number of at least 1"),
    ],
)
def test_a_mistake_is_one_message(arguments, message) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep_from_arguments(["recipe=medical", *arguments])
    assert message in str(caught.value)


def test_a_directory_gives_the_same_keys_back(tmp_path) -> None:
    call = ["recipe=medical", "peft=lora,[lora,bias]", "train.lr=interval(1e-4,1e-2)", "trials=9"]
    asked = sweep_from_arguments([*call, "train.clip=2"])
    (tmp_path / "config.yaml").write_text(to_yaml(asked), encoding="utf-8")
    again = sweep_from_arguments([f"resume={tmp_path}", "workers=2"])
    assert (again.workers, again.trials, again.fixed) == (2, 9, ["train.clip=2"])
    assert again.dimensions() == asked.dimensions()
    values = {"peft": "[lora,bias]", "train.lr": "0.001", "peft.blocks": "last:8"}
    assert again.trial(values) == asked.trial(values)
    assert again.trial(values).peft.name == "lora+bias"
    for other in ("train.steps=3", "peft.rank=2,4", "trials=10"):
        with pytest.raises(ConfigError, match="its trials do not fit"):
            sweep_from_arguments([f"resume={tmp_path}", other])


def test_a_run_directory_is_no_sweep(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(compose("medical")), encoding="utf-8")
    with pytest.raises(ConfigError, match="expected the configuration of a sweep"):
        sweep_from_arguments([f"resume={tmp_path}"])
