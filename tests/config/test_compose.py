"""Recipes, command lines and the schema: what wins, and what every mistake says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import (
    compose,
    from_arguments,
    from_yaml,
    parse_settings,
    recipes,
    resolved,
    to_dict,
    to_yaml,
)
from samadapt.config.schema import Config, Data
from samadapt.config.train import STEPS
from samadapt.errors import ConfigError
from samadapt.methods import METHODS
from samadapt.system.settings import Settings


def fault(overrides: list[str], recipe: str = "medical") -> str:
    with pytest.raises(ConfigError) as caught:
        compose(recipe, overrides)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_recipe


def test_command_line_wins_over_recipe_wins_over_schema(write: Any) -> None:
    recipe = write("train: {steps: 7, lr: 1e-4}\npeft: {name: lora, rank: 3}\n")
    config = compose(recipe, ["train.steps=9"])
    assert (config.train.steps, config.train.lr) == (9, 1e-4)
    assert config.train.batch_size == Config().train.batch_size
    assert config.recipe == recipe


@pytest.mark.parametrize("name", sorted(METHODS))
def test_peft_picks_the_method(name: str) -> None:
    config = compose("medical", [f"peft={name}"])
    assert type(config.peft) is METHODS[name]
    assert compose("medical", [f"peft.name={name}"]) == config
    assert to_dict(config)["peft"]["name"] == name


def test_another_method_forgets_the_first_ones_own_options(write: Any) -> None:
    recipe = write("peft: {name: lora, rank: 3, blocks: 'last:1', decoder: frozen}\n")
    config = compose(recipe, ["peft=adapter"])
    assert (config.peft.blocks, config.peft.decoder) == ("all", "frozen")
    assert not hasattr(config.peft, "rank")
    assert compose(recipe, ["peft=adapter", "peft.blocks=last:1"]).peft.blocks == "last:1"
    assert to_dict(compose(recipe, ["peft=lora"]))["peft"]["rank"] == 3


def test_the_blocks_that_now_apply_are_named(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write("peft: {name: lora, blocks: 'last:1'}\n")
    for overrides, said in (
        ([], ""),
        (["peft=lora"], ""),
        (["peft=none"], ""),
        (["peft=decoder"], ""),
        (["peft=fact", "peft.blocks=last:1"], ""),
        (
            ["peft=fact"],
            "chosen for peft=lora and is dropped; peft.blocks=all,",
        ),
        (["peft=late_blocks"], "peft.blocks=last:2, the default of peft=late_blocks, applies"),
    ):
        compose(recipe, overrides)
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err if said else not err


def test_another_method_trains_at_its_own_rate(write: Any) -> None:
    recipe = write("peft: {name: lora}\ntrain: {lr: 0.5, decoder_lr: 0.25}\n")
    for typed, lr in (
        ([], 0.5),
        (["peft=lora"], 0.5),
        (["peft=oft"], METHODS["oft"].lr),
        (["peft=oft", "train.lr=0.125"], 0.125),
        (["peft=[bias,houlsby]"], min(METHODS["bias"].lr, METHODS["houlsby"].lr)),
    ):
        config = compose(recipe, typed)
        assert (config.train.lr, config.train.decoder_lr) == (lr, 0.25)
    assert len({method.lr for method in METHODS.values()}) > 3
    plain = compose(write("peft: late_blocks\n"))
    assert (plain.train.lr, plain.train.decoder_lr) == (METHODS["late_blocks"].lr, 1e-3)
    assert compose(write("train: {lr: 0.5}\n")).train.decoder_lr == 0.5
    assert resolved(plain) == plain == from_yaml(Path(write(to_yaml(plain))))


def test_another_data_set_forgets_what_described_the_first(write: Any) -> None:
    recipe = write("data: {name: msd, root: /a, axis: axial, classes: [x], slice_step: 3}\n")
    data = compose(recipe, ["data=folder"]).data
    assert data == Data(name="folder", slice_step=3)
    assert compose(recipe, ["data=folder", "data.root=/b"]).data.root == "/b"
    assert compose(recipe, ["data.root=/b"]).data.axis == "axial"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("data.root=/a b/é(1)", "data.root", "/a b/é(1)"),
        ("data.root=~/x=1,2", "data.root", "~/x=1,2"),
        ("data.root='quoted'", "data.root", "quoted"),
        ("data.root=123", "data.root", "123"),
        ("data.root=null", "data.root", None),
        ("data.intensity=ct:-160,240", "data.intensity", "ct:-160,240"),
        ("data.intensity={window: 3}", "data.intensity", {"window": 3}),
        ("data.classes=[liver,spleen]", "data.classes", ["liver", "spleen"]),
        ("data.labels={liver: 5, kidney: [2,3]}", "data.classes", {"liver": 5, "kidney": [2, 3]}),
        (
            "data.classes={liver: 5, kidneys: [2,3]}",
            "data.classes",
            {"liver": 5, "kidneys": [2, 3]},
        ),
        ("data.channel=1", "data.channel", 1),
        ("data.channel=T1", "data.channel", "T1"),
        ("data.empty_slices=0.25", "data.empty_slices", 0.25),
        ("peft.blocks=last:2", "peft.blocks", "last:2"),
        ("peft.blocks=[0,3]", "peft.blocks", (0, 3)),
        ("train.lr=1", "train.lr", 1.0),
        ("train.steps=1e2", "train.steps", 100),
        ("train.augment=[flip]", "train.augment", ("flip",)),
        ("cache.enabled=on", "cache.enabled", "on"),
        ("model=vit_b", "model.name", "vit_b"),
        ("prompts=semantic", "prompts.name", "semantic"),
        ("seed=3", "seed", 3),
    ],
)
def test_values(override: str, path: str, value: object) -> None:
    found: Any = compose("medical", [override])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_labels_is_another_name_of_classes(write: Any) -> None:
    recipe = write("data:\n  labels:\n    liver: 5\n")
    assert compose(recipe, []).data.classes == {"liver": 5}
    assert compose(recipe, ["data.classes={a: 1}"]).data.classes == {"a": 1}
    with pytest.raises(ConfigError, match=r"data\.labels: is another name of data\.classes"):
        compose("medical", ["data.labels={a: 1}", "data.classes={b: 2}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lrr=1", "train.lrr: no such key; did you mean 'train.lr'"),
        ("peft.rnk=1", "peft.rnk: no such key; did you mean 'peft.rank'"),
        ("+train.lr=1", "no such key; did you mean 'train.lr'"),
        ("zzz=1", "zzz: no such key; there is"),
        ("train.steps", "train.steps: expected key=value; there is no '='"),
        (
            "train.steps=abc",
            "train.steps: expected a whole number of at least 1, or null; got 'abc'",
        ),
        ("train.steps=1.5", "train.steps: expected a whole number of at least 1, or null; got 1.5"),
        (
            "train.steps=true",
            "train.steps: expected a whole number of at least 1, or null; got True",
        ),
        ("train.steps=1,2", "train.steps: expected one value; got '1,2'"),
        ("train.steps=0", "train.steps: expected a whole number of at least 1, or null; got 0"),
        ("train.lr=0", "train.lr: expected a number above 0 and at most 1, or null; got 0"),
        (
            "train.lr=1e300",
            "train.lr: expected a number above 0 and at most 1, or null; got 1e+300",
        ),
        ("train.lr=inf", "train.lr: expected a number above 0 and at most 1, or null; got inf"),
        ("seed=-1", "seed: expected a whole number from 0 to 4294967295; got -1"),
        ("seed=4294967296", "seed: expected a whole number from 0 to 4294967295; got 4294967296"),
        ("train.lr=nan", "train.lr: expected a number above 0 and at most 1, or null; got nan"),
        ("prompts.jitter=1", "prompts.jitter: expected a number of at least 0 and below 1; got 1"),
        ("train=3", "the group has no options; set one of its keys: train.steps"),
        ("data.merge_classes=1", "data.merge_classes: expected true or false; got 1"),
        (
            "data.classes=[1]",
            "data.classes: expected a list of [text], a mapping {name: a whole number,",
        ),
        (
            "prompts=bx",
            "prompts.name: expected one of box, point, scribble, mask, interactive, semantic,",
        ),
        ("model=vit_bb", "model.name: expected one of vit_b, vit_l"),
        ("peft=lorra", "peft.name: expected one of"),
        ("peft.dropout=1", "peft.dropout: expected a number of at least 0 and below 1; got 1"),
        ("peft.blocks=lst:2", "peft.blocks must be all, last:K"),
        ("data.classes={", "data.classes: cannot read '{'"),
        ("data.labels={f\u00fc\u00dfe: 1}", "is not in quotes, key='\"text\"'"),
    ],
)
def test_mistakes(override: str, said: str) -> None:
    message = fault([override])
    assert said in message
    assert "\n" not in message


def test_all_mistakes_come_out_at_once(write: Any) -> None:
    recipe = write("train: {stps: 3}\nloss: {dice: much}\n")
    message = fault(["seed=x", "peft.rank=0", "foo"], recipe)
    assert message.startswith("5 problems in the configuration:")
    assert f"train.stps: no such key; did you mean 'train.steps'? ({recipe})" in message
    assert f"loss.dice: expected a number of at least 0; got 'much' ({recipe})" in message
    assert "seed: expected a whole number from 0 to 4294967295; got 'x' (command line)" in message


def test_an_unknown_method_does_not_blame_its_options() -> None:
    assert "peft.rank" not in fault(["peft=lorra", "peft.rank=3"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [", "not a readable YAML file"),
        ("- 1", "expected a mapping of keys; got list"),
        ("a: ${nowhere}", "an interpolation"),
    ],
)
def test_broken_recipe_files(write: Any, text: str, said: str) -> None:
    recipe = write(text)
    message = fault([], recipe)
    assert said in message
    assert recipe in message


def test_missing_recipes(tmp_path: Path) -> None:
    assert "did you mean 'medical'" in fault([], "medcal")
    assert "no such file" in fault([], str(tmp_path / "none.yaml"))


def test_yaml_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for recipe in recipes():
        config = compose(recipe, ["peft.blocks=[0,1]", "train.augment=[flip]", "data.root=/a é"])
        path.write_text(to_yaml(config), encoding="utf-8")
        assert from_yaml(path) == config


def test_resume_starts_from_the_stored_configuration(tmp_path: Path) -> None:
    stored = compose("medical", ["train.steps=11", "peft=adapter"])
    (tmp_path / "config.yaml").write_text(to_yaml(stored), encoding="utf-8")
    config = from_arguments([f"resume={tmp_path}", "train.steps=12"])
    assert config == replace(stored, resume=str(tmp_path), train=replace(stored.train, steps=12))
    with pytest.raises(ConfigError, match="no such file"):
        from_arguments([f"resume={tmp_path / 'none'}"])


def test_a_run_has_its_steps_or_its_time(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    limit = "train.max_seconds=60"
    plain, with_steps = write("peft: lora\n"), "train: {steps: 7}\n"
    assert compose(plain).train.steps == STEPS
    assert compose(plain, ["train.steps=null"]).train.steps == STEPS
    assert compose(plain, [limit]).train.steps is None
    assert compose(plain, ["train.max_cpu_seconds=60"]).train.steps is None
    assert compose(plain, [limit, "train.steps=9"]).train.steps == 9
    assert not capsys.readouterr().err
    recipe = write(with_steps)
    assert compose(recipe).train.steps == 7
    assert compose(recipe, ["train.max_seconds=null"]).train.steps == 7
    assert not capsys.readouterr().err
    assert compose(recipe, [limit]).train.steps is None
    said = " ".join(capsys.readouterr().err.split())
    assert f"train.steps=7 is dropped, because {limit} limits the time" in said
    both = compose(write("train: {steps: 7, max_cpu_seconds: 30}\n"), [limit])
    assert (both.train.steps, both.train.max_seconds, both.train.max_cpu_seconds) == (7, 60, 30)
    assert not capsys.readouterr().err


def test_a_resumed_run_keeps_its_steps_or_its_time(tmp_path: Path) -> None:
    for typed, steps in ((["train.max_seconds=9"], None), (["train.steps=11"], 11)):
        stored = compose("medical", typed)
        (tmp_path / "config.yaml").write_text(to_yaml(stored), encoding="utf-8")
        config = from_arguments([f"resume={tmp_path}"])
        assert config.train == stored.train
        assert config.train.steps == steps


def test_a_run_needs_a_recipe() -> None:
    with pytest.raises(ConfigError, match="name a recipe, recipe=NAME"):
        from_arguments(["train.steps=3"])
    assert from_arguments(["recipe=medical"]) == compose("medical")


@dataclass(frozen=True)
class Arguments(Settings):
    adapter: str = Field(description="DIR")


def test_a_needed_key_is_named() -> None:
    with pytest.raises(ConfigError, match="adapter: a value is required: DIR"):
        parse_settings(Arguments, [])
    assert parse_settings(Arguments, ["adapter=/x"]).adapter == "/x"


def test_a_kind_of_pefts_takes_its_own_options():
    config = compose("medical", ["peft=hra", "peft.options={r: 4}", "peft.targets=[qkv,mlp]"])
    assert config.peft.name == "hra"
    assert config.peft.options == {"r": 4}
    assert config.peft.targets == ("qkv", "mlp")


def test_a_kind_that_fits_no_linear_says_why():
    with pytest.raises(ConfigError, match="peft=prefix_tuning: it works on the tokens of a lang"):
        compose("medical", ["peft=prefix_tuning"])
