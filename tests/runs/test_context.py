"""What every run has: policies, slices, features and the adapter's record."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samadapt.config.compose import compose
from samadapt.config.prompt_settings import PromptSettings
from samadapt.config.schema import Config, Data
from samadapt.data.formats.folder import FolderReader
from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError, DataError
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.context import open_data, prompt_policy, versions_of
from samadapt.runs.environment import seed_all
from samadapt.runs.results import adapter_record
from samadapt.runs.run_slices import RunSlices, plan_progress
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.training.augment import flip


@pytest.fixture
def pictures(tmp_path):
    """Six pictures; the last has an object of one pixel, the one before it none."""
    root = tmp_path / "pictures"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(6):
        rng = np.random.default_rng(index)
        mask = np.zeros((12, 18), np.uint8)
        if index < 4:
            mask[3:9, 4:12] = 1
        if index == 5:
            mask[2, 2] = 1
        image = rng.integers(0, 255, (12, 18, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"p{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
    return root


@pytest.fixture
def small_run(pictures, opened_run, tmp_path):
    """``small_run("key=value", ...)``: a run on the pictures, opened."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"model: {{name: tiny}}\ndata: {{name: folder, root: {pictures}}}\n"
        f"output: {{dir: {tmp_path}}}\ndevice: cpu\nprecision: fp32\n",
        encoding="utf-8",
    )

    def start(*overrides):
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        return opened_run(compose(str(recipe), list(overrides)), run_dir)

    return start


def test_the_base_is_hashed_before_anything_is_injected(small_run):
    run = small_run("prompts=semantic", "data.classes={a: 1, b: 2, c: 3, d: 4, e: 5}")
    assert run.context.base_sha256 == base_hash(load_sam("tiny"))
    assert run.context.sam.class_tokens.count == 5
    record = adapter_record(run.config, run.context)
    assert (record.num_masks, record.class_tokens) == (3, 5)
    assert record.classes == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("kind", ["box", "point", "semantic"])
def test_zero_shot_gets_what_the_base_can_use(small_run, kind):
    run = small_run(f"prompts={kind}", "prompts.min_area=3")
    assert run.context.policy.min_area == 3
    if kind == "semantic":
        assert run.context.zero_shot_policy == PromptPolicy("box", objects="class")
    else:
        assert run.context.zero_shot_policy == run.context.policy


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("prompts=box",), "prompts=box finds no classes"),
        (("prompts=semantic", "head=unet"), "head=unet predicts the classes"),
        (("prompts=semantic", "baseline=unet"), "baseline=unet has no tokens"),
        (("prompts=semantic", "data.regions={a: [1]}"), "decides about each class by itself"),
    ],
)
def test_a_background_token_needs_classes_that_compete(pictures, keys, message):
    config = compose("photos", [f"data.root={pictures}", *keys])
    assert not prompt_policy(config).background_token
    config = compose("photos", [f"data.root={pictures}", *keys, "prompts.background_token=true"])
    with pytest.raises(ConfigError, match=message):
        prompt_policy(config)


@pytest.mark.parametrize(
    ("keys", "variant", "clicks"),
    [
        ((), "sam", 8),
        (("model.name=sam2.0_t",), "sam2", 7),
        (("model.name=sam2_t", "prompts.clicks=3"), "sam2", 3),
        (("model.name=sam2_t", "prompts.variant=sam"), "sam", 8),
        (("prompts.variant=sam2",), "sam2", 7),
    ],
)
def test_each_model_is_trained_on_as_it_was_pretrained(pictures, keys, variant, clicks):
    config = compose("photos", [f"data.root={pictures}", "prompts=interactive", *keys])
    policy = prompt_policy(config)
    assert (policy.variant, policy.corrections) == (variant, clicks)


@pytest.mark.parametrize("keeps", [False, True])
def test_the_background_has_the_token_that_was_asked_for(small_run, keeps):
    asked = ("prompts=semantic", "prompts.background_token=true")
    run = small_run(*asked, f"prompts.keep_promptable={keeps}".lower())
    assert run.context.policy.background_token
    tokens = run.context.sam.class_tokens
    assert (tokens is not None and tokens.background is not None) is keeps
    assert adapter_record(run.config, run.context).prompt["background_token"] is True


