"""Every card is read; a card that is wrong says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from samadapt.data import cards_folder, list_cards, load_card, make_intensity, readers
from samadapt.data.cards import read_card
from samadapt.data.formats.base import parse_axis
from samadapt.errors import ConfigError

GOOD = "name: x\ntitle: X\nsource: here\nlicence: CC0\nreader: nifti\n"


@pytest.mark.parametrize("name", list_cards())
def test_each_card_is_sound(name: str) -> None:
    card = load_card(name)
    assert card.reader in readers()
    assert card.licence
    assert card.classes
    assert card.intensity is not None
    make_intensity(card.intensity)
    parse_axis(card.axis)
    if card.download is not None:
        assert card.download.url.startswith("https://")
        assert len(card.download.sha256 or card.download.md5 or "") in (32, 64)


def test_the_cards_that_are_promised() -> None:
    assert {"mni152", "msd_hippocampus", "msd_spleen"} <= set(list_cards())
    assert "CC-BY-SA 4.0" in load_card("msd_spleen").licence
    assert "One averaged brain" in load_card("mni152").note
    assert not (cards_folder() / "__init__.py").exists()


def test_checksums_are_those_of_monai() -> None:
    source = pytest.importorskip("monai.apps.datasets", exc_type=ImportError)
    tasks = source.DecathlonDataset
    for name, task in (("msd_hippocampus", "Task04_Hippocampus"), ("msd_spleen", "Task09_Spleen")):
        download = load_card(name).download
        assert download is not None
        assert (download.url, download.md5) == (tasks.resource[task], tasks.md5[task])


def test_an_unknown_card() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'msd_spleen'"):
        load_card("msd_spleeen")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "mapping"),
        ("a: [", "not a readable YAML file"),
        ("!!python/object/apply:os.system ['true']", "a tag"),
        ("name: x", "needs title, source, licence, reader"),
        (GOOD + "licens: CC0\n", "did you mean 'licence'"),
        (GOOD.replace("name: x", "name: y"), "must be 'x'"),
        (GOOD + "classes: [a]\n", "classes must map"),
        (GOOD + "classes: {a: b}\n", r"classes\.a"),
        (GOOD + "download: x\n", "download must be"),
        (GOOD + "download: {url: a, folder: b}\n", "md5 or sha256"),
        (GOOD + "download: {url: a, md5: b}\n", "needs folder"),
    ],
)
def test_a_bad_card_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_card(tmp_path / "x.yaml")
    assert "x.yaml" in str(caught.value)


def test_an_installed_package_has_its_cards_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "samadapt"
    (package / "data").mkdir(parents=True)
    (tmp_path / "site-packages" / "datasets").mkdir()  # Hugging Face's package of that name
    monkeypatch.setattr("samadapt.data.cards.__file__", str(package / "data" / "cards.py"))
    with pytest.raises(ConfigError, match="cards are missing"):
        cards_folder()
    (package / "_datasets").mkdir()
    (package / "_datasets" / "mni152.yaml").write_text(GOOD, encoding="utf-8")
    assert cards_folder() == package / "_datasets"
