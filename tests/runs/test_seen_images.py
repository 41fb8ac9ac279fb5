"""The images that the model sees at prediction are those of training, byte for byte."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.config.compose import compose
from samadapt.data.dataset import open_dataset
from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError, DataError
from samadapt.inference.segmenter import load_adapter
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.results import adapter_record
from samadapt.sam.weights.loading import base_hash

AFFINE = np.array([[0, -1.0, 0, 5], [0, 0, 1.0, -7], [2.5, 0, 0, 11], [0, 0, 0, 1]])
RULES = ["mri", "ct:lung", "ct:-100,300", "percentile:2,90", "microscopy"]
CASES = [(rule, 0) for rule in [*RULES, "ct:soft_tissue+lung+bone"]]
CASES += [(rule, distance) for rule in ("mri", "ct:soft_tissue") for distance in (1, 2)]


@pytest.fixture
def scans(tmp_path):
    """Three volumes whose axes are turned, sliced along the first of the file."""
    root = tmp_path / "scans"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for index in range(3):
        rng = np.random.default_rng(index)
        image = rng.uniform(-1200, 1500, (6, 16, 20)).astype(np.float32)
        image[:, :4] = 0
        labels = np.zeros(image.shape, np.uint8)
        labels[:, 5:12, 4:15] = 1
        nib.save(nib.Nifti1Image(image, AFFINE), root / "images" / f"s{index}.nii.gz")
        nib.save(nib.Nifti1Image(labels, AFFINE), root / "labels" / f"s{index}.nii.gz")
    return root


@pytest.fixture
def pictures(tmp_path):
    """Grey pictures of 16 bits and colour ones of 8."""
    root = tmp_path / "pictures"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(4):
        rng = np.random.default_rng(index)
        grey = rng.gamma(2, 900, (20, 24)).astype(np.uint16)
        colour = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        mask = np.zeros((20, 24), np.uint8)
        mask[5:12, 6:15] = 1
        Image.fromarray(grey if index % 2 else colour).save(root / "images" / f"p{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
    return root


@pytest.fixture
def record(tiny_sam):
    """``record(dataset)``: what an adapter trained on it remembers."""

    def make(dataset):
        return AdapterRecord(
            base="tiny",
            base_sha256=base_hash(tiny_sam),
            image_size=tiny_sam.image_size,
            preprocessing=asdict(tiny_sam.preprocessing),
            intensity=dataset.intensity.to_dict(),
            classes=dataset.classes,
            prompt=PromptPolicy("semantic").to_dict(),
            axis=dataset.axis,
            data=dataset.name,
        )

    return make


@pytest.fixture
def adapter(tiny_sam, tmp_path, record, monkeypatch):
    """``adapter(dataset)``: a directory as a run on it would write."""
    monkeypatch.chdir(tmp_path)  # the record holds the bare name of the base's file

    def save(dataset):
        from safetensors.torch import save_file

        base = tmp_path / "base.safetensors"
        save_file(tiny_sam.state_dict(), base)
        remembered = replace(record(dataset), checkpoint=str(base))
        injection = inject(tiny_sam, METHODS["lora"](rank=2))
        directory = tmp_path / "adapter"
        save_adapter(directory, tiny_sam, injection, remembered)
        return directory

    return save


@pytest.fixture
def seen(monkeypatch):
    """Record all images that the segmenter embeds, in order."""
    images = []
    from samadapt.inference import embedding_cache, passes
    from samadapt.sam.embed import embed

    def listen(sam, batch):
        images.extend(image.copy() for image in batch)
        return embed(sam, batch)

    for module in (embedding_cache, passes):
        monkeypatch.setattr(module, "embed", listen)
    return images


def assert_same(dataset, name, images):
    trained = [sample.image for sample in dataset.samples(name)]
    assert len(images) == len(trained)
    for here, there in zip(images, trained, strict=True):
        assert here.dtype == there.dtype == np.uint8
        assert np.array_equal(here, there)


@pytest.mark.parametrize(("rule", "distance"), CASES)
def test_volumes(scans, adapter, seen, tmp_path, rule, distance):
    dataset = open_dataset("nifti", scans, intensity=rule, neighbours=distance)
    directory = adapter(dataset)
    segmenter = load_adapter(directory, device="cpu")
    for name in ("s0", "s2"):
        seen.clear()
        segmenter.segment(scans / "images" / f"{name}.nii.gz")
        assert_same(dataset, name, seen)
        seen.clear()
        segmenter.predict_file(scans / "images" / f"{name}.nii.gz", tmp_path / "out.nii.gz")
        assert_same(dataset, name, seen)
    assert len({image.tobytes() for image in seen}) == len(seen) == 6


@pytest.mark.parametrize("rule", ["rgb", "mri", "microscopy", "percentile:1,99"])
def test_pictures_as_files_and_arrays(pictures, adapter, seen, rule):
    dataset = open_dataset("folder", pictures, intensity=rule)
    segmenter = load_adapter(adapter(dataset), device="cpu")
    for name in ("p0", "p1"):
        path = pictures / "images" / f"{name}.png"
        for image in (path, np.asarray(Image.open(path))):
            seen.clear()
            segmenter.segment(image)
            assert_same(dataset, name, seen)


def test_prepared_volumes_on_disk_are_the_same(scans, tmp_path):
    for rule, distance in (("ct:soft_tissue+lung+bone", 0), ("mri", 1)):
        plain = open_dataset("nifti", scans, intensity=rule, neighbours=distance)
        for _ in range(2):
            stored = open_dataset(
                "nifti", scans, intensity=rule, neighbours=distance, cache_dir=tmp_path / "c"
            )
            assert_same(plain, "s1", [sample.image for sample in stored.samples("s1")])


def test_the_features_of_a_slice_depend_on_the_rule(scans, opened_run, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"model: {{name: tiny}}\ndata: {{name: nifti, root: {scans}}}\n"
        f"output: {{dir: {tmp_path}}}\ndevice: cpu\nprecision: fp32\n",
        encoding="utf-8",
    )
    keys = set()
    for rule, distance in CASES:
        overrides = [f"data.intensity={rule}", f"data.neighbours={distance}"]
        run = opened_run(compose(str(recipe), overrides), tmp_path)
        dataset = run.context.dataset
        keys.add(run.planner.features.key(dataset.sample(SliceRef("s0", 2)).image))
        assert adapter_record(run.config, run.context).intensity == dataset.intensity.to_dict()
    assert len(keys) == len(CASES)


def test_evaluation_obeys_the_record_also_on_other_data(scans, adapter):
    from samadapt.adapters.store import read_record
    from samadapt.config.compose import parse_settings
    from samadapt.config.evaluate_arguments import EvaluateArguments
    from samadapt.runs.recorded_configuration import evaluation_config, recorded_keys

    dataset = open_dataset("nifti", scans, intensity="ct:lung", neighbours=1)
    directory = adapter(dataset)
    for others in ([], ["data=msd_spleen"]):
        record = read_record(directory)
        keys = recorded_keys(directory, record)
        arguments = parse_settings(EvaluateArguments, [f"adapter={directory}", *others], keys)
        config = evaluation_config(arguments, record)
        rule = open_dataset("nifti", scans, intensity=config.data.intensity).intensity
        assert rule == dataset.intensity


def test_what_cannot_be_as_in_training_is_refused(scans, pictures, adapter):
    with pytest.raises(ConfigError, match="only one slice"):
        open_dataset("folder", pictures, neighbours=1)
    windows = open_dataset("folder", pictures, intensity="ct:soft_tissue+lung+bone")
    with pytest.raises(DataError, match=r"p0\.png: three intensity rules"):
        windows.sample(SliceRef("p0", 0))
    dataset = open_dataset("nifti", scans, intensity="mri", neighbours=1)
    segmenter = load_adapter(adapter(dataset), device="cpu")
    with pytest.raises(DataError, match="give a volume"):
        segmenter.segment(np.ones((8, 9), np.float32))


def test_no_training_slice_is_shown_with_a_held_out_one(scans):
    (scans / "images" / "s1.nii.gz").unlink()
    (scans / "labels" / "s1.nii.gz").unlink()
    only = {"image": "images/s0.nii.gz", "label": "labels/s0.nii.gz"}
    for distance in (0, 2):
        dataset = open_dataset("nifti", scans, intensity="mri", neighbours=distance, **only)
        held_out = {ref.index for ref in dataset.slices("val")}
        shown = {
            ref.index + step for ref in dataset.slices("train") for step in (-distance, distance)
        }
        assert not held_out & shown
        assert dataset.slices("train")


def test_the_record_is_plain_json(scans, adapter):
    dataset = open_dataset("nifti", scans, intensity="ct:soft_tissue+lung+bone")
    stored = json.loads((adapter(dataset) / "samadapt.json").read_text(encoding="utf-8"))[
        "intensity"
    ]
    assert [part["low"] for part in stored["channels"]] == [-160.0, -1350.0, -500.0]
