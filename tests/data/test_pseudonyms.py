"""Names of patients are in no file of a run but the key and the configuration."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samadapt.data.dataset import open_dataset
from samadapt.data.pseudonyms import KEY_NAME, Pseudonyms, hide_names, open_key, write_key
from samadapt.errors import ConfigError

NAMES = ["smith_anna", "smith_bob", "jones_carl", "jones_dora", "miller_eve"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        values = np.random.default_rng(number).integers(0, 200, (20, 24, 3), dtype=np.uint8)
        mask = np.zeros((20, 24), np.uint8)
        mask[4:9, 4 : 12 + number] = 1
        mask[15, 15] = 1  # a tiny object: a finding that names the file
        Image.fromarray(values).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


def test_a_pseudonym_is_stable_and_needs_the_secret():
    one, two = Pseudonyms(b"1" * 32), Pseudonyms(b"2" * 32)
    assert one.of("smith") == Pseudonyms(b"1" * 32).of("smith")
    assert len({one.of("smith"), one.of("jones"), two.of("smith")}) == 3
    assert one.of("smith").startswith("case_")


def test_the_sides_and_the_pixels_stay(pictures):
    plain = open_dataset("folder", pictures, patient="(.+)_.*")
    pseudonyms = Pseudonyms()
    hidden = hide_names(plain, pseudonyms)
    assert hidden.train == [pseudonyms.of(name) for name in plain.train]
    assert hidden.val == [pseudonyms.of(name) for name in plain.val]
    for name in NAMES:
        one, other = plain.samples(name)[0], hidden.samples(pseudonyms.of(name))[0]
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)
        assert other.case == pseudonyms.of(name)
    assert "smith" not in json.dumps(hidden.splits())


def test_findings_name_no_file(pictures):
    (pictures / "masks" / "zorn_fritz.txt").write_text(
        "", encoding="utf-8"
    )  # a file that belongs to no case
    plain = open_dataset("folder", pictures)
    hidden = hide_names(plain, Pseudonyms())
    assert any("zorn" in finding.file for finding in plain.findings)
    text = "\n".join(map(str, hidden.findings))
    assert len(hidden.findings) == len(plain.findings)
    for word in ("smith", "jones", "zorn", str(pictures)):
        assert word not in text


def test_the_key_is_private_and_keeps_earlier_names(tmp_path):
    pseudonyms = open_key(tmp_path)
    write_key(tmp_path, pseudonyms, ["smith"])
    again = open_key(tmp_path / "nowhere", tmp_path)
    assert again.of("smith") == pseudonyms.of("smith")
    write_key(tmp_path, again, ["jones"])
    stored = json.loads((tmp_path / KEY_NAME).read_text(encoding="utf-8"))
    assert stored["cases"] == {again.of(name): name for name in ("smith", "jones")}
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / KEY_NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"secret": "zz"}', '{"secret": "ab", "cases": {}}']
)
def test_a_damaged_key_is_named(tmp_path, content):
    (tmp_path / KEY_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=KEY_NAME):
        open_key(tmp_path)
