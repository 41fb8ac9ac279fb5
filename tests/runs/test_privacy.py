"""``privacy=true``: a planted name is in no file of a run but its key and its configuration."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from samadapt.cli import main
from samadapt.config.compose import compose, from_arguments
from samadapt.data.pseudonyms import KEY_NAME
from samadapt.errors import UserError
from samadapt.runs.finetune import finetune

PLANTED = "zebrowski"


def files_with(folder: Path, word: str) -> set[str]:
    """Return the files whose name or content holds a word, compressed content included."""
    found = set()
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        if word.encode() in content or word in path.name:
            found.add(path.name)
    return found


@pytest.fixture
def planted(make_pictures) -> Path:
    """Pictures whose names begin with a patient's name; one file belongs to no case."""
    root = make_pictures(classes=1, name=f"of_{PLANTED}")
    for folder in ("images", "masks"):
        for path in sorted((root / folder).iterdir()):
            path.rename(path.with_name(f"{PLANTED}{path.name[1]}_{path.name}"))
    (root / "images" / f"{PLANTED}_notes.txt").write_text("x", encoding="utf-8")
    return root


def test_no_name_leaves_the_key(planted, run):
    result = run(planted, "eval.overlays=3", "privacy=true", "data.patient='([a-z]+[0-9])_.*'")
    assert files_with(result.run_dir, PLANTED) == {KEY_NAME, "config.yaml"}
    names = json.loads((result.run_dir / KEY_NAME).read_text(encoding="utf-8"))["cases"]
    assert len(names) == 8
    assert list((result.run_dir / "overlays").glob("*case_*.png"))
    splits = json.loads((result.run_dir / "splits.json").read_text(encoding="utf-8"))
    assert set(splits["train"]) | set(splits["val"]) == set(names)


def test_a_resumed_run_keeps_the_pseudonyms(planted, recipe):
    options = [f"data.root={planted}", "privacy=true", "train.steps=2", "train.checkpoint_every=1"]
    run_dir = finetune(compose(str(recipe), options)).run_dir
    before = (run_dir / "splits.json").read_bytes()
    finetune(from_arguments([f"resume={run_dir}", "train.steps=3"]))
    assert (run_dir / "splits.json").read_bytes() == before
    assert files_with(run_dir, PLANTED) == {KEY_NAME, "config.yaml"}
    (run_dir / KEY_NAME).unlink()
    with pytest.raises(UserError, match="case_"):  # other names: it cannot go on unnoticed
        finetune(from_arguments([f"resume={run_dir}", "train.steps=4"]))


def test_an_evaluation_has_the_pseudonyms_of_the_training(planted, run, tmp_path, capsys):
    adapter = run(planted, "train.steps=1", "privacy=true").adapter_dir
    capsys.readouterr()
    arguments = [f"adapter={adapter}", f"output.dir={tmp_path / 'scores'}", "device=cpu"]
    assert main(["evaluate", *arguments, "precision=fp32", "--json"]) == 0
    run_dir = Path(json.loads(capsys.readouterr().out)["run_dir"])
    assert files_with(run_dir, PLANTED) == {KEY_NAME, "config.yaml"}
    first, second = (
        json.loads((d / KEY_NAME).read_text(encoding="utf-8")) for d in (adapter.parent, run_dir)
    )
    assert first == second


@pytest.mark.slow
def test_all_folds_of_a_cross_validation_share_the_key(planted, run):
    result = run(planted, "train.steps=1", "privacy=true", "folds=2")
    assert files_with(result.run_dir, PLANTED) == {KEY_NAME, "config.yaml"}
    keys = {
        json.loads(p.read_text(encoding="utf-8"))["secret"] for p in result.run_dir.rglob(KEY_NAME)
    }
    assert len(keys) == 1
    assert len(list(result.run_dir.rglob(KEY_NAME))) == 3
