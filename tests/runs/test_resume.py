"""A run that goes on: nothing is lost, mixed or scored as unseen that was trained on."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from samadapt.adapters.record import read_record
from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.runs.finetune import finetune
from samadapt.runs.run_directory import locked
from samadapt.training.checkpoint import load_checkpoint


@pytest.fixture
def run(recipe):
    def start(root, *overrides):
        return finetune(compose(str(recipe), [f"data.root={root}", *overrides]))

    return start


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def other_runs(run_dir):
    return {path for path in run_dir.parent.iterdir() if (path / "config.yaml").exists()} - {
        run_dir
    }


def rename(root, old, new):
    for part in ("images", "masks"):
        (root / part / f"{old}.png").rename(root / part / f"{new}.png")


def test_a_run_does_not_go_on_with_other_data(make_pictures, run, capsys):
    root = make_pictures()
    result = run(root)
    splits = result.run_dir / "splits.json"
    before = splits.read_bytes()
    assert set(json.loads(before)["images"]) == {f"p{index}" for index in range(8)}
    trained = read_record(result.adapter_dir).trained_on
    adapter = files_of(result.adapter_dir)
    rename(root, "p1", "a1")  # p0 would be trained on, and a1, which was, held out
    assert main(["finetune", f"resume={result.run_dir}"]) == 2
    said = capsys.readouterr().err
    assert f"{splits}: the data are not those that the run was started with" in said
    assert "1 renamed (p1 is now a1)" in said
    assert splits.read_bytes() == before
    assert files_of(result.adapter_dir) == adapter
    rename(root, "a1", "p1")
    assert main(["finetune", f"resume={result.run_dir}"]) == 0
    assert splits.read_bytes() == before
    assert read_record(result.adapter_dir).trained_on == trained


def test_a_run_of_an_earlier_version_goes_on_by_name(make_pictures, run, capsys):
    root = make_pictures()
    result = run(root)
    splits = result.run_dir / "splits.json"
    old = {
        k: v
        for k, v in json.loads(splits.read_text(encoding="utf-8")).items()
        if k not in ("images", "labels")
    }
    splits.write_text(json.dumps(old), encoding="utf-8")
    trained = read_record(result.adapter_dir).trained_on
    shutil.copy(root / "images" / "p1.png", root / "images" / "kept.png")
    shutil.copy(root / "images" / "p2.png", root / "images" / "p1.png")
    (root / "images" / "kept.png").unlink()
    (root / "images" / "p2.png").write_bytes((root / "images" / "p3.png").read_bytes())
    (root / "images" / "p3.png").write_bytes((root / "images" / "p4.png").read_bytes())
    shutil.rmtree(root / "images")
    shutil.copytree(make_pictures(name="again") / "images", root / "images")
    assert main(["finetune", f"resume={result.run_dir}"]) == 0
    assert "was written by an earlier version, without hashes" in capsys.readouterr().err
    assert json.loads(splits.read_text(encoding="utf-8")) == old
    assert set(trained) <= set(read_record(result.adapter_dir).trained_on)


def test_a_broken_record_of_the_split_is_refused(make_pictures, run, capsys):
    result = run(make_pictures(), "train.steps=1")
    (result.run_dir / "splits.json").write_text("[" * 100000, encoding="utf-8")
    assert main(["finetune", f"resume={result.run_dir}"]) == 2
    assert "splits.json: expected JSON" in capsys.readouterr().err


def test_a_run_in_use_is_refused_and_nothing_of_it_changed(make_pictures, run, capsys):
    result = run(make_pictures(), "train.steps=1")
    with locked(result.run_dir):
        before = files_of(result.run_dir)
        assert main(["finetune", f"resume={result.run_dir}"]) == 2
        assert files_of(result.run_dir) == before
    assert f"{result.run_dir}: in use by process {os.getpid()} (" in capsys.readouterr().err
    assert main(["finetune", f"resume={result.run_dir}"]) == 0


def test_a_damaged_checkpoint_costs_some_steps(make_pictures, run, capsys):
    result = run(make_pictures())
    adapter = files_of(result.adapter_dir)
    (result.run_dir / "checkpoints" / "step_000004" / "weights.safetensors").write_bytes(b"x")
    assert main(["finetune", f"resume={result.run_dir}"]) == 0
    said = capsys.readouterr().err
    assert "warning: " in said
    assert "step_000004/weights.safetensors: damaged checkpoint" in said
    assert "continuing from step_000002 instead" in said
    name = result.adapter_dir / "adapter_model.safetensors"
    assert name.read_bytes() == adapter[name]
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [x["step"] for x in map(json.loads, lines) if x["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_again(make_pictures, run, monkeypatch):
    import samadapt.training.loop as loop

    root = make_pictures()
    expected = run(root)
    right = loop.report_step

    def die(work, state, *rest):
        right(work, state, *rest)
        raise SystemExit  # as a process that is killed: no checkpoint, nothing tidied

    monkeypatch.setattr(loop, "report_step", die)
    with pytest.raises(SystemExit):
        run(root)
    monkeypatch.undo()
    (stopped,) = other_runs(expected.run_dir)
    with (stopped / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    (stopped / "checkpoints").mkdir()
    (stopped / "checkpoints" / ".samadapt-1234-step_000002").mkdir()
    assert main(["finetune", f"resume={stopped}"]) == 0
    names = ("adapter/adapter_model.safetensors", "eval/per_case.csv")
    for name in names:
        assert (stopped / name).read_bytes() == (expected.run_dir / name).read_bytes()
    lines = (stopped / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [x["step"] for x in map(json.loads, lines) if x["kind"] == "train"] == [1, 2, 3, 4]
    assert not list((stopped / "checkpoints").glob(".*"))


def test_other_weights_are_taken_out_again_after_an_error(tiny_sam):
    from types import SimpleNamespace

    from samadapt.adapters.injection import inject
    from samadapt.adapters.store import trainable_state
    from samadapt.methods import METHODS
    from samadapt.runs.finetune import with_weights

    context = SimpleNamespace(model=tiny_sam, injection=inject(tiny_sam, METHODS["lora"]()))
    before = trainable_state(tiny_sam, context.injection)
    other = {name: value + 1 for name, value in before.items()}
    with pytest.raises(KeyboardInterrupt), with_weights(context, other):
        raise KeyboardInterrupt
    after = trainable_state(tiny_sam, context.injection)
    assert all(bool((after[name] == value).all()) for name, value in before.items())


class Usage:
    def __init__(self, free):
        self.free = free


def test_a_disk_without_room_is_refused_before_the_start(
    make_pictures, run, monkeypatch, capsys, recipe
):
    root = make_pictures()
    result = run(root, "train.steps=1")
    one = sum(p.stat().st_size for p in (result.run_dir / "checkpoints" / "step_000001").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(int(2.9 * one)))
    command = ["finetune", f"recipe={recipe}", f"data.root={root}", "cache.enabled=off"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "3 checkpoints of this training need " in said
    assert f"and {int(2.9 * one)} bytes (" in said
    assert "output.dir" in said
    assert not other_runs(result.run_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(int(4 * one)))
    assert main(command) == 0


def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_later(
    make_pictures, run, recipe, monkeypatch, capsys
):
    import errno

    import samadapt.training.checkpoint as checkpoint

    root = make_pictures()
    expected = run(root)
    right, calls = checkpoint.torch.save, []

    def full(value, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        right(value, path)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    assert main(["finetune", f"recipe={recipe}", f"data.root={root}"]) == 1
    monkeypatch.undo()
    said = capsys.readouterr().err
    (stopped,) = other_runs(expected.run_dir)
    folder = stopped / "checkpoints"
    assert f"error: {folder}: the disk is full: step_000004 needs " in said
    assert "bytes (" in said
    assert f"continue with: samadapt finetune resume={stopped}" in said
    assert "please report it" not in said
    assert load_checkpoint(folder).step == 2
    assert not list(folder.glob(".*"))
    assert main(["finetune", f"resume={stopped}"]) == 0
    name = "adapter/adapter_model.safetensors"
    assert (stopped / name).read_bytes() == (expected.run_dir / name).read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_every_file_of_a_run_honours_the_umask(make_pictures, run, umask):
    root = make_pictures()
    before = os.umask(umask)
    try:
        result = run(root, "train.steps=2", "eval.overlays=1")
    finally:
        os.umask(before)
    wrong = {
        str(path.relative_to(result.run_dir)): oct(path.stat().st_mode & 0o777)
        for path in result.run_dir.rglob("*")
        if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert not wrong


def due_at_every_step(step, every, ended_by):
    """Make checkpoints, whose interval is 0 here, due at every step."""
    return not every or bool(ended_by) or step % every == 0


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["box", "point", "semantic"])
def test_a_run_resumed_at_every_step_ends_bit_equal(
    make_pictures, run, monkeypatch, stopped_after, prompts
):
    import samadapt.training.loop as loop

    root, steps = make_pictures(classes=2), 6
    options = [f"prompts={prompts}", f"train.steps={steps}", "peft.dropout=0.2", "train.ema=0.9"]
    options += ["train.validate_every=2", "train.checkpoint_every=0", "train.augment=[flip,noise]"]
    expected = run(root, *options)
    names = ("adapter/adapter_model.safetensors", "eval/per_case.csv")
    last = load_checkpoint(expected.run_dir / "checkpoints")
    for stop in range(1, steps + 1):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "is_due", due_at_every_step)
            stopped = stopped_after(stop, root, *options)
        assert main(["finetune", f"resume={stopped}"]) == 0
        for name in names:
            assert (stopped / name).read_bytes() == (expected.run_dir / name).read_bytes(), stop
        found = load_checkpoint(stopped / "checkpoints")
        assert found.progress == last.progress
        assert all(bool((found.weights[n] == v).all()) for n, v in last.weights.items())
        shutil.rmtree(stopped)
