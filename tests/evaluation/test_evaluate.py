"""Whole volumes are scored, from slices predicted in batches."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from samadapt.data.types import Sample, SliceRef
from samadapt.evaluation import evaluate as module
from samadapt.evaluation.evaluate import Predictor, evaluate
from samadapt.evaluation.metrics import score_case
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.geometry import make_frame, resize_image

SHAPE = (24, 40)


def make_samples(cases=(("a", 3), ("b", 2))):
    samples = {}
    for number, (case, depth) in enumerate(cases):
        rng = np.random.default_rng(number)
        for index in range(depth):
            labels = np.zeros(SHAPE, np.int16)
            if index:  # the first slice is empty
                labels[2 + index : 14, 3 : 12 + number] = 1
                labels[5:20, 25:36] = 2
            image = rng.integers(0, 50, (*SHAPE, 3), dtype=np.uint8)
            image[labels > 0] += 120
            samples[SliceRef(case, index)] = Sample(case, index, image, labels)
    return samples


@pytest.fixture
def predictor(any_sam):
    def make(kind, boundary=-1, **changes):
        def frame_of(image):
            return make_frame(image.shape[:2], any_sam.image_size)

        def features(images):
            resized = [torch.tensor(resize_image(x, frame_of(x))).permute(2, 0, 1) for x in images]
            pixels = any_sam.preprocess(resized)
            if boundary < 0:
                return pixels
            with torch.no_grad():
                return any_sam.encode_prefix(pixels, boundary)

        values = {
            "sam": any_sam,
            "boundary": boundary,
            "features": features,
            "frame_of": frame_of,
            "policy": PromptPolicy(kind),
            "classes": 2,
            "autocast": nullcontext,
            "batch_size": 2,
        }
        return Predictor(**(values | changes))

    return make


@pytest.mark.parametrize("kind", ["box", "point", "semantic"])
def test_batches_and_the_boundary_do_not_matter(predictor, kind):
    samples = list(make_samples().values())
    whole = predictor(kind)(samples)
    assert [labels.shape for labels in whole] == [(1, *SHAPE)] * 5
    assert len(np.unique(np.stack(whole))) > 1
    for one, sample in zip(whole, samples, strict=True):
        assert (predictor(kind)([sample])[0] != one).mean() < 5e-3
    for boundary in (1, 3):
        for one, other in zip(whole, predictor(kind, boundary)(samples), strict=True):
            assert (one != other).mean() < 5e-3


def test_a_slice_without_prompts_is_empty_and_not_encoded(predictor):
    calls = []
    made = predictor("box")
    sample = next(iter(make_samples().values()))
    spied = predictor("box", features=lambda images: calls.append(images) or made.features(images))
    assert not spied([sample])[0].any()
    assert not calls


def test_independent_classes_do_not_take_pixels_from_each_other(predictor):
    sample = make_samples()[SliceRef("a", 2)]
    sample.labels[:] = 0
    sample.labels[2:20, 2:38] = 1
    sample.labels[3:19, 3:37] = 2
    policy = PromptPolicy("box", objects="class")
    apart = predictor("box", policy=policy, independent=True)([sample])[0]
    assert apart.shape == (2, *SHAPE)
    assert set(np.unique(apart[0])) <= {0, 1}
    assert set(np.unique(apart[1])) <= {0, 2}
    assert ((apart[0] > 0) & (apart[1] > 0)).any()
    together = predictor("box", policy=policy)([sample])[0][0]
    assert ((together > 0) == (apart > 0).any(0)).mean() > 0.995


def test_a_case_is_scored_over_all_of_its_slices(predictor):
    samples = make_samples()
    counted = []
    made = predictor("semantic")
    result = evaluate(made, list(samples), samples.__getitem__, ["one", "two"], counted.append)
    assert counted == [2, 1, 2]
    assert [(row.case, row.class_name) for row in result.rows] == [
        ("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")
    ]  # fmt: skip
    chosen = [sample for ref, sample in samples.items() if ref.case == "a"]
    predicted = np.stack([made([sample])[0][0] for sample in chosen], axis=-1)
    truth = np.stack([sample.labels for sample in chosen], axis=-1)
    for row, expected in zip(
        result.rows, score_case("a", predicted, truth, ["one", "two"]), strict=False
    ):
        assert row.truth_voxels == expected.truth_voxels
        assert row.dice == pytest.approx(expected.dice, abs=0.01)
    assert result.summary["dice"] == pytest.approx(np.mean([row.dice for row in result.rows]))


def test_the_slice_with_the_most_ground_truth_is_shown(predictor):
    samples = make_samples()
    made = predictor("box")
    result = evaluate(made, list(samples), samples.__getitem__, ["one", "two"])
    assert {case: ref.index for case, (ref, _) in result.shown.items()} == {"a": 1, "b": 1}
    for ref, labels in result.shown.values():
        assert (labels == made([samples[ref]])[0][0]).mean() > 0.99
        assert labels.any()


def test_scores_of_independent_classes_come_from_their_own_maps(predictor, monkeypatch):
    truth = np.zeros((1, 2, 4), np.uint8)[0][..., None]
    truth[0, :2], truth[1, :2] = 1, 2
    maps = np.zeros((2, 2, 4, 1), np.uint8)
    maps[0, 0, :2] = 1
    maps[1, :, :2] = 2  # overlaps the first
    rows = module.score_maps("a", maps, truth, ["one", "two"])
    assert [row.dice for row in rows] == [1.0, pytest.approx(2 / 3)]


def test_perfect_labels_score_one_and_empty_ones_are_counted():
    samples = make_samples()

    class Oracle:
        batch_size = 3

        def __call__(self, given):
            return [sample.labels[None] for sample in given]

    result = evaluate(Oracle(), list(samples), samples.__getitem__, ["one", "two", "three"])
    assert result.summary["dice"] == 1
    assert result.summary["per_class"]["three"]["both_empty"] == 2
    assert result.summary["per_class"]["three"]["dice"] is None
