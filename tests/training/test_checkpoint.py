"""Checkpoints are whole or refused by name, and the one before is still there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from samadapt.errors import UserError
from samadapt.system import atomic
from samadapt.training.checkpoint import (
    COPIES,
    Checkpoint,
    CheckpointError,
    checkpoint_bytes,
    load_checkpoint,
    save_checkpoint,
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
        progress={
            "step": step,
            "best_step": 0,
            "best_score": None,
            "skipped": 0,
            "sampler": 2**70,
        },
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


def test_averages_are_a_file_of_their_own(tmp_path):
    plain = save_checkpoint(tmp_path / "plain", checkpoint(7))
    assert not (plain / "averages.safetensors").exists()
    saved = replace(checkpoint(7), averages={"a.b": torch.full((2, 3), 0.5)})
    path = save_checkpoint(tmp_path / "averaged", saved)
    found = load_checkpoint(path.parent, like=saved.weights)
    assert torch.equal(found.averages["a.b"], saved.averages["a.b"])
    assert not load_checkpoint(plain.parent).averages
    size = sum(file.stat().st_size for file in path.iterdir())
    assert size <= checkpoint_bytes(saved.weights, COPIES + 1)
    (path / "averages.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"averages\.safetensors: damaged .* is missing"):
        load_checkpoint(path.parent)


def test_averages_of_another_run_are_refused(tmp_path):
    other = replace(checkpoint(7), averages={"a.c": torch.zeros(2, 3)})
    save_checkpoint(tmp_path, other)
    with pytest.raises(
        CheckpointError, match=r"averages\.safetensors: .* the tensor a\.b is missing"
    ):
        load_checkpoint(tmp_path)


TIMES = {"used": [1.5, 2], "first_step": [1, 1.0], "step": [0.1, 0.2], "validation": []}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stale", -1, "stale must be a whole number"),
        ("stale", True, "stale must be a whole number"),
        ("budget", {**TIMES, "used": [1.0]}, "budget must hold pairs"),
        ("budget", {**TIMES, "step": [-1.0, 1.0]}, "budget must hold pairs"),
        ("budget", {**TIMES, "step": [math.nan, 1.0]}, "budget must hold pairs"),
        ("budget", {"used": [1.0, 1.0]}, "budget must hold pairs"),
        ("budget", TIMES, None),
    ],
)
def test_impossible_counts_and_times_are_refused(tmp_path, key, value, said):
    saved = checkpoint(7)
    save_checkpoint(tmp_path, replace(saved, progress={**saved.progress, key: value}))
    if said is None:
        assert load_checkpoint(tmp_path).progress[key] == value
        return
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(tmp_path)


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
    atomic.write_text(tmp_path / "LATEST", "step_000050\n")
    save_checkpoint(tmp_path, checkpoint(60))
    assert load_checkpoint(tmp_path).step == 60
    names = sorted(path.name for path in tmp_path.glob("step_*"))
    assert names == ["step_000050", "step_000060"]


DAMAGES = [
    ("weights.safetensors", "truncate"),
    ("best.safetensors", "flip"),
    ("state.pt", "truncate"),
    ("progress.json", "flip"),
    ("manifest.json", "truncate"),
    ("state.pt", "remove"),
    ("", "remove"),
]


def harm(path, damage):
    if damage == "remove":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[:-5] if damage == "truncate" else whole[:-1] + b"\0")


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path, file, damage):
    for step in (3, 6):
        save_checkpoint(tmp_path, checkpoint(step))
    harm(tmp_path / "step_000006" / file, damage)
    warnings = []
    assert load_checkpoint(tmp_path, warnings.append).step == 3
    (warning,) = warnings
    assert "step_000006" in warning
    assert "damaged checkpoint" in warning
    assert file in warning or file == "manifest.json"
    assert warning.endswith("continuing from step_000003 instead")
    save_checkpoint(tmp_path, checkpoint(6))
    assert load_checkpoint(tmp_path).step == 6


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_where_none_is_good_it_is_refused_by_name(tmp_path, file, damage):
    for step in (3, 6):
        save_checkpoint(tmp_path, checkpoint(step))
        harm(tmp_path / f"step_{step:06d}" / file, damage)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, lambda warning: None)
    message = str(caught.value)
    for step in (3, 6) if (file, damage) != ("", "remove") else (6,):
        assert f"step_{step:06d}" in message
    assert "no good checkpoint is left" in message
    assert isinstance(caught.value, UserError)


def rewrite(folder, file, content):
    """Replace a file, and its hash in the manifest, as someone with bad intentions would."""
    (folder / file).write_bytes(content)
    if file == "manifest.json":
        return
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["sha256"][file] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


class Harmful:
    def __reduce__(self):
        return (open, ("harmed", "w"))


def test_a_pickle_is_neither_run_nor_advised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(tmp_path / "checkpoints", checkpoint(3))
    for content in (pickle.dumps(Harmful()), pickle.dumps({"optimizer": Harmful()})):
        rewrite(folder, "state.pt", content)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(folder.parent)
        assert "state.pt: damaged checkpoint: it does not hold plain tensors" in str(caught.value)
        assert "weights_only" not in str(caught.value)
    torch.save({"optimizer": Harmful(), "random": {}}, folder / "state.pt")
    rewrite(folder, "state.pt", (folder / "state.pt").read_bytes())
    with pytest.raises(CheckpointError, match="objects that could run code, which are never"):
        load_checkpoint(folder.parent)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"../other/step_000003",
        b"/etc",
        b"step_3x",
        b"",
        b"\xff\xfe",
        b"step_000003/..",
        b"s" * 9999,
    ],
)
def test_latest_must_name_a_step(tmp_path, content):
    save_checkpoint(tmp_path / "other", checkpoint(3))
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, checkpoint(5))
    (folder / "LATEST").write_bytes(content)
    with pytest.raises(
        CheckpointError, match="LATEST: expected the name of a checkpoint"
    ) as caught:
        load_checkpoint(folder, lambda warning: None)
    assert "step_000005" in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    other = save_checkpoint(tmp_path / "other", checkpoint(3))
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, checkpoint(5))
    (folder / "step_000003").symlink_to(other)
    (folder / "LATEST").write_text("step_000003\n", encoding="utf-8")
    warnings = []
    assert load_checkpoint(folder, warnings.append).step == 5
    assert "step_000003" in warnings[0]


def test_without_latest_the_newest_is_used(tmp_path):
    """A process that is killed between the two renames leaves the folder like this."""
    save_checkpoint(tmp_path, checkpoint(3))
    (tmp_path / "LATEST").unlink()
    assert load_checkpoint(tmp_path).step == 3


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        [],
        None,
        {"step": 3},
        {"step": 3, "sha256": {}},
        {"step": 3, "sha256": []},
        {"step": True, "sha256": "all"},
        {"step": 4, "sha256": "all"},
        {"step": 3, "sha256": "more"},
        {"step": 3, "sha256": "fewer"},
        {"step": 3, "sha256": "numbers"},
        {"step": 3, "sha256": "outside"},
    ],
    ids=repr,
)
def test_the_manifest_must_list_exactly_the_files(tmp_path, manifest):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    right = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]
    kinds = {
        "all": right,
        "more": right | {"x": "0" * 64},
        "fewer": {"state.pt": right["state.pt"]},
        "numbers": dict.fromkeys(right, 5),
        "outside": {f"../step_000003/{name}": value for name, value in right.items()},
    }
    if isinstance(manifest, dict) and isinstance(manifest.get("sha256"), str):
        manifest = manifest | {"sha256": kinds[manifest["sha256"]]}
    rewrite(folder, "manifest.json", json.dumps(manifest).encode())
    with pytest.raises(CheckpointError, match=r"step_000003.*damaged checkpoint"):
        load_checkpoint(tmp_path)


def test_a_file_that_is_not_listed_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    (folder / "more.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"'more.pt' does not belong to it"):
        load_checkpoint(tmp_path)


PROGRESS = {
    "step": [4, -3, "3", None, 3.0, True, [3]],
    "best_step": [9, -1, None, "1"],
    "skipped": [9, -1, 0.5],
    "sampler": [-1, "x", None],
    "best_score": ["high", [1], True],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in PROGRESS.items() for value in values]
)
def test_malformed_progress_is_refused(tmp_path, key, value):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    values = json.loads((folder / "progress.json").read_text(encoding="utf-8")) | {key: value}
    rewrite(folder, "progress.json", json.dumps(values).encode())
    with pytest.raises(CheckpointError, match=rf"progress.json: damaged checkpoint: {key}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("key", PROGRESS)
def test_missing_progress_is_refused(tmp_path, key):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    values = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    del values[key]
    rewrite(folder, "progress.json", json.dumps(values).encode())
    with pytest.raises(CheckpointError, match=rf"progress.json: damaged checkpoint: {key}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 10**5, b" " * 2**21])
@pytest.mark.parametrize("file", ["progress.json", "manifest.json"])
def test_odd_json_is_refused(tmp_path, file, content):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    rewrite(folder, file, content)
    with pytest.raises(CheckpointError, match=rf"{file}: damaged checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        {"optimizer": {}, "random": {}},
        {"optimizer": {"state": [], "param_groups": []}, "random": {}},
        {"optimizer": {"state": {}, "param_groups": []}, "random": {"cpu": torch.zeros(3)}},
        {"optimizer": {"state": {}, "param_groups": []}, "random": []},
    ],
    ids=repr,
)
def test_malformed_state_is_refused(tmp_path, state):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    torch.save(state, folder / "state.pt")
    rewrite(folder, "state.pt", (folder / "state.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"state.pt: damaged checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ({"a.b": torch.ones(2, 3), "c": torch.ones(1)}, "c is unknown"),
        ({}, "a.b is missing"),
        ({"a.b": torch.ones(3, 2)}, r"a.b has the shape \(3, 2\), expected \(2, 3\)"),
        ({"a.b": torch.full((2, 3), float("nan"))}, "NaN"),
    ],
)
def test_weights_must_be_those_of_the_model(tmp_path, weights, fault):
    folder = save_checkpoint(tmp_path, checkpoint(3))
    rewrite(folder, "weights.safetensors", safetensors.torch.save(weights))
    with pytest.raises(CheckpointError, match=fault):
        load_checkpoint(tmp_path, like={"a.b": torch.zeros(2, 3)})


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "checkpoints", checkpoint(3))
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path


def test_bytes_are_estimated_from_above_and_not_by_far(tmp_path):
    parameters = {
        f"layer.{index}.weight": torch.nn.Parameter(torch.ones(64, 64)) for index in range(9)
    }
    optimizer = torch.optim.AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.ones(64, 64)
    optimizer.step()
    weights = {name: value.detach() for name, value in parameters.items()}
    progress = {"step": 1}
    random = {"cpu": torch.get_rng_state()}
    saved = Checkpoint(1, weights, weights, optimizer.state_dict(), progress, random)
    folder = save_checkpoint(tmp_path, saved)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= checkpoint_bytes(weights) < 1.2 * size


def test_an_empty_folder_is_an_error_that_says_nothing_was_saved(tmp_path):
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
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["step"] == 1
    assert set(manifest["sha256"]) | {"manifest.json"} == {file.name for file in path.iterdir()}


def test_classes_of_mask_tokens_do_not_continue_with_tokens_of_their_own(tmp_path):
    """An earlier version resized the mask tokens for more than three classes."""
    save_checkpoint(tmp_path, checkpoint(7))
    now = {"a.b": torch.zeros(2, 3), "class_tokens.tokens.weight": torch.zeros(5, 3)}
    with pytest.raises(CheckpointError, match="finish it with the version that started it"):
        load_checkpoint(tmp_path, lambda text: None, like=now)
