"""Recipes, cards and command lines fetch nothing, run nothing, and end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from samadapt.config.compose import compose, from_yaml
from samadapt.data.cards import read_card
from samadapt.errors import ConfigError
from samadapt.system.plain_yaml import MAX_BYTES, read_plain_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGES = "a0: &a0 {k0: 1, l0: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}\n" for n in range(1, 30)
)

HOSTILE = {
    "interpolation": ("model: {name: '${oc.env:HOME}'}", "interpolation"),
    "interpolation_inside": ("model: {name: 'a${oc.env:HOME}b'}", "interpolation"),
    "interpolation_of_a_key": ("'${oc.env:HOME}': 1", "interpolation"),
    "interpolation_of_another": ("a: 1\nb: ${a}", "interpolation"),
    "tag": ("a: !!python/object/apply:os.system [true]", "tag"),
    "own_tag": ("a: !env HOME", "tag"),
    "binary": ("a: !!binary aGVsbG8=", "tag"),
    "laughs": (LAUGHS, "every alias expanded"),
    "merges": (MERGES, "every alias expanded"),
    "itself": ("a: &a [*a]", "contains itself"),
    "deep": ("a: " + "[" * 200 + "]" * 200, "16 levels"),
    "very_deep": ("[" * 100_000, "16 levels"),
    "deep_mappings": ("{a: " * 1000, "16 levels"),
    "long": ("a: " + "x" * MAX_BYTES, "bytes"),
    "no_text": ("\xff\xfe\x00", "readable YAML"),
    "cut": ("a: [1, 2", "line"),
    "twice": ("a: 1\na: 2", "readable YAML"),
    "long_number": ("a: " + "1" * 9000, "readable YAML"),
    "list_as_key": ("[1, 2]: 3", "readable YAML"),
    "scalar": ("secret-token", "mapping"),
    "two_documents": ("a: 1\n---\nb: 2", "readable YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path: Path, name: str) -> None:
    text, words = HOSTILE[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="latin-1")
    began = time.monotonic()
    for read in (lambda: compose(str(path)), lambda: from_yaml(path), lambda: read_card(path)):
        with pytest.raises(ConfigError) as caught:
            read()
        assert "recipe.yaml" in str(caught.value)
    assert time.monotonic() - began < 20
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
    for secret in ("secret-token", "os.system", str(Path.home()) + "b"):
        assert secret not in str(caught.value)


def test_a_secret_never_reaches_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMADAPT_SECRET", "hunter2")
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {root: '${oc.env:SAMADAPT_SECRET}'}", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        compose(str(path))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="interpolation"):
        compose("medical", ["data.root='${oc.env:SAMADAPT_SECRET}'"])
    with pytest.raises(ConfigError, match="interpolation"):
        compose("medical", ["data.root=${oc.env:SAMADAPT_SECRET}"])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[" * 500 + "]" * 500, "16 nested brackets"),
        ("[1," * 17, "16 nested brackets"),
        ("x" * 2**21, "characters"),
    ],
)
def test_values_of_a_command_line(value: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=words) as caught:
        compose("medical", [f"data.classes={value}"])
    assert time.monotonic() - began < 10
    assert len(str(caught.value)) < 400


def test_what_a_recipe_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "\ufeffa: &a {b: 1e-3, c: [1, 'x']}\nd: {<<: *a, c: null}\ne: *a\n", encoding="utf-8"
    )
    inner = {"b": 1e-3, "c": [1, "x"]}
    assert read_plain_yaml(path) == {"a": inner, "d": {"b": 1e-3, "c": None}, "e": inner}
    path.write_text("# nothing\n", encoding="utf-8")
    assert read_plain_yaml(path) == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1.e3", 1000.0),
        ("-1e+5", -1e5),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x1F", 31),
        ("010", 8),
        ("12:30", 750),
        ("on", True),
        ("No", False),
        ("y", "y"),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("'1e3'", "1e3"),
        ("1e", "1e"),
        ("last:2", "last:2"),
        ("???", "???"),
    ],
)
def test_scalars_are_read_as_ever(tmp_path: Path, text: str, value: object) -> None:
    """The values that OmegaConf gave, which read the files until version 0.1."""
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}\n", encoding="utf-8")
    found = read_plain_yaml(path)["a"]
    assert found == value
    assert type(found) is type(value)


def test_aliases_are_copies(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a [1]\nb: *a\n", encoding="utf-8")
    found = read_plain_yaml(path)
    found["a"].append(2)
    assert found["b"] == [1]


@pytest.mark.parametrize(
    "line", ["title: [1]", "axis: {a: 1}", "channel: 1.5", "split: 3", "download: x", "classes: 3"]
)
def test_a_card_with_a_value_of_another_type(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.yaml"
    keys = dict.fromkeys(("title", "source", "licence", "reader"), "x") | {"name": "a"}
    key, value = line.split(": ", 1)
    path.write_text(
        "\n".join(f"{k}: {v}" for k, v in {**keys, key: value}.items()), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=key):
        read_card(path)