def test_slices_without_an_object_to_prompt_do_not_train(small_run):
    run = small_run("prompts.min_area=4")
    slices = run.slices()
    names = {ref.case for ref in (*slices.train, *slices.validation)}
    assert names == {"p1", "p2", "p3"}
    assert [ref.case for ref in slices.test] == ["p0", "p5"]
    log = (run.context.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "training slices left out: 1 (empty)" in log
    semantic = small_run("prompts=semantic").slices()
    assert len(semantic.train) + len(semantic.validation) == 4


def prompted_by(prompts, root, **options):
    data = Data("folder", root=str(root), **options)
    return Config(data=data, prompts=PromptSettings(prompts))


def test_empty_slices_follow_the_prompts(pictures):
    assert open_data(prompted_by("semantic", pictures)).empty_slices == "keep"
    assert open_data(prompted_by("box", pictures)).empty_slices == "drop"
    for empty in ("keep", 0.5):
        with pytest.raises(ConfigError, match=rf"data\.empty_slices={empty}: box and point"):
            open_data(prompted_by("box", pictures, empty_slices=empty))
        kept = prompted_by("semantic", pictures, empty_slices=empty)
        assert open_data(kept).empty_slices == empty
    (pictures / "masks" / "p1.png").unlink()
    with pytest.raises(DataError, match=r"images/p1\.png"):
        open_data(prompted_by("box", pictures))


def test_what_is_recorded_is_what_was_used(small_run):
    run = small_run("prompts=point", "prompts.min_area=2", "data.merge_classes=true")
    record = adapter_record(run.config, run.context)
    assert record.base == "tiny"
    assert record.prompt == run.context.policy.to_dict()
    assert record.intensity == run.context.dataset.intensity.to_dict()
    assert record.data == "folder"
    assert record.data_options["merge_classes"] is True
    assert "root" not in record.data_options
    assert record.image_size == 64


def test_the_seed_decides_everything_random(small_run):
    first, second, other = (small_run(f"seed={seed}") for seed in (3, 3, 4))

    def drawn(run):
        return {n: p.detach().clone() for n, p in run.context.injection.parameters.items()}

    one, two, three = drawn(first), drawn(second), drawn(other)
    assert all((one[name] == two[name]).all() for name in one)
    assert any((one[name] != three[name]).any() for name in one)
    seed_all(5)
    value = np.random.rand()  # noqa: NPY002
    seed_all(5)
    assert np.random.rand() == value  # noqa: NPY002


def test_the_clock_knows_the_whole_run(small_run):
    run = small_run("train.steps=20", "train.validate_every=8")
    slices = run.slices()
    run.plan(slices)
    plan_progress(run.planner, slices, steps=20, validate_every=8)
    left = {"train": 20, "validation": 3, "adapted": 2, "zero-shot": 2}
    clock = run.context.progress.clock
    assert clock.left == {"features": 4, **left}  # the fifth told their size
    assert run.planner.features.computed == 1
    again = small_run()
    only_scored = RunSlices(train=[], validation=[], test=slices.test)
    again.plan(only_scored)
    plan_progress(again.planner, only_scored, steps=0, validate_every=0)
    left |= {"train": 0, "validation": 0}
    assert {**again.context.progress.clock.left, "features": None} == {"features": None, **left}


def trained_on(run, draws=12):
    """Return the images and labels that ``finetune`` would train on."""
    rng = np.random.default_rng([0, 0])
    items = run.context.samples.items(run.slices().train)
    return run.context.samples.take([items[i % len(items)] for i in range(draws)], [rng] * draws)


@pytest.mark.slow
def test_features_belong_to_the_version_whose_targets_train(small_run):
    """With every change: the key of a drawn version is the hash of the very picture it shows."""
    changes = "train.augment=[flip,rotate,scale,crop,intensity,noise,bias_field]"
    run = small_run(changes, "cache.variants=6", "prompts=semantic")
    run.plan(run.slices())
    samples, _, versions = trained_on(run, draws=24)
    keys = run.planner.keys_of(versions)
    assert keys == [run.planner.features.key(sample.image) for sample in samples]
    for sample, (ref, number) in zip(samples, versions, strict=True):
        again = run.context.samples.variant([run.context.dataset.sample(ref)], number)[0]
        assert np.array_equal(sample.labels, again.labels)
    scored = run.slices().validation
    images = [run.context.dataset.sample(ref).image for ref in scored]
    plain = run.planner.keys_of([(ref, 0) for ref in scored])
    assert plain == list(map(run.planner.features.key, images))


def test_every_variant_that_is_drawn_has_its_features(small_run):
    run = small_run("train.augment=[flip]", "cache.variants=3")
    run.plan(run.slices())
    run.planner.warm()
    computed = run.planner.features.computed
    samples, _, versions = trained_on(run)
    keys = run.planner.keys_of(versions)
    assert keys == [run.planner.features.key(sample.image) for sample in samples]
    run.planner.features.stored(keys)
    for sample in samples:
        original = run.context.dataset.sample(SliceRef(sample.case, sample.index))
        same = np.array_equal(sample.image, original.image)
        expected = original if same else flip(original)
        assert np.array_equal(sample.image, expected.image)
        assert np.array_equal(sample.labels, expected.labels)
    assert run.planner.features.computed == computed
    again, _, _ = trained_on(small_run("train.augment=[flip]", "cache.variants=3"))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(samples, again, strict=True))
    turned = {not np.array_equal(a.labels, flip(a).labels[:, ::-1]) for a in samples}
    assert turned == {False}


