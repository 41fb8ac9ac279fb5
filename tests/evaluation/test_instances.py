"""Average precision against pycocotools, panoptic quality against brute force over sets."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.errors import RunError
from samadapt.evaluation.instances import components, match_objects, summarise_objects
from samadapt.reports.objects import objects_table, read_objects, write_objects

CLASSES = ["cell", "nucleus"]


def scene(seed, cases=3):
    """Object numbers of truth and prediction, and a confidence of each predicted object."""
    rng = np.random.default_rng(seed)
    found = []
    for case in range(cases):
        for name in CLASSES:
            truth, predicted = np.zeros((2, 24, 30), np.int32)
            for number in range(1, rng.integers(0, 7) + 1):
                y, x = rng.integers(0, (18, 24))
                h, w = rng.integers(2, 7, 2)
                truth[y : y + h, x : x + w] = number
                if rng.random() < 0.8:
                    dy, dx = rng.integers(-1, 2, 2)
                    predicted[max(y + dy, 0) : y + dy + h, max(x + dx, 0) : x + dx + w] = number
            if rng.random() < 0.5:
                predicted[0:3, 0:4] = 9
            sure = rng.choice([0.2, 0.5, 0.9, 0.95], 10).astype(np.float32)
            found.append((f"case {case}", name, predicted, truth, sure[predicted]))
    return found


def coco_says(found, key):
    """mAP, AP50 and AP75 of pycocotools for one class."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    mask = pytest.importorskip("pycocotools.mask")
    cases = list(dict.fromkeys(case for case, *_ in found))
    truths, detections = [], []
    for case, name, predicted, truth, sure in found:
        image, category = cases.index(case) + 1, CLASSES.index(name) + 1
        for number in np.unique(truth[truth > 0]):
            rle = mask.encode(np.asfortranarray(truth == number).astype(np.uint8))
            area = float((truth == number).sum())
            truths.append({
                "id": len(truths) + 1, "image_id": image, "category_id": category,
                "segmentation": rle, "area": area, "iscrowd": 0, "bbox": [0, 0, 1, 1],
            })  # fmt: skip
        for number in np.unique(predicted[predicted > 0]):
            rle = mask.encode(np.asfortranarray(predicted == number).astype(np.uint8))
            score = float(sure[predicted == number].mean(dtype=np.float64))
            detections.append({
                "image_id": image, "category_id": category, "segmentation": rle, "score": score
            })  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        ground.dataset = {
            "images": [{"id": n + 1, "height": 24, "width": 30} for n in range(len(cases))],
            "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)],
            "annotations": truths,
        }
        ground.createIndex()
        if not detections:
            return None
        runner = evaluation.COCOeval(ground, ground.loadRes(detections), "segm")
        if key is not None:
            runner.params.catIds = [CLASSES.index(key) + 1]
        runner.evaluate()
        runner.accumulate()
        runner.summarize()
    return [None if value < 0 else value for value in runner.stats[:3]]


@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 300), marks=pytest.mark.slow)], ids=str
)
def test_average_precision_is_pycocotools(seeds):
    compared = 0
    for seed in seeds:
        found = scene(seed)
        summary = summarise_objects([match_objects(*one) for one in found], CLASSES)
        for name, entry in [(None, summary), *summary["per_class"].items()]:
            wanted = coco_says(found, name)
            if wanted is not None:
                assert [entry[key] for key in ("map", "ap50", "ap75")] == pytest.approx(
                    wanted, abs=1e-9
                ), (seed, name)
                compared += entry["map"] is not None and 0 < entry["map"] < 1
    assert compared > len(seeds)


LABELS = st.lists(st.integers(0, 4), min_size=12, max_size=12).map(
    lambda values: np.array(values, np.int32).reshape(3, 4)
)


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_panoptic_quality_is_brute_force_over_sets(cases):
    rows = [match_objects(str(n), "cell", *pair) for n, pair in enumerate(cases)]
    entry = summarise_objects(rows, ["cell"])["per_class"]["cell"]
    overlaps, true, predicted = [], 0, 0
    for one, other in cases:
        objects = [
            [set(map(tuple, np.argwhere(m == k).tolist())) for k in np.unique(m[m > 0])]
            for m in (one, other)
        ]
        predicted, true = predicted + len(objects[0]), true + len(objects[1])
        overlaps += [
            len(p & t) / len(p | t)
            for p in objects[0]
            for t in objects[1]
            if len(p & t) / len(p | t) > 0.5
        ]
    assert (entry["true_objects"], entry["predicted_objects"]) == (true, predicted)
    tp, fp, fn = len(overlaps), predicted - len(overlaps), true - len(overlaps)
    if true + predicted:
        assert entry["pq"] == pytest.approx(math.fsum(overlaps) / (tp + fp / 2 + fn / 2))
        assert entry["rq"] == pytest.approx(tp / (tp + fp / 2 + fn / 2))
    else:
        assert entry["pq"] is entry["rq"] is None
    assert entry["sq"] == (pytest.approx(np.mean(overlaps)) if overlaps else None)


def test_components_touch_across_corners_and_slices():
    mask = np.zeros((4, 4, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 2] = True
    assert components(mask).max() == 2
    assert components(mask[..., 0]).max() == 1


def test_what_cannot_be_computed_is_none():
    nothing = np.zeros((3, 3), np.int32)
    one = np.ones((3, 3), np.int32)
    empty = summarise_objects([match_objects("a", "cell", nothing, nothing)], CLASSES)
    assert empty["map"] is empty["pq"] is None
    invented = summarise_objects([match_objects("a", "cell", one, nothing)], CLASSES)
    assert (invented["map"], invented["pq"], invented["sq"]) == (None, 0, None)
    missed = summarise_objects([match_objects("a", "cell", nothing, one)], CLASSES)
    assert (missed["map"], missed["pq"]) == (0, 0)
    perfect = summarise_objects([match_objects("a", "cell", one, one)], CLASSES)
    assert (perfect["map"], perfect["pq"], perfect["sq"], perfect["rq"]) == (1, 1, 1, 1)
    objects_table({"zero-shot": invented, "adapted": empty})


def test_objects_are_read_back_as_they_were_written(tmp_path):
    rows = {"zero_shot": [match_objects(*one) for one in scene(3)], "adapted": []}
    write_objects(tmp_path, rows)
    assert read_objects(tmp_path) == rows
    (tmp_path / "objects.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(RunError, match=r"objects\.json: cannot read"):
        read_objects(tmp_path)
