"""``peft.depth``: slices that attend to their neighbours, from training to prediction."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import samadapt
from samadapt.adapters.store import load_trainable_state, save_adapter, trainable_state
from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.data.types import SliceRef
from samadapt.errors import AdapterError, ConfigError, DataError
from samadapt.export.onnx import Onnx
from samadapt.export.target import export_adapter
from samadapt.inference import clicks_in_turn
from samadapt.runs.finetune import finetune
from samadapt.runs.results import adapter_record
from samadapt.sam.decode import class_frame
from samadapt.sam.embed import embed
from samadapt.sam.model import Sam
from samadapt.training import loop
from samadapt.training.batches import make_batch
from samadapt.training.keyed_random import BatchRandom

DEPTH = ["data.name=nifti", "peft=adapter", "peft.depth=3", "train.batch_size=6"]


@pytest.fixture
def configure(make_scans, recipe):
    """``configure("key=value", ...)``: a run on five volumes of four slices, the first empty."""
    root = make_scans()
    return lambda *options: compose(str(recipe), [f"data.root={root}", *DEPTH, *options])


@pytest.fixture
def moved_run(configure, opened_run, tmp_path):
    """``moved_run("key=value", ...)``: ready to train, with weights away from the start."""

    def make(*options):
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        run = opened_run(configure(*options), run_dir)
        sam, injection = run.context.sam, run.context.injection
        generator = torch.Generator().manual_seed(1)
        state = trainable_state(sam, injection)
        for value in state.values():
            value += 0.1 * torch.randn(value.shape, generator=generator)
        load_trainable_state(sam, injection, state)
        return run

    return make


@torch.no_grad()
def by_hand(context, ref):
    """A slice's embedding: its volume of four slices is cut into 0, 1, 2 and 3, 3, 3."""
    stack = [3, 3, 3] if ref.index == 3 else [0, 1, 2]
    images = [context.dataset.sample(SliceRef(ref.case, index)).image for index in stack]
    return embed(context.sam, images)[0][ref.index % 3]


