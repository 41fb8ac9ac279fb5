"""The keys of ``samadapt curve``."""

from __future__ import annotations

import pytest

from samadapt.config.compose import compose, resolved, to_yaml
from samadapt.config.curve_arguments import CurveArguments, curve_from_arguments
from samadapt.config.schema import Config
from samadapt.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("5,10,20,all", "5,10,20,all"),
        ("20,5,5", "5,20"),
        ("[all, 5]", "5,all"),
        ("all", "all"),
        ("7", "7"),
    ],
)
def test_numbers_are_sorted_and_kept_once(text, kept) -> None:
    asked = curve_from_arguments(["recipe=photos", f"cases={text}", "seeds=2"])
    assert asked.cases == kept
    assert asked.seeds == 2
    assert CurveArguments(cases=asked.cases).cases == kept


@pytest.mark.parametrize("text", ["0", "5,", "-1", "5,ten", "1.5", "²", "", "5 10"])
def test_other_texts_are_one_message(text) -> None:
    with pytest.raises(ConfigError, match="cases: expected numbers of labelled cases") as caught:
        curve_from_arguments(["recipe=photos", f"cases={text}"])
    assert "such as 5,10,20,all" in str(caught.value)


def test_cases_all_is_the_number_of_training_cases() -> None:
    assert CurveArguments(cases="5,all").sizes(28) == [5, 28]
    assert CurveArguments(cases="5,28,all").sizes(28) == [5, 28]


def test_cases_are_required_and_the_recipe_is_composed_as_for_a_run() -> None:
    with pytest.raises(ConfigError, match="cases: a value is required"):
        curve_from_arguments(["recipe=photos"])
    with pytest.raises(ConfigError, match="name a recipe"):
        curve_from_arguments(["cases=5"])
    asked = curve_from_arguments(["recipe=photos", "cases=5", "train.steps=3"])
    plain = compose("photos", ["train.steps=3"])
    asked = resolved(asked)
    for name in Config.__dataclass_fields__:
        assert getattr(asked, name) == getattr(plain, name)


def test_a_directory_gives_the_same_keys_back(tmp_path) -> None:
    asked = curve_from_arguments(["recipe=photos", "cases=5,all", "seeds=3"])
    (tmp_path / "config.yaml").write_text(to_yaml(asked), encoding="utf-8")
    again = curve_from_arguments([f"resume={tmp_path}", "cases=5,10,all"])
    assert (again.cases, again.seeds, again.train) == ("5,10,all", 3, asked.train)
