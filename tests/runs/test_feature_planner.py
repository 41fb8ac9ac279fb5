"""The planner of features: an image is hashed once, and later found by its key."""

from __future__ import annotations

from samadapt.training.features import Features


def test_an_image_is_hashed_once_in_a_whole_run(make_pictures, run, monkeypatch):
    hashed, right = [], Features.key

    def key(self, image):
        hashed.append(right(self, image))
        return hashed[-1]

    monkeypatch.setattr(Features, "key", key)
    run(make_pictures(), "peft.blocks=last:2", "train.steps=6", "train.validate_every=1")
    assert len(hashed) == len(set(hashed)) == 8  # training, validation and both scorings included
