"""Checkpoints are whole or refused by name, and the one before is still there."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from samadapt.errors import UserError
from samadapt.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)


def checkpoint(step, best=True):
    parameter = torch.nn.Parameter(torch.full((2, 3), float(step)))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    return Checkpoint(
        step=step,
        weights={"a.b": torch.full((2, 3), float(step))},
        best_weights={"a.b": torch.ones(2, 3)} if best else {},
        optimizer=optimizer.state_dict(),
        progress={"step": step, "sampler": 2**70, "best_score": None},
        random={"cpu": torch.get_rng_state()},
    )


@pytest.mark.parametrize("best", [True, False])
def test_what_is_saved_comes_back(tmp_path, best):
    saved = checkpoint(7, best)
    path = save_checkpoint(tmp_path / "checkpoints", saved)
    assert path.name == "step_000007"
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found.step == 7
    assert found.progress == saved.progress
    assert torch.equal(found.weights["a.b"], saved.weights["a.b"])
    assert found.best_weights.keys() == saved.best_weights.keys()
    assert torch.equal(found.random["cpu"], saved.random["cpu"])
    state, expected = found.optimizer["state"][0], saved.optimizer["state"][0]
    assert torch.equal(state["exp_avg"], expected["exp_avg"])
    assert found.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_the_newest_two_are_kept(tmp_path):
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, checkpoint(step))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["LATEST", "step_000004", "step_000006"]
    assert load_checkpoint(tmp_path).step == 6
    save_checkpoint(tmp_path, checkpoint(6))  # again after a resume
    assert load_checkpoint(tmp_path).step == 6


def test_a_branch_from_an_older_one_replaces_the_newer(tmp_path):
    for step in (50, 100):
        save_checkpoint(tmp_path, checkpoint(step))
    write_atomically(tmp_path / "LATEST", "step_000050\n")
    save_checkpoint(tmp_path, checkpoint(60))
    assert load_checkpoint(tmp_path).step == 60
    names = sorted(path.name for path in tmp_path.glob("step_*"))
    assert names == ["step_000050", "step_000060"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.safetensors", "truncate"),
        ("best.safetensors", "flip"),
        ("state.pt", "truncate"),
        ("progress.json", "flip"),
        ("manifest.json", "truncate"),
        ("state.pt", "remove"),
        ("", "remove"),
    ],
)
def test_a_damaged_one_is_refused_by_name_and_the_older_offered(tmp_path, file, damage):
    for step in (3, 6):
        save_checkpoint(tmp_path, checkpoint(step))
    path = tmp_path / "step_000006" / file
    if damage == "remove":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[:-5] if damage == "truncate" else whole[:-1] + b"\0")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    message = str(caught.value)
    assert "step_000006: damaged checkpoint" in message
    assert file in message or file == "manifest.json"
    assert f"write one of step_000003 into {tmp_path / 'LATEST'} to use it" in message
    assert isinstance(caught.value, UserError)
    write_atomically(tmp_path / "LATEST", "step_000003\n")
    assert load_checkpoint(tmp_path).step == 3


def test_nothing_saved_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"LATEST: not found; nothing was saved here"):
        load_checkpoint(tmp_path)


def test_a_writer_that_dies_leaves_the_older_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(3))

    def die(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("samadapt.training.checkpoint.torch.save", die)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, checkpoint(6))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).step == 3
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_000003"]
    save_checkpoint(tmp_path, checkpoint(6))
    assert load_checkpoint(tmp_path).step == 6
    assert not list(tmp_path.glob(".*"))


def test_the_manifest_lists_every_file(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(1))
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 1
    assert set(manifest["sha256"]) | {"manifest.json"} == {file.name for file in path.iterdir()}
