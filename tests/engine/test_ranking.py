"""The order of labelling, on measurements and embeddings whose order is known."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.engine.quality import Quality
from samadapt.engine.ranking import rank


def vector(degrees):
    angle = np.deg2rad(degrees)
    return np.array([np.cos(angle), np.sin(angle)])


def order(ranking):
    return [one.image for one in ranking]


SURE, UNSURE = Quality(0.95, 0.99, 0.01), Quality(0.40, 0.60, 0.30)


def test_the_least_sure_comes_first_without_diversity():
    qualities = {"a": SURE, "b": UNSURE, "c": Quality(0.7, 0.8, 0.1)}
    ranking = rank(qualities, dict.fromkeys(qualities, vector(0)), [], 0.0)
    assert order(ranking) == ["b", "c", "a"]
    assert [one.score for one in ranking] == [1, 0.5, 0]
    assert "predicted IoU 0.40, lower than in 100% of the others" in ranking[0].reason


def test_an_image_in_which_nothing_is_found_is_the_least_sure():
    qualities = {"a": UNSURE, "b": Quality(None, None, 0.2)}
    ranking = rank(qualities, dict.fromkeys(qualities, vector(0)), [], 0.0)
    assert ranking[0].image in ("a", "b")
    assert order(rank({"a": UNSURE, "b": Quality(None, None, None)}, dict.fromkeys("ab", vector(0)),
                      [], 0.0)) == ["b", "a"]  # fmt: skip
    (nothing,) = [one for one in ranking if one.image == "b"]
    assert nothing.reason.startswith("the model finds nothing here")


def test_images_unlike_the_labelled_ones_come_first_with_diversity():
    embeddings = {"a": vector(0), "b": vector(80), "c": vector(85), "d": vector(40)}
    qualities = dict.fromkeys(embeddings, SURE)
    ranking = rank(qualities, embeddings, [vector(0)], 1.0)
    # c is farthest; b beside it then shows little that is new, so d comes before b.
    assert order(ranking) == ["c", "d", "b", "a"]
    assert ranking[0].values["novelty"] == pytest.approx(1)
    assert ranking[-1].values["novelty"] == pytest.approx(0, abs=1e-9)
    assert "unlike what is labelled" in ranking[0].reason


def test_both_weigh():
    embeddings = {"near": vector(0), "far": vector(90)}
    qualities = {"near": UNSURE, "far": SURE}
    for diversity, first in ((0.2, "near"), (0.8, "far")):
        assert order(rank(qualities, embeddings, [vector(0)], diversity))[0] == first


def test_every_image_has_a_reason_and_one_place():
    rng = np.random.default_rng(0)
    names = [f"i{k}" for k in range(12)]
    vectors = rng.normal(size=(12, 5))
    embeddings = {n: v / np.linalg.norm(v) for n, v in zip(names, vectors, strict=True)}
    qualities = {n: Quality(*rng.random(3)) for n in names}
    ranking = rank(qualities, embeddings, [], 0.5)
    assert sorted(order(ranking)) == sorted(names)
    assert all(one.reason and 0 <= one.score <= 1 for one in ranking)
    assert ranking == rank(qualities, embeddings, [], 0.5)


def test_nothing_to_rank():
    assert rank({}, {}, [], 0.5) == []
