"""Plain values become the types of settings, or are refused."""

from __future__ import annotations

from dataclasses import asdict, field, replace
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.system.settings import (
    List,
    OnOff,
    Settings,
    SettingsError,
    Tuple,
    Whole,
    check_value,
    describe_type,
)

WHOLE = st.integers(-(2**53), 2**53)  # what a float holds exactly


@given(st.one_of(WHOLE, st.floats(allow_nan=False), st.text(), st.booleans(), st.none()))
def test_check_value_gives_the_type_or_refuses(value: object) -> None:
    for hint, kinds in (
        (Whole, int),
        (float, float),
        (str, str),
        (bool, bool),
        (Whole | None, int),
    ):
        try:
            converted = check_value(value, hint)
        except ValueError:
            continue
        assert type(converted) is kinds or converted is None
        assert converted == value


@dataclass(frozen=True)
class Inner(Settings):
    section: ClassVar[str] = "inner"

    share: float = Field(default=0.5, ge=0, lt=1, description="a share")
    names: List[str] | None = Field(default=None, description="names")


@dataclass(frozen=True)
class Outer(Settings):
    name: str = Field(description="a name")
    inner: Inner = field(default_factory=Inner)
    word: OnOff[Literal["auto", "on", "off"]] = Field(default="auto", description="a word")
    sizes: Tuple[Whole] = Field(default=(), description="sizes")


def test_settings_are_dataclasses() -> None:
    outer = Outer("a", sizes=[1, 2.0], word=True)
    assert asdict(outer) == {
        "name": "a",
        "inner": {"share": 0.5, "names": None},
        "word": "on",
        "sizes": (1, 2),
    }
    assert replace(outer, name="b").name == "b"
    assert hash(outer) == hash(replace(outer))


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({}, {"name": "a value is required: a name"}),
        ({"name": "a", "nam": "b"}, {"nam": "no such key; did you mean 'name'?"}),
        ({"name": 3}, {"name": "expected text; got 3"}),
        (
            {"name": "a", "word": "of"},
            {"word": "expected one of auto, on, off; got 'of'; did you mean 'off'?"},
        ),
        (
            {"name": "a", "sizes": (1, "x")},
            {"sizes": "expected a list of [a whole number]; got (1, 'x')"},
        ),
        ({"name": "a", "inner": {}}, {"inner": "expected Inner(...); got {}"}),
    ],
)
def test_problems_are_told_by_key(given: dict[str, Any], problems: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Outer(**given)
    assert caught.value.problems == problems


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Whole, "a whole number"),
        (Annotated[Whole, Field(ge=1)], "a whole number of at least 1"),
        (Annotated[float, Field(gt=0, le=1)], "a number above 0 and at most 1"),
        (Annotated[float, Field(ge=0, le=0.5)], "a number from 0 to 0.5"),
        (str | None, "text, or null"),
        (Literal["a", "b"] | bool, "one of a, b, or true or false"),
        (
            dict[str, Whole | List[Whole]],
            "a mapping {name: a whole number, or a list of [a whole number]}",
        ),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe_type(annotation) == words
