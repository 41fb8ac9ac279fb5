"""The plan before a run: each image once, what is stored is not counted, the size is told."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.adapters.injection import inject
from samadapt.errors import RunError
from samadapt.methods import METHODS
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.training import feature_stores
from samadapt.training.feature_plan import plan_features
from samadapt.training.feature_stores import DiskStore, MemoryStore
from samadapt.training.features import Features


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for name in "abcd"}
    return images | {"again": images["a"].copy(), "unprompted": None}


@pytest.fixture
def plan(tools, images, tmp_path):
    def start(where="auto", max_bytes=float("inf"), names=tuple(images)):
        sam = load_sam("tiny")
        base = base_hash(sam)
        injection = inject(sam, METHODS["lora"](blocks="last:2"))
        features = tools.make_features(sam, injection, base_sha256=base)
        warming = plan_features(
            features,
            names,
            images.get,
            where=where,
            folder=tmp_path / "features",
            max_bytes=max_bytes,
        )
        return features, warming

    return start


def warm(features, warming):
    features.warm(warming.missing, lambda count: None)


def keys(features, images, names):
    return [features.key(images[name]) for name in names]


def test_a_second_run_computes_nothing(plan, images):
    features, warming = plan()
    assert isinstance(features.store, DiskStore)
    assert (warming.images, features.computed) == (4, 1)
    assert warming.missing == keys(features, images, "bcd")
    assert warming.keys_of(["again", "c"]) == keys(features, images, "ac")
    assert warming.keys_of(["a", "unprompted"]) == []
    assert warming.bytes_each == features([images["a"]]).nbytes
    warm(features, warming)
    assert features.computed == 4
    again, none = plan()
    assert (none.images, none.missing, again.computed) == (4, [], 0)
    assert again([images["c"]]).equal(features([images["c"]]))
    assert again.computed == 0


def test_in_memory_a_second_run_starts_anew(plan, tmp_path):
    features, warming = plan("memory")
    assert isinstance(features.store, MemoryStore)
    assert len(warming.missing) == 3
    assert not (tmp_path / "features").exists()


def test_without_room_on_the_disk_auto_takes_memory_and_keeps_what_it_computed(plan, images):
    features, warming = plan(max_bytes=1.0)
    assert isinstance(features.store, MemoryStore)
    assert warming.missing == keys(features, images, "bcd")
    warm(features, warming)
    features([images["a"]])
    assert features.computed == 4
    assert "in memory" in warming.text


def test_what_is_stored_needs_no_room(plan, images, monkeypatch):
    features, warming = plan()
    warm(features, warming)
    monkeypatch.setattr(feature_stores, "DISK_SHARE", 0)
    monkeypatch.setattr(feature_stores, "MEMORY_SHARE", 0)
    assert plan()[1].missing == []
    next(features.store.folder.glob("*.safetensors")).unlink()
    with pytest.raises(RunError, match=r"are free.*cache\.where=memory"):
        plan()


def test_nothing_to_compute(plan):
    assert plan(names=["unprompted"])[1].images == 0


def test_every_image_is_hashed_once(plan, images, monkeypatch):
    hashed, right = [], Features.key
    monkeypatch.setattr(Features, "key", lambda self, image: hashed.append(1) or right(self, image))
    features, warming = plan()
    warm(features, warming)
    for _ in range(3):
        features.stored(warming.keys_of("abcd"))
    assert len(hashed) == len([image for image in images.values() if image is not None])
