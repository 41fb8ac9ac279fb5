"""What a sweep searches: Hydra's grammar, keys without a search, keys that a method lacks."""

from __future__ import annotations

import pytest

from samadapt.config.search_space import (
    Choice,
    Interval,
    combinations,
    read_dimension,
    split_space,
    typed_value,
    used_by,
    uses,
)
from samadapt.errors import ConfigError

CONTEXT = {"baseline": "null", "peft": "lora", "peft.decoder": "full", "head": "sam", "loss": "sam"}


@pytest.mark.parametrize(
    ("key", "text", "found"),
    [
        ("peft", "lora,dora", Choice(("lora", "dora"))),
        ("peft", "lora,[lora,bias]", Choice(("lora", "[lora,bias]"))),
        ("peft.rank", "4,8,4", Choice(("4", "8"))),
        ("train.steps", "range(10,40,10)", Choice(("10", "20", "30"))),
        ("train.augment", "[],[flip,noise]", Choice(("[]", "[flip,noise]"))),
        ("eval.tta", "null,flip", Choice(("null", "flip"))),
        ("data.intensity", "choice('ct:-160,240',mri)", Choice(("'ct:-160,240'", "mri"))),
        ("peft.rank", "8", Choice(("8",))),
        ("train.lr", "interval(1e-4,1e-2)", Interval(1e-4, 1e-2, log=True, whole=False)),
        ("train.lr", "interval(1e-3,5e-3)", Interval(1e-3, 5e-3, log=False, whole=False)),
        (
            "train.lr",
            "tag(linear,interval(1e-4,1e-2))",
            Interval(1e-4, 1e-2, log=False, whole=False),
        ),
        ("peft.rank", "tag(log,interval(2,8))", Interval(2, 8, log=True, whole=True)),
        ("peft.dropout", "interval(0,0.5)", Interval(0, 0.5, log=False, whole=False)),
    ],
)
def test_values_are_those_of_hydras_grammar(key, text, found) -> None:
    assert read_dimension(key, text) == found


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.lr", "interval(2,1)", "needs low < high; got 2 and 1"),
        ("train.lr", "tag(log,interval(0,1))", "starts above 0"),
        ("train.lr", "tag(often,interval(1,2))", "tag takes log or linear"),
        ("peft.rank", "glob(x*)", "expected a,b, choice"),
        ("peft.rank", "4,(", "cannot read"),
    ],
)
def test_other_texts_are_one_message(key, text, message) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        read_dimension(key, text)
    assert message in str(caught.value)


def test_a_value_survives_typing() -> None:
    for value in (None, True, 3, 1e-4, 0.1 + 0.2, "last:8", "null", "x y", [1, 2], {"box": 1}):
        text = typed_value(value)
        again = read_dimension("k", f"{text},7")
        assert again.values[0] == text
    assert typed_value([True, "a"]) == "[true,a]"
    assert Interval(1e-4, 1e-2, log=True, whole=False).typed(0.00123456) == "0.00123"
    assert Interval(0.1232, 1, log=False, whole=False).typed(0.12325) == "0.1232"


def test_arguments_are_divided_into_searched_keys_and_others() -> None:
    space, others = split_space(
        ["peft=lora,ia3", "peft.rank=4,8", "data.intensity=ct:-160,240", "data.series=CT,largest",
         "data.root=/a,b", "train.steps=3", "train.augment=[flip,noise]", "peft=[lora,bias]"]
    )  # fmt: skip
    assert space == {"peft": "lora,ia3", "peft.rank": "4,8"}
    assert len(others) == 6


@pytest.mark.parametrize(
    "argument",
    ["seed=0,1", "precision=choice(fp32,bf16)", "data.val_every=3,4", "train.validate_every=5,10",
     "prompts=box,point", "eval.batch_size=1,2", "folds=2,3", "train.max_cpu_seconds=3,4",
     "data.slice_step=range(1,3)"],
)  # fmt: skip
def test_what_would_make_trials_unequal_cannot_be_searched(argument) -> None:
    with pytest.raises(ConfigError, match="a sweep cannot search it: "):
        split_space([argument])


def test_a_key_that_a_method_lacks_is_left_out_and_trials_are_not_repeated() -> None:
    texts = {"peft": "lora,dora,ia3,decoder", "peft.rank": "4,8,16", "peft.blocks": "last:8,all"}
    dimensions = {key: read_dimension(key, text) for key, text in texts.items()}
    found = list(combinations(dimensions, CONTEXT))
    of = {m: [one for one in found if one["peft"] == m] for m in ("lora", "dora", "ia3", "decoder")}
    assert {method: len(ones) for method, ones in of.items()} == {
        "lora": 6, "dora": 6, "ia3": 2, "decoder": 1,
    }  # fmt: skip
    assert of["decoder"] == [{"peft": "decoder"}]
    assert of["ia3"][0] == {"peft": "ia3", "peft.blocks": "last:8"}
    methods = used_by(dimensions, CONTEXT)
    assert methods["peft.rank"] == {"lora", "dora"}
    assert methods["peft.blocks"] == {"lora", "dora", "ia3"}


def test_keys_without_effect_are_left_out() -> None:
    def used(key, **values):
        return uses({name.replace("_", "."): text for name, text in values.items()}, key, CONTEXT)

    assert not used("peft.decoder_rank")
    assert uses({"peft.decoder": "lora"}, "peft.decoder_rank", CONTEXT)
    assert not used("head.width")
    assert used("head.width", head="unet")
    assert used("loss.focal")
    assert not used("loss.focal", loss="dice_ce")
    assert not used("baseline.lr")
    assert used("baseline.lr", baseline="unet")
    assert not used("peft.rank", baseline="unet")


def test_a_key_that_no_trial_has_is_refused() -> None:
    for key in ("peft.rnk", "head.width"):
        with pytest.raises(ConfigError, match=f"{key}: no trial has this key"):
            used_by({key: Choice(("4", "8"))}, CONTEXT)
