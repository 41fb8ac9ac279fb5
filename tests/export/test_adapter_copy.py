"""``to=adapter``: a copy of the adapter directory, for the Hub."""

from __future__ import annotations

import pytest

from samadapt.cli import main
from samadapt.errors import AdapterError
from samadapt.export.adapter_copy import copy_adapter
from samadapt.inference.segmenter import load_adapter


def test_the_files_are_those_of_the_adapter(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    base = tmp_path / "tiny-base.safetensors"
    base.rename(directory / base.name)  # as an import has it
    done = copy_adapter(directory, tmp_path / "copy")
    assert set(done.files) == {path.name for path in directory.iterdir()}
    for path in directory.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    assert load_adapter(tmp_path / "copy").classes == ["cell"]


def test_an_old_card_is_written_anew(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    (directory / "README.md").write_text("## Scores\n\n```json\n{}\n```\n", encoding="utf-8")
    copy_adapter(directory, tmp_path / "copy")
    card = (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card
    assert "### With peft" in card


def test_changed_weights_are_not_copied(tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam)
    with (directory / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(AdapterError, match="changed or damaged"):
        copy_adapter(directory, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_options_of_other_targets_are_refused(tiny_sam, save, tmp_path, capsys):
    directory, _ = save(tiny_sam)
    keys = [f"adapter={directory}", "to=adapter", f"output={tmp_path / 'x'}", "precision=fp16"]
    assert main(["export", *keys]) == 2
    assert "precision is no option of to=adapter" in capsys.readouterr().err
