"""Simulated clicks that correct a mask before it is scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samadapt.errors import PromptError
from samadapt.evaluation.clicking import corrected_prompts
from samadapt.prompts.policy import SCORED_CLICKS, PromptPolicy
from samadapt.prompts.simulate import simulate
from samadapt.sam.decode import segment_objects
from samadapt.sam.embed import frame_of


def test_an_interactive_model_is_scored_with_three_clicks(predictor, make_samples):
    """One in the middle of each object and two corrections, and the mask goes back each time."""
    made = predictor("interactive", classes=2)
    samples = list(make_samples().values())[1:3]
    frames, embeddings = (
        [frame_of(made.sam, s.image) for s in samples],
        made.embed(samples),
    )
    prompts = [simulate(sample.maps, made.policy) for sample in samples]
    clicked = corrected_prompts(made.sam, embeddings, frames, prompts, samples, SCORED_CLICKS - 1)
    assert {item.points.shape[1] for item in clicked} == {3}
    expected = segment_objects(made.sam, embeddings, frames, clicked, multimask=None)
    for found, objects, (numbers, _) in zip(made.predict(samples), clicked, expected, strict=True):
        assert np.array_equal(found.labels[0], objects.class_ids_at(numbers))
    once = segment_objects(made.sam, embeddings, frames, prompts, multimask=None)
    pairs = zip(once, expected, strict=True)
    assert any((one != three).any() for (one, _), (three, _) in pairs)


def test_clicks_need_the_truth_and_stay_out_of_unknown_pixels(predictor, make_samples):
    made = predictor("point", classes=2)
    sample = list(make_samples().values())[1]
    unknown = np.zeros(sample.labels.shape, bool)
    unknown[:, : unknown.shape[1] // 2] = True
    sample = replace(sample, labels=np.where(unknown, -1, sample.labels))
    frames, embeddings = [frame_of(made.sam, sample.image)], made.embed([sample])
    prompts = [simulate(sample.maps, PromptPolicy("interactive"))]
    assert len(prompts[0])

    def clicked(given, clicks):
        return corrected_prompts(made.sam, embeddings, frames, given, [sample], clicks)[0]

    found = clicked(prompts, 4)
    assert found.points.shape[1] == 5
    assert np.array_equal(found.points[:, :1], prompts[0].points)
    for x, y in found.points[found.point_labels >= 0]:
        assert not unknown[int(y), int(x)]
    with pytest.raises(PromptError, match="ground truth"):
        clicked([replace(prompts[0], truth=None)], 1)
