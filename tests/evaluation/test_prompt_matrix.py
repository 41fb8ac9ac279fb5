"""One model in every setting, from no prompt to the exact box."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samadapt.evaluation.evaluate import evaluate_cases
from samadapt.evaluation.prompt_matrix import (
    BOX,
    CLICKS,
    MOVED,
    NONE,
    SETTINGS,
    SHOWN_CLICKS,
    score_settings,
    shift_box,
)
from samadapt.prompts.clicker import Clicker
from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.simulate import objects_in
from samadapt.sam.predictor import SamPredictor


@pytest.fixture
def scored(predictor, make_samples):
    samples = make_samples()

    def start(kind, classes=2, **changes):
        made = predictor(kind, classes=classes, **changes)
        read = {
            ref: replace(one, labels=np.minimum(one.labels, classes))
            for ref, one in samples.items()
        }.__getitem__
        names = ["one", "two"][:classes]
        matrix = score_settings(made, sorted(samples), read, names)
        return made, read, matrix, names, samples

    return start


@pytest.mark.parametrize("kind", ["box", "point", "interactive"])
def test_the_box_is_the_one_that_evaluation_gives(scored, kind, monkeypatch):
    made, read, found, names, samples = scored(kind)
    exact = replace(made, policy=replace(made.policy, kind="box"))
    if kind == "interactive":  # it gives several masks to a box, of which the surest is taken
        monkeypatch.setattr(PromptPolicy, "multimask", property(lambda self: True))
    usual = evaluate_cases(exact, sorted(samples), read, names)
    close = [
        abs(a.dice - b.dice) for a, b in zip(found.settings[BOX].rows, usual.rows, strict=True)
    ]
    assert max(close) < 0.02  # objects are decoded in other batches
    assert [row.truth_voxels for row in found.settings[BOX].rows] == [
        r.truth_voxels for r in usual.rows
    ]


def test_a_semantic_model_without_a_prompt_is_as_in_evaluation(scored):
    made, read, found, names, samples = scored("semantic")
    usual = evaluate_cases(made, sorted(samples), read, names, overlap_only=True)
    assert found.settings[NONE].rows == usual.rows
    assert found.settings[NONE].iou == []
    assert set(found.settings) == {*SETTINGS}
    rows = found.settings[BOX].rows
    assert [row.class_name for row in rows] == ["one", "two"] * 2
    assert all(row.prediction_voxels >= 0 for row in rows)


def test_clicks_are_what_the_predictor_gives_one_by_one(scored):
    made, read, found, _, samples = scored("box", classes=1, batch_size=1)
    sam = SamPredictor(made.sam)
    ref = sorted(samples)[1]
    sample = read(ref)
    mask = objects_in(sample.labels, "component")[1][0]
    sam.set_image(sample.image)
    assert set(found.settings) == {*SETTINGS}  # one class can be told without a prompt
    user = Clicker(mask, np.ones_like(mask))
    answer, low, points, labels = np.zeros_like(mask), None, [], []
    (first, *_) = found.clicks.objects
    assert (first.case, first.index, first.class_name) == (ref.case, ref.index, "one")
    for count, name in CLICKS.items():
        point, label = user.click(answer)
        points, labels = [*points, point], [*labels, label]
        planes, iou, logits = sam.predict(
            np.array(points),
            np.array(labels),
            mask_input=low,
            multimask_output=count == 1,
            return_logits=True,
        )
        best = int(np.argmax(iou))
        low, answer = logits[best][None], planes[best] > np.log(0.49 / 0.51)
        assert first.iou[count - 1] == pytest.approx(
            (answer & mask).sum() / (answer | mask).sum(), abs=1e-6
        )
        if count in SHOWN_CLICKS:
            predicted, true = found.settings[name].iou[0]
            assert predicted == pytest.approx(float(iou[best]), abs=1e-2)  # rounding adds up
            assert true == pytest.approx(first.iou[count - 1], abs=0.05)


def test_every_object_is_counted_and_the_curve_has_the_scores_of_the_settings(scored):
    _, _, found, _, samples = scored("box")
    assert set(found.settings) == {*SETTINGS} - {NONE}  # several classes cannot be told without it
    objects = sum(len(objects_in(sample.labels, "component")[0]) for sample in samples.values())
    for scores in found.settings.values():
        assert len(scores.iou) == objects
        assert all(0 <= true <= 1 for _, true in scores.iou)
    rows = [scores.rows for scores in found.settings.values()]
    assert len({tuple(row.prediction_voxels for row in one) for one in rows}) > 3
    assert len(found.clicks.objects) == objects
    assert {len(one.iou) for one in found.clicks.objects} == {20}
    assert len(found.clicks.rows) == 20
    for count in SHOWN_CLICKS:
        assert found.clicks.rows[count - 1] == found.settings[CLICKS[count]].rows


def test_a_moved_box_keeps_its_size_and_stays_in_the_image():
    box = np.array([10.0, 20, 40, 60], np.float32)
    moved = shift_box(box, (512, 512), 10, 0.0)
    assert moved.tolist() == [15, 20, 45, 60]  # 10 px of 1024 are 5 of 512
    assert shift_box(box, (512, 512), 10, np.pi / 2).tolist() == [10, 25, 40, 65]
    for turn in np.linspace(0, 6, 13):
        far = shift_box(box, (64, 64), 2000, turn)
        assert (far[:2] >= 0).all()
        assert (far[2:] <= 64).all()
        assert (far[2:] - far[:2] >= 1).all()
    assert len(MOVED) == 3


@pytest.mark.parametrize("kind", ["box", "semantic"])
def test_settings_leave_ignored_pixels_out_and_keep_regions_apart(predictor, make_samples, kind):
    """Scores of the exact box are those of an evaluation; no click lands on an ignored pixel."""
    members = np.array([[0, 1, 1], [0, 0, 1]], bool)
    samples = {ref: replace(sample, members=members) for ref, sample in make_samples().items()}
    for sample in samples.values():
        sample.labels[sample.labels == 1] = 2
        sample.labels[4:9, 5:9] = np.minimum(sample.labels[4:9, 5:9], 1)
        sample.labels[:, 27:40] = -1
    made = predictor(kind, independent=True, overlapping=True)
    clicked = []
    decode = made.sam.decode

    def spy(embeddings, prompts, **options):
        if prompts.points is not None:
            clicked.append((prompts.points, prompts.point_labels))
        return decode(embeddings, prompts, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.sam, "decode", spy)
        found = score_settings(made, sorted(samples), samples.__getitem__, ["all", "part"])
    scale = 40 / made.sam.image_size
    for points, labels in clicked:
        assert (points[labels >= 0][:, 0] * scale <= 27).all()
    exact = replace(made, policy=replace(made.policy, kind="box"))
    name, policy = (NONE, made) if kind == "semantic" else (BOX, exact)
    usual = evaluate_cases(policy, sorted(samples), samples.__getitem__, ["all", "part"])
    for one, other in zip(found.settings[name].rows, usual.rows, strict=True):
        assert (one.class_name, one.truth_voxels) == (other.class_name, other.truth_voxels)
        assert one.ignored_voxels == other.ignored_voxels > 0
        assert abs(one.dice - other.dice) < 0.02