def losses(run_dir):
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("blocks", ["all", "last:1"])
def test_a_slice_has_one_embedding_in_training_evaluation_and_prediction(
    moved_run, blocks, monkeypatch, tmp_path
):
    run = moved_run("prompts=box", "data.axis=axial", f"peft.blocks={blocks}")
    context, slices = run.context, run.slices()
    run.plan(slices)
    run.planner.warm()
    decoded = []
    decode = Sam.decode
    monkeypatch.setattr(
        Sam, "decode", lambda self, e, *a, **k: decoded.extend(e) or decode(self, e, *a, **k)
    )

    # training: stacks of three, with the loss where there is an object
    items = run.context.samples.items(slices.train)
    assert {(item.refs[0].index, item.trained) for item in items} == {(0, (1, 2)), (3, (0,))}
    rng = np.random.default_rng(0)
    samples, trained, versions = run.context.samples.take(items[:2], [rng, rng])
    keys = run.planner.keys_of(versions)
    side = 4 * context.sam.embedding_size
    frame = partial(class_frame, context.model)
    random = BatchRandom.of(rng, len(samples))
    batch = make_batch(samples, context.policy, frame, side, random, trained, keys)
    assert batch.names == ["scan_1[1]", "scan_1[2]", "scan_1[3]"]
    assert len(batch.keys or batch.images) == 6
    live = loop.TrainableTail(context.sam, context.injection.first_trainable_block)
    with torch.no_grad():
        stored = run.planner.features.stored
        features = stored(keys) if keys else run.planner.features.compute(batch.images)
        embeddings = live(features, batch.trained)
        assert live.decode(embeddings, batch.prompts, multimask=False).logits.shape[0] == 3
    refs = slices.train[:3]
    for ref, found in zip(refs, decoded, strict=True):
        close(found, by_hand(context, ref))
        alone = embed(context.sam, [context.dataset.sample(ref).image] * 3)[0][0]
        assert ref.index == 3 or (found - alone).abs().max() > 1e-2  # the neighbours matter

    # evaluation: whichever slices are asked for together
    predictor = run.scorer.predictor(context.policy)
    for chosen in ([1, 2, 3], [2], [3, 1]):
        asked = [SliceRef("scan_1", index) for index in chosen]
        with torch.no_grad():
            found = predictor.embed([context.dataset.sample(ref) for ref in asked])
        for ref, embedding in zip(asked, found, strict=True):
            close(embedding, by_hand(context, ref))

    # prediction: of one prompted slice, of several, and carried from one to the others
    record = adapter_record(run.config, context)
    save_adapter(tmp_path / "adapter", context.sam, context.injection, record)
    segmenter = samadapt.load_adapter(tmp_path / "adapter", device="cpu")
    scan = context.dataset.case("scan_1").image
    box = [[3.0, 3.0, 15.0, 15.0]]
    for prompts, options, expected in (
        ({2: box}, {}, [2]),
        ({1: box, 3: box}, {}, [1, 3]),
        ({1: box}, {"propagate": True, "vanish": 0.0}, [1, 2, 3, 0]),
    ):
        seen = []
        right = clicks_in_turn.object_logits

        def spy(sam, embeddings, *args, seen=seen, right=right, **kwargs):
            seen.extend(embeddings)
            return right(sam, embeddings, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(clicks_in_turn, "object_logits", spy)
            segmenter.segment(scan, boxes=prompts, labels="front", **options)
        assert 0 < len(seen) <= len(expected)
        for index, embedding in zip(expected, seen, strict=False):
            close(embedding, by_hand(context, SliceRef("scan_1", index)))


@pytest.mark.slow
def test_a_run_from_training_to_prediction(configure, monkeypatch, tmp_path, capsys):
    options = ["prompts=semantic", "train.lr=0.0005", "train.augment=[flip,noise]", "peft.depth=2"]
    config = configure(*options, "cache.variants=2", "data.axis=axial")
    result = finetune(config)
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "computed anew" not in log

    # a run that is stopped after its checkpoint and resumed ends with the same weights
    report = loop.report_step

    def stop(work, state, *rest):
        report(work, state, *rest)
        if state.step == 3:
            raise RuntimeError("the machine stops")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "report_step", stop)
        with pytest.raises(RuntimeError, match="the machine stops"):
            finetune(config)
    (stopped,) = set(result.run_dir.parent.iterdir()) - {result.run_dir}
    assert main(["finetune", f"resume={stopped}"]) == 0
    weights = [d / "adapter" / "adapter_model.safetensors" for d in (result.run_dir, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert losses(stopped)[-1] == losses(result.run_dir)[-1]

    # evaluated again, with fewer slices at once
    capsys.readouterr()
    arguments = [f"adapter={result.adapter_dir}", "eval.batch_size=1", "eval.overlays=0"]
    arguments += [f"output.dir={tmp_path / 'scores'}", "device=cpu", "precision=fp32"]
    assert main(["evaluate", *arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["summary"]
    for state in ("zero_shot", "adapted"):
        assert again[state]["per_class"] == result.summary[state]["per_class"]

    # and the labels of a prediction have the same scores
    data = Path(config.data.root)
    output = tmp_path / "labels.nii.gz"
    scan = data / "imagesTr" / "scan_0.nii.gz"
    arguments = [f"adapter={result.adapter_dir}", f"input={scan}", f"output={output}"]
    assert main(["predict", *arguments, "device=cpu"]) == 0
    found = np.asanyarray(nib.load(output).dataobj)
    truth = np.asanyarray(nib.load(data / "labelsTr" / scan.name).dataobj)
    for value, name in enumerate(("front", "back"), start=1):
        one, two = found == value, truth == value
        dice = 2 * (one & two).sum() / (one.sum() + two.sum())
        assert result.summary["adapted"]["per_class"][name]["dice"] == pytest.approx(dice, abs=1e-6)
        assert dice > 0


def test_what_has_no_neighbours_is_refused(configure, make_pictures, recipe, moved_run, tmp_path):
    pictures = [f"data.root={make_pictures()}", "peft=adapter", "peft.depth=2"]
    with pytest.raises(ConfigError, match=r"2 neighbouring slices.*p0\.png has only one"):
        finetune(compose(str(recipe), pictures))
    with pytest.raises(ConfigError, match=r"multiple of 3.*peft\.depth.*got 4; use 6"):
        finetune(configure("train.batch_size=4"))
    with pytest.raises(ConfigError, match=r"peft\.depth=3 needs .* kind vit; tiny_t has"):
        finetune(configure("model=tiny_t"))
    assert not list((tmp_path / "runs" / "small").iterdir())

    run = moved_run("prompts=semantic")
    context = run.context
    record = adapter_record(run.config, context)
    save_adapter(tmp_path / "adapter", context.sam, context.injection, record)
    segmenter = samadapt.load_adapter(tmp_path / "adapter", device="cpu")
    with pytest.raises(DataError, match=r"sees 3 neighbouring slices.*this is one image"):
        segmenter.segment(np.zeros((20, 28), np.uint8))
    with pytest.raises(AdapterError, match=r"stacks of slices.*nothing else"):
        export_adapter(tmp_path / "adapter", Onnx(), tmp_path / "exported")


def test_the_contact_sheet_shows_the_slices_of_a_run(configure, monkeypatch, tmp_path):
    from samadapt.runs.training_preview import draw_training_preview

    config = configure("prompts=box", "train.steps=1")
    drawn = []

    def spy(*args, **options):
        batch = make_batch(*args, **options)
        drawn.extend(batch.names)
        return batch

    monkeypatch.setattr("samadapt.runs.train_adapter.make_batch", spy)
    finetune(config)
    names = draw_training_preview(config, len(drawn), tmp_path / "sheet.png")
    assert [name.replace(" · slice ", "[") + "]" for name in names] == drawn
