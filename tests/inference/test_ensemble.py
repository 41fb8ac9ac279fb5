"""Several adapters and mirrored copies: the mean of their probabilities, and how sure it is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.data.intensity import make_intensity
from samadapt.errors import AdapterError, PromptError
from samadapt.inference.segmenter import Segmenter, load_adapter
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.decode import object_logits, semantic_logits
from samadapt.sam.embed import embed
from samadapt.sam.types import ImagePrompts

BOX = [5.0, 4.0, 25.0, 20.0]
OTHER = [18.0, 8.0, 38.0, 28.0]
CURVE = {"slope": 0.7, "intercept": -0.5, "objects": 30, "matched": 20}


def softmax_of(directory, image, background=False):
    """What one adapter says about a picture: (K + 1, h, w) float64, the background first."""
    sam = load_adapter(directory, device="cpu").sam
    with torch.no_grad():
        (logits,) = semantic_logits(sam, *embed(sam, [image]), 2)
    scores = np.concatenate([np.zeros((1, *logits.shape[-2:])), logits[0, 0].double().numpy()])
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)


def sigmoid_of(directory, image, boxes):
    """The probabilities (p, h, w) of prompted objects in float64."""
    sam = load_adapter(directory, device="cpu").sam
    prompts = ImagePrompts(np.ones(len(boxes), int), boxes=np.array(boxes, np.float32))
    with torch.no_grad():
        embeddings, frames = embed(sam, [image])
        ((logits, _),) = object_logits(sam, embeddings, frames, [prompts])
        planes = sam.postprocess(logits[None], frames[0])[0, :, 0]
    return 1 / (1 + np.exp(-planes.double().numpy()))


def entropy_of(probabilities):
    return -(probabilities * np.log(probabilities)).sum(0) / np.log(len(probabilities))


def disagree(labels, expected):
    assert labels.shape == expected.shape
    assert len(np.unique(expected)) > 1, "a constant prediction would prove nothing"
    return (labels != expected).mean()


@pytest.mark.parametrize(
    ("blocks", "widths"),
    [("last:1", [None] * 3), ("all", [None] * 3), ("last:1", [8] * 3), ("last:1", [8, None, 4])],
)
def test_members_are_averaged_as_numpy_averages_them(adapter, picture, blocks, widths):
    """Whatever their heads are, and whichever blocks they share."""
    members = [adapter(f"a{n}", n, blocks=blocks, width=width) for n, width in enumerate(widths)]
    shares = np.stack([softmax_of(one, picture) for one in members])
    mean = shares.mean(0)
    found = load_adapter(members, device="cpu").predict(
        picture, probabilities=True, uncertainty="mutual_information"
    )
    assert disagree(found.labels, mean.argmax(0)) < 2e-3
    assert any(disagree(one.argmax(0), mean.argmax(0)) > 0.02 for one in shares)
    assert np.abs(found.probabilities - mean[1:]).max() < 1 / 255
    assert np.allclose(found.uncertainty, entropy_of(mean), atol=1e-4)
    single = np.mean([entropy_of(one) for one in shares], axis=0)
    assert np.allclose(found.mutual_information, entropy_of(mean) - single, atol=1e-4)


@pytest.mark.parametrize("kind", ["semantic", "box"])
def test_an_adapter_and_its_copy_are_the_adapter(adapter, picture, tmp_path, kind):
    directory = adapter("a", kind=kind)
    twin = shutil.copytree(directory, tmp_path / "twin")
    boxes = {"boxes": [BOX, OTHER], "labels": ["grey", "white"]} if kind == "box" else {}
    alone = load_adapter(directory, device="cpu").predict(picture, probabilities=True, **boxes)
    found = load_adapter([directory, twin], device="cpu").predict(
        picture, probabilities=True, uncertainty="mutual_information", **boxes
    )
    assert len(np.unique(alone.labels)) > 1
    assert np.array_equal(found.labels, alone.labels)
    assert np.array_equal(found.probabilities, alone.probabilities)
    assert found.mutual_information.max() < 1e-6


def test_prompted_objects_are_averaged_too(adapter, picture):
    members = [adapter(f"a{seed}", seed, kind="box") for seed in range(2)]
    mean = np.mean([sigmoid_of(one, picture, [BOX, OTHER]) for one in members], axis=0)
    expected = np.where(mean.max(0) > 0.5, mean.argmax(0) + 1, 0)
    found = load_adapter(members, device="cpu").predict(
        picture,
        boxes=[BOX, OTHER],
        labels=["grey", "white"],
        probabilities=True,
        uncertainty=True,
    )
    assert disagree(found.labels, expected) < 2e-3
    assert np.abs(found.probabilities - mean).max() < 1 / 255
    bits = np.stack([entropy_of(np.stack([1 - one, one])) for one in mean]).max(0)
    assert np.allclose(found.uncertainty, bits, atol=1e-4)


def test_one_base_in_memory_and_its_frozen_blocks_run_once(adapter, picture, monkeypatch):
    members = [adapter(f"a{seed}", seed) for seed in range(3)]
    segmenter = load_adapter(members, device="cpu")
    first, *others = [member.sam for member in segmenter._members]
    frozen = "image_encoder.patch_embed."
    for name, value in first.named_parameters():
        if name.startswith(frozen):
            assert all(o.get_parameter(name).data_ptr() == value.data_ptr() for o in others)
    calls = []
    for member in segmenter._members:
        encoder = member.sam.image_encoder
        plain = encoder.prefix
        monkeypatch.setattr(
            encoder, "prefix", lambda *given, run=plain: calls.append(given[1]) or run(*given)
        )
    segmenter.segment(picture)
    assert len(calls) == 1
    assert calls[0] > 0
    segmenter.segment(picture, tta="flip")
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("kind", "microscopy"), [("semantic", False), ("semantic", True), ("box", False)]
)
def test_mirrored_copies_are_averaged_as_numpy_averages_them(adapter, picture, kind, microscopy):
    grey = picture[..., 0]
    given = grey if microscopy else picture
    intensity = make_intensity("microscopy" if microscopy else "rgb")
    directory = adapter("a", kind=kind, intensity=intensity.to_dict())
    seen = (
        np.repeat(intensity(grey[:, :, None].astype(np.float32)), 3, 2) if microscopy else picture
    )
    axes = [(), (1,), (0,), (0, 1)] if microscopy else [(), (1,)]
    shares = []
    for mirror in axes:
        flipped = np.ascontiguousarray(np.flip(seen, mirror))
        if kind == "box":
            x0, y0, x1, y1 = BOX
            box = [41 - x1, y0, 41 - x0, y1] if mirror else BOX
            one = sigmoid_of(directory, flipped, [box])
        else:
            one = softmax_of(directory, flipped)[1:]
        shares.append(np.flip(one, [axis + 1 for axis in mirror]))
    mean = np.mean(shares, axis=0)
    prompts = {"boxes": [BOX], "labels": "grey"} if kind == "box" else {}
    found = load_adapter(directory, device="cpu").predict(
        given, tta="flip", probabilities=True, **prompts
    )
    assert np.abs(found.probabilities[: len(mean)] - mean).max() < 1 / 255
    assert max(np.abs(one - mean).max() for one in shares) > 0.05


def test_a_symmetric_picture_gets_a_symmetric_mask(adapter, picture):
    half = picture[:, :20]
    symmetric = np.concatenate([half, half[:, ::-1]], axis=1)
    segmenter = load_adapter(adapter("a"), device="cpu")
    plain = segmenter.segment(symmetric)
    assert (plain != plain[:, ::-1]).any()
    found = segmenter.segment(symmetric, tta="flip")
    assert disagree(found, found[:, ::-1]) < 2e-3


@pytest.mark.parametrize("shape", [(45, 27), (27, 45), (45, 45)])
def test_a_model_that_mirrors_exactly_says_the_same(make_oracle, shape):
    """So every mirrored copy comes back to its place, whatever the padding is."""
    labels = np.zeros(shape, np.uint8)
    labels[3:14, 2:11], labels[20:25, 15:26] = 1, 3
    for kind, microscopy in (("semantic", False), ("semantic", True), ("box", False)):
        segmenter = make_oracle(kind)
        if microscopy:
            bare = {"kind": "all_percentile", "low": 0.0, "high": 100.0}
            record = replace(segmenter.record, intensity=bare)
            segmenter = Segmenter(segmenter.sam, record)
        prompts = {"boxes": [[2, 3, 11, 14], [15, 20, 26, 25]], "labels": ["a", "c"]}
        found = segmenter.segment(labels * 85, tta="flip", **(prompts if kind == "box" else {}))
        assert np.array_equal(found, labels), (kind, microscopy)
        assert len(segmenter.sam.seen) == (4 if microscopy else 2)


def test_tiles_are_mirrored_one_by_one(make_oracle):
    labels = np.zeros((80, 100), np.uint8)
    labels[5:40, 30:70], labels[60:75, 3:20] = 2, 1
    plain = make_oracle()
    record = replace(plain.record, data_options={"tile": 45, "tile_overlap": 0.25})
    found = Segmenter(plain.sam, record).segment(labels * 85, tta="flip")
    assert np.array_equal(found, labels)


def test_objects_are_carried_in_every_pass(make_oracle, tmp_path):
    labels = np.zeros((45, 27, 6), np.uint8)
    for z in range(5):
        labels[4 + z : 15 + z, 3:12, z] = 1
    plain = make_oracle("box", axis="axial")
    # file axes: x to the left of the patient, y to the back; slices are shown upright
    values = (labels * 85)[::-1, ::-1].transpose(1, 0, 2)
    path = tmp_path / "tube.nii"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(values), np.eye(4)), path)
    given = {"boxes": {2: [[3, 6, 12, 17]]}, "labels": "a", "propagate": True}
    expected = plain.segment(path, **given)
    assert expected.any(axis=(0, 1)).sum() == 5
    counted = []
    found = plain.segment(
        path, tta="flip", progress=lambda done, total: counted.append((done, total)), **given
    )
    assert np.array_equal(found, expected)
    assert counted[-1][0] == counted[-1][1] == len(counted)
    half = plain.predict(path, tta="flip", uncertainty=True, **given)
    assert np.array_equal(half.labels, expected)
    assert half.uncertainty.shape == expected.shape
    assert half.uncertainty[expected > 0].min() > 0.5  # the oracle's logits are 1 and -1


def test_classes_that_name_a_side_are_not_mirrored(adapter, picture):
    sides = ["kidney_l", "kidney_r"]
    with pytest.raises(PromptError, match=r"tta=flip: .*kidney_l, kidney_r name a side"):
        load_adapter(adapter("a", classes=sides), device="cpu").segment(picture, tta="flip")
    prompted = load_adapter(adapter("b", kind="box", classes=sides), device="cpu")
    found = prompted.segment(picture, boxes=BOX, labels="kidney_l", tta="flip")
    assert found.shape == (30, 41)


def test_wrong_values_and_a_single_pass_that_disagrees_with_nobody(adapter, picture):
    segmenter = load_adapter(adapter("a"), device="cpu")
    with pytest.raises(PromptError, match="tta must be flip, or left out; got 'turn'"):
        segmenter.segment(picture, tta="turn")
    with pytest.raises(PromptError, match="uncertainty must be true, false or mutual_information"):
        segmenter.predict(picture, uncertainty="variance")
    with pytest.raises(PromptError, match="name several adapters, add tta=flip"):
        segmenter.predict(picture, uncertainty="mutual_information")


def test_members_that_differ_are_refused_naming_what_differs(adapter):
    first = adapter("a")
    second = adapter("b", 2, classes=["grey", "black"], threshold=0.5)
    with pytest.raises(AdapterError, match="must agree") as refused:
        load_adapter([first, second], device="cpu")
    text = str(refused.value)
    assert "differ in 2 entries" in text
    assert "classes: ['grey', 'white'] and ['grey', 'black']" in text
    assert "threshold: 0.0 and 0.5" in text
    assert str(first) in text
    assert str(second) in text
    third = adapter("c", 3, intensity=make_intensity("mri").to_dict())
    with pytest.raises(AdapterError, match=r"1 entry:\n  - intensity"):
        load_adapter([first, third], device="cpu")
    noisier = adapter("d", 4, prompt=PromptPolicy("semantic", jitter=0.3).to_dict())
    assert load_adapter([first, noisier], device="cpu").classes == ["grey", "white"]


def test_what_is_no_ensemble_is_refused(adapter, tmp_path):
    directory = adapter("a")
    with pytest.raises(AdapterError, match="is named twice; each adapter has one vote"):
        load_adapter([directory, directory], device="cpu")
    with pytest.raises(AdapterError, match="name at least one adapter"):
        load_adapter([], device="cpu")


def test_the_folds_of_a_cross_validation_are_members(adapter, tmp_path, picture):
    parent = tmp_path / "cross"
    for fold in (0, 1, 10):
        shutil.move(adapter(f"a{fold}", fold), parent / f"fold_{fold}" / "adapter")
    segmenter = load_adapter(parent, device="cpu")
    assert len(segmenter._members) == 3
    named = [parent / f"fold_{fold}" / "adapter" for fold in (0, 1, 10)]
    expected = load_adapter(named, device="cpu").segment(picture)
    assert np.array_equal(segmenter.segment(picture), expected)
    segmenter.add(named[0], "alone")
    segmenter.use("alone")
    alone = segmenter.segment(picture)
    assert (alone != expected).any()
    segmenter.use("default")
    assert np.array_equal(segmenter.segment(picture), expected)
    (parent / "fold_2").mkdir()
    with pytest.raises(AdapterError, match=r"fold_2 of this cross-validation has no adapter yet"):
        load_adapter(parent, device="cpu")


def test_objects_are_listed_with_their_confidence(make_oracle, tmp_path):
    labels = np.zeros((45, 27), np.uint8)
    labels[3:14, 2:11], labels[20:25, 15:26], labels[40, 20] = 1, 3, 1
    plain = make_oracle()
    segmenter = Segmenter(plain.sam, replace(plain.record, confidence=CURVE))
    found = segmenter.predict(labels * 85, objects=True)
    assert [(one.class_name, one.box, one.area) for one in found.objects] == [
        ("a", (2, 3, 11, 14), 99),
        ("a", (20, 40, 21, 41), 1),
        ("c", (15, 20, 26, 25), 55),
    ]
    # the logit of every class of the oracle is 1 inside and -1 outside
    share = np.exp(1) / (np.exp(1) + 1 + 2 * np.exp(-1))
    expected = 1 / (1 + np.exp(-(0.7 * np.log(share / (1 - share)) - 0.5)))
    for one in found.objects:
        assert one.probability == pytest.approx(share, abs=2e-3)
        assert one.confidence == pytest.approx(expected, abs=2e-3)
        assert one.slices is None
    assert found.no_confidence == ""
    bare = plain.predict(labels * 85, objects=True)
    assert [one.confidence for one in bare.objects] == [None] * 3
    assert "trained without it" in bare.no_confidence
    kept = segmenter.predict(labels * 85, objects=True, keep_largest=True)
    assert [one.area for one in kept.objects] == [99, 55]


def test_objects_of_a_volume_are_three_dimensional(make_oracle, tmp_path):
    labels = np.zeros((15, 9, 4), np.uint8)
    labels[2:6, 1:4, 1:], labels[9:11, 5:8, 0] = 2, 2
    values = (labels * 85)[::-1, ::-1].transpose(1, 0, 2)
    path = tmp_path / "v.nii"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(values), np.eye(4)), path)
    found = make_oracle(axis="axial").predict(path, objects=True)
    listed = {(one.box, one.slices, one.area) for one in found.objects}
    assert listed == {((1, 2, 4, 6), (1, 3), 36), ((5, 9, 8, 11), (0, 0), 6)}


def test_prompted_objects_are_listed_by_their_numbers(make_oracle):
    labels = np.zeros((45, 27), np.uint8)
    labels[3:14, 2:11], labels[20:25, 15:26] = 1, 3
    plain = make_oracle("box")
    segmenter = Segmenter(plain.sam, replace(plain.record, confidence={"reason": "too few"}))
    boxes = [[15, 20, 26, 25], [2, 3, 11, 14]]
    found = segmenter.predict(labels * 85, boxes=boxes, labels=["c", "a"], objects=True)
    assert [(one.class_name, one.area) for one in found.objects] == [("c", 55), ("a", 99)]
    assert found.no_confidence == "too few"


def test_regions_are_listed_each_in_its_own_map(make_regions):
    labels = np.zeros((45, 27), np.uint8)
    labels[3:14, 2:11], labels[5:9, 4:8] = 2, 1
    found = make_regions().predict(labels * 85, objects=True, uncertainty=True, tta="flip")
    assert [(one.class_name, one.area) for one in found.objects] == [
        ("whole tumour", 99),
        ("core", 16),
    ]
    assert found.labels.shape == (2, 45, 27)
    assert found.uncertainty.shape == (45, 27)


def test_maps_are_written_beside_the_labels(make_oracle, tmp_path):
    labels = np.zeros((45, 27), np.uint8)
    labels[3:14, 2:11] = 1
    Image.fromarray(labels * 85).save(tmp_path / "in.png")
    plain = make_oracle()
    segmenter = Segmenter(plain.sam, replace(plain.record, confidence=CURVE))
    options = {"tta": "flip", "uncertainty": "mutual_information", "objects": True}
    row = segmenter.predict_file(tmp_path / "in.png", tmp_path / "out.png", **options)
    assert row["uncertainty"] == tmp_path / "out_uncertainty.png"
    assert row["mutual_information"] == tmp_path / "out_mutual_information.png"
    shown = np.asarray(Image.open(row["uncertainty"]))
    expected = segmenter.predict(labels * 85, **options).uncertainty
    assert shown.dtype == np.uint8
    assert np.array_equal(shown, np.rint(expected * 255))
    assert 0 < expected.min() <= expected.max() <= 1
    assert row["objects"][0]["class"] == "a"
    assert row["objects"][0]["box"] == [2, 3, 11, 14]
    assert 0 < row["objects"][0]["confidence"] < 1
    assert "no_confidence" not in row
    json.dumps(row["objects"])
    pytest.importorskip("pycocotools")
    segmenter.predict_file(tmp_path / "in.png", tmp_path / "out.json", **options)
    (annotation,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["annotations"]
    assert annotation["score"] == pytest.approx(row["objects"][0]["confidence"], abs=1e-6)
    segmenter.predict_file(tmp_path / "in.png", tmp_path / "plain.json")
    (annotation,) = json.loads((tmp_path / "plain.json").read_text(encoding="utf-8"))["annotations"]
    assert "score" not in annotation


def test_the_maps_of_a_volume_are_on_its_grid(adapter, tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [0, 0, 3.0, -7], [1.5, 0, 0, 11], [0, 0, 0, 1]])
    values = np.random.default_rng(1).normal(100, 30, (12, 5, 14)).astype(np.float32)
    path, target = tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz"
    nib.save(nib.Nifti1Image(values, affine), path)
    changes = {"intensity": make_intensity("mri").to_dict(), "axis": "coronal"}
    segmenter = load_adapter([adapter(f"a{n}", n, **changes) for n in range(2)], device="cpu")
    row = segmenter.predict_file(path, target, uncertainty="mutual_information", objects=True)
    found = segmenter.predict(path, uncertainty="mutual_information")
    for name in ("uncertainty", "mutual_information"):
        written = nib.load(row[name])
        assert np.allclose(written.affine, affine)
        assert written.get_data_dtype() == np.float32
        assert np.array_equal(np.asarray(written.dataobj), getattr(found, name))
    assert row["uncertainty"].name == "out_uncertainty.nii.gz"
    assert (found.mutual_information <= found.uncertainty + 1e-6).all()
    assert np.array_equal(np.asarray(nib.load(target).dataobj), found.labels)
