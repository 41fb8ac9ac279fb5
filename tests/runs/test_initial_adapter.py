"""``init=DIR``: a training that starts from another adapter, on new data or with more classes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from samadapt.adapters.record import read_record, sha256_of
from samadapt.cli import main
from samadapt.config.compose import compose, from_yaml
from samadapt.errors import AdapterError, ConfigError
from samadapt.runs.finetune import finetune

WEIGHTS = "adapter_model.safetensors"
STAY = ["train.lr=1e-12", "train.decoder_lr=1e-12", "train.weight_decay=0", "train.steps=1"]
"""A training that moves no weight by more than rounding."""


@pytest.fixture
def first(make_pictures, run):
    """A trained adapter of two classes without prompts, on other pictures."""
    root = make_pictures(6, classes=2, name="first")
    options = ["prompts=semantic", "data.classes={a: 1, b: 2}", "train.lr=0.01", "train.steps=2"]
    return run(root, *options)


@pytest.mark.slow
def test_an_adapter_is_trained_further_with_more_classes(make_pictures, run, first, tmp_path):
    root = make_pictures(8, classes=3, name="second")
    options = ["prompts=semantic", "data.classes={b: 2, c: 3, a: 1}"]
    plain = run(root, *options, "train.steps=1")
    result = run(root, *options, *STAY, f"init={first.run_dir}")
    kept = ["lora in 4 blocks (0-3)", "the mask decoder", "mask tokens of b, a"]
    entry = result.summary["init"]
    assert (entry["kept"], entry["new"], entry["left_out"]) == (kept, ["mask token of c"], [])
    assert "init" not in plain.summary
    # the base model is scored beside it, not the first adapter
    assert result.summary["zero_shot"] == plain.summary["zero_shot"]
    before, after = (load_file(one.adapter_dir / WEIGHTS) for one in (first, result))
    tokens = "base_model.model.mask_decoder.mask_tokens.weight"
    assert torch.allclose(after[tokens][[0, 3, 1]], before[tokens][[0, 1, 2]], atol=1e-6)
    rest = [key for key in before if "lora" in key or "transformer" in key]
    assert all(torch.allclose(after[key], before[key], atol=1e-6) for key in rest)

    record, earlier = (read_record(one.adapter_dir) for one in (result, first))
    assert record.init == entry
    assert set(earlier.trained_on) | set(read_record(plain.adapter_dir).trained_on) == set(
        record.trained_on
    )
    assert len(record.trained_on) == len(earlier.trained_on) + 6
    card = (result.adapter_dir / "README.md").read_text(encoding="utf-8")
    assert "| Started from | an adapter trained on folder, sha256 of its weights `" in card
    assert "new: mask token of c" in card
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "init: kept: lora in 4 blocks (0-3), the mask decoder, mask tokens of b, a;" in log
    stored = from_yaml(result.run_dir / "config.yaml")
    assert stored.init_sha256 == sha256_of(first.adapter_dir / WEIGHTS) == entry["weights_sha256"]
    assert any("started from an adapter trained on folder" in n for n in result.summary["notes"])
    assert str(tmp_path) not in json.dumps(record.init)

    # a third adapter remembers the images of both
    third = run(make_pictures(4, classes=1, name="third"), *STAY, f"init={result.adapter_dir}")
    images = read_record(third.adapter_dir).trained_on
    assert set(record.trained_on) < set(images)


def test_a_held_out_case_that_the_adapter_was_trained_on_is_refused_by_name(
    make_pictures, run, tmp_path
):
    root = make_pictures()  # p0 and p5 are held out of 8
    adapter = run(root, "train.steps=1").adapter_dir
    other = tmp_path / "renamed"
    shutil.copytree(root, other)
    for part in ("images", "masks"):
        for index in range(8):
            (other / part / f"p{index}.png").rename(other / part / f"q{7 - index}.png")
    runs = sorted((tmp_path / "runs" / "small").iterdir())
    with pytest.raises(ConfigError) as refused:
        run(other, f"init={adapter}")
    said = str(refused.value)
    assert "was trained on 2 of the 2 cases that are held out here: q0, q5." in said
    assert "data.val_every" in said
    with pytest.raises(ConfigError, match="of the 8 cases that are held out here"):
        run(root, f"init={adapter}", "folds=4")
    assert sorted((tmp_path / "runs" / "small").iterdir()) == runs
    assert run(root, f"init={adapter}", "train.steps=1").summary["cases"] == 2


def test_what_differs_from_the_first_adapter_is_named(make_pictures, run, first, capsys):
    root = make_pictures(8, name="second")
    run(root, "data.intensity=microscopy", "prompts=box", *STAY, f"init={first.adapter_dir}")
    said = capsys.readouterr().err
    assert "warning: init: prompts: semantic for the adapter, box in this run" in said
    assert "warning: init: intensity (data.intensity): " in said
    assert "left out: mask tokens of a, b" in said


@pytest.mark.slow
def test_an_adapter_that_does_not_say_what_it_saw_is_warned_about(make_pictures, run, capsys):
    root = make_pictures()
    adapter = run(root, "train.steps=1").adapter_dir
    record = json.loads((adapter / "samadapt.json").read_text(encoding="utf-8"))
    for name in ("trained_on", "weights_sha256", "record_sha256"):  # of an earlier version
        del record[name]
    (adapter / "samadapt.json").write_text(json.dumps(record), encoding="utf-8")
    result = run(root, "train.steps=1", f"init={adapter}")
    assert "does not say what it was trained on; whether it was trained on a held-out case" in (
        capsys.readouterr().err
    )
    new = read_record(result.adapter_dir)
    assert len(new.trained_on) == 6
    assert new.init["trained_on_known"] is False
    assert any("held-out cases may be among them" in note for note in result.summary["notes"])
    arguments = [f"adapter={result.adapter_dir}", f"output.dir={result.run_dir}", "device=cpu"]
    assert main(["evaluate", *arguments, "unseen=true"]) == 2
    assert "started from an adapter whose training images are not all known" in (
        capsys.readouterr().err
    )
    assert main(["evaluate", *arguments, "data.val_every=2"]) == 2  # its own images are known
    assert "was trained on 3 of the 4 cases" in capsys.readouterr().err


@pytest.fixture
def trained(make_pictures, run):
    """A run of the build ``tiny`` on pictures of their own."""
    return run(make_pictures(name="first", classes=2), "data.merge_classes=true", "train.steps=1")


MISTAKES = [
    ("init=nowhere", "init=nowhere: expected an adapter directory, or a run directory"),
    ("init={run} model=tiny_t", "expected an adapter of model=tiny_t; it was trained on tiny"),
    ("init={run} model.image_size=128", "was trained at 64 px. Use model.image_size=64"),
    ("init={run} peft=none peft.decoder=frozen", "this run trains nothing"),
    ("init={run} peft=adapter peft.decoder=frozen", "Train with its own method, peft=lora"),
    ("init_sha256=abc", "give both"),
    ("init={run} init_sha256=abc", "expected the weights with sha256 abc"),
]


def test_a_mistake_is_one_message_and_leaves_nothing(make_pictures, run, tmp_path):
    first = make_pictures(name="first", classes=2)
    trained = run(first, "data.merge_classes=true", "train.steps=1", "peft.decoder=frozen")
    root = make_pictures()
    runs = sorted((tmp_path / "runs" / "small").iterdir())
    for options, message in MISTAKES:
        with pytest.raises((ConfigError, AdapterError)) as refused:
            run(root, *options.format(run=trained.run_dir).split())
        assert message in str(refused.value)
    assert sorted((tmp_path / "runs" / "small").iterdir()) == runs


@pytest.mark.slow
def test_a_run_without_an_adapter_is_named(make_pictures, run, tmp_path):
    root = make_pictures()
    stopped = run(root, "peft=none", "peft.decoder=frozen").run_dir
    with pytest.raises(ConfigError, match="this run has no adapter"):
        run(root, f"init={stopped}")
    folds = tmp_path / "folds"
    (folds / "fold_0" / "adapter").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"name one of them, such as init=.*fold_0/adapter"):
        run(root, f"init={folds}")


@pytest.mark.slow
def test_other_base_weights_are_refused(make_pictures, run, trained, tmp_path):
    from safetensors.torch import save_file

    from samadapt.sam.weights.loading import load_sam

    state = load_sam("tiny").state_dict()
    name = "mask_decoder.iou_token.weight"
    save_file({**state, name: state[name] + 1}, tmp_path / "base.safetensors")
    base = f"model.checkpoint={tmp_path / 'base.safetensors'}"
    with pytest.raises(ConfigError, match="expected an adapter of the base weights with sha256"):
        run(make_pictures(), base, f"init={trained.adapter_dir}")


@pytest.mark.slow
def test_a_resumed_run_needs_the_first_adapter_no_more(
    make_pictures, run, trained, stopped_after, capsys
):
    root = make_pictures()
    options = [f"init={trained.run_dir}", "train.checkpoint_every=1"]
    expected = run(root, *options)
    stopped = stopped_after(2, root, *options)
    assert main(["finetune", f"resume={stopped}", "init=elsewhere"]) == 2
    assert f"its checkpoints do not fit init=elsewhere (was {trained.run_dir})" in (
        capsys.readouterr().err
    )
    shutil.move(trained.run_dir, trained.run_dir.with_name("gone"))
    assert main(["finetune", f"resume={stopped}"]) == 0
    assert "the weights come from the checkpoint" in capsys.readouterr().err
    for name in (f"adapter/{WEIGHTS}", "eval/per_case.csv", "init.json"):
        assert (stopped / name).read_bytes() == (expected.run_dir / name).read_bytes()
    found, wanted = (read_record(one / "adapter") for one in (stopped, expected.run_dir))
    assert (found.init, found.trained_on) == (wanted.init, wanted.trained_on)


@pytest.mark.slow
def test_a_run_stopped_before_its_first_checkpoint_reads_the_adapter_again(
    make_pictures, run, trained, monkeypatch, capsys
):
    import samadapt.training.loop as loop

    root = make_pictures()
    expected = run(root, f"init={trained.run_dir}")
    monkeypatch.setattr(loop, "report_step", lambda *args: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        run(root, f"init={trained.run_dir}")
    monkeypatch.undo()
    stopped = max(expected.run_dir.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    weights = trained.adapter_dir / WEIGHTS
    kept = weights.read_bytes()
    shutil.copy(expected.adapter_dir / WEIGHTS, weights)
    assert main(["finetune", f"resume={stopped}"]) == 2
    assert "from which this run began (init_sha256)" in capsys.readouterr().err
    weights.write_bytes(kept)
    assert main(["finetune", f"resume={stopped}"]) == 0
    name = f"adapter/{WEIGHTS}"
    assert (stopped / name).read_bytes() == (expected.run_dir / name).read_bytes()


@pytest.mark.slow
def test_every_fold_starts_from_the_adapter(make_pictures, recipe, trained):
    root = make_pictures()
    options = [f"data.root={root}", "folds=2", "train.steps=1", f"init={trained.run_dir}"]
    result = finetune(compose(str(recipe), options))
    assert result.summary["init"]["kept"] == ["lora in 4 blocks (0-3)", "the mask decoder"]
    earlier = set(read_record(trained.adapter_dir).trained_on)
    for fold in range(2):
        record = read_record(result.run_dir / f"fold_{fold}" / "adapter")
        assert earlier < set(record.trained_on)


@pytest.mark.slow
def test_privacy_hides_where_the_adapter_was(make_pictures, run, trained):
    result = run(make_pictures(), "privacy=true", "train.steps=1", f"init={trained.run_dir}")
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert str(trained.run_dir) not in page
    hidden = page.split("\ninit: ")[1].partition("\n")[0]
    assert "hidden: privacy=true" in hidden