def test_augmented_anew_only_what_is_scored_is_kept(small_run):
    run = small_run("train.augment=[flip]")
    slices = run.slices()
    run.plan(slices)
    run.planner.warm()
    scored = len(slices.validation) + len(slices.test)
    assert run.planner.features.computed == scored
    _, _, versions = trained_on(run)
    assert run.planner.keys_of(versions) == versions == []
    log = (run.context.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "computed anew in every step (augmentation); cache.variants=4 would keep" in log


@pytest.fixture
def held_out(tmp_path):
    """``held_out(text)``: a file that lists held-out cases."""

    def write(text):
        path = tmp_path / "held_out.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_list_of_held_out_cases_divides_the_data(pictures, held_out):
    path = held_out("# scored since 2019\np1\n\n p4 \n")
    options = {"held_out": str(path), "empty_slices": "keep"}
    dataset = open_data(prompted_by("semantic", pictures, **options))
    assert dataset.val == ["p1", "p4"]
    assert dataset.train == ["p0", "p2", "p3", "p5"]
    few = prompted_by("semantic", pictures, train_cases=2, **options)
    assert open_data(few).val == ["p1", "p4"]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("p1\np77\n", {}, "1 names are not usable cases: p77"),
        ("# nothing\n", {}, "held_out.txt: lists no case"),
        ("p1", {"fold": 1}, "data.fold=1 chooses others: leave one of the two out"),
    ],
)
def test_a_wrong_list_is_one_message(pictures, held_out, text, more, message):
    with pytest.raises(ConfigError, match=message):
        open_data(prompted_by("box", pictures, held_out=str(held_out(text)), **more))


def test_a_list_that_is_not_there_is_named(pictures, tmp_path):
    config = prompted_by("box", pictures, held_out=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match=r"data\.held_out=.*none\.txt: expected a text file"):
        open_data(config)


@pytest.mark.parametrize(
    ("asked", "slices", "longest", "versions"),
    [
        ("auto", 5, 600, 16),  # at most 16 of each
        ("auto", 50, 600, 5),  # 250 at 168 px
        ("auto", 50, 80, 16),
        ("auto", 100, 80, 10),  # 1000 at 84 px, where a version costs a quarter
        ("auto", 9000, 80, 1),
        (3, 9000, 80, 3),
    ],
)
def test_versions_of_a_slice_follow_what_they_cost(asked, slices, longest, versions):
    dataset = SimpleNamespace(slices=lambda split: range(slices), longest_side=lambda: longest)
    frozen = METHODS["none"]()
    assert versions_of(asked, ["rotate"], dataset, frozen, "lite_medsam", "fit") == versions
    assert versions_of("auto", [], dataset, frozen, "lite_medsam", "fit") == 0


@pytest.mark.parametrize(
    ("blocks", "versions"),
    [("none", 16), ("last:2", 16), ("last:5", 16), ("last:6", 0), ("all", 0), ("[9]", 16)],
)
def test_where_most_of_the_encoder_is_adapted_no_version_is_kept(blocks, versions):
    dataset = SimpleNamespace(slices=lambda split: range(5), longest_side=lambda: 600)
    method = METHODS["lora"](blocks=blocks)
    assert versions_of("auto", ["rotate"], dataset, method, "lite_medsam", "fit") == versions
    assert versions_of(4, ["rotate"], dataset, method, "lite_medsam", "fit") == 4  # as asked


def test_files_are_indexed_except_for_resumed_and_private_runs(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    for path in pictures.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    read = []
    examine = FolderReader.examine
    monkeypatch.setattr(
        FolderReader, "examine", lambda self, case: read.append(case) or examine(self, case)
    )

    def cases_read(*overrides):
        read.clear()
        open_data(compose("photos", [f"data.root={pictures}", *overrides]))
        return len(read)

    assert cases_read("privacy=true") == 6
    assert not (tmp_path / "cache").exists()
    assert cases_read() == 6
    assert cases_read() == 0
    assert cases_read("privacy=true") == 6
    (index,) = (tmp_path / "cache" / "index").glob("*.json")
    index.write_bytes(b"damaged")
    capsys.readouterr()
    assert cases_read() == 6
    assert "note: " in (said := capsys.readouterr().err)
    assert "is damaged" in said
    assert cases_read() == 0
    run = replace(compose("photos", [f"data.root={pictures}"]), resume="somewhere")
    read.clear()
    open_data(run)
    assert len(read) == 6
