"""Cached features equal the live encoder's; stores are tested in ``test_feature_stores.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.methods import METHODS
from samadapt.sam.embed import frame_of
from samadapt.sam.geometry import resize_image
from samadapt.sam.weights.loading import load_sam
from samadapt.training import features as module
from samadapt.training.feature_stores import DiskStore, MemoryStore


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (64, 64), (25, 90), (64, 64)]
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "features")


def adapted(name="tiny", blocks="last:2", method="lora"):
    sam = load_sam(name)
    return sam, inject(sam, METHODS[method](blocks=blocks))


def live(sam, features, images):
    resized = [resize_image(image, frame_of(sam, image)) for image in images]
    pixels = sam.preprocess([torch.tensor(x).permute(2, 0, 1).float() for x in resized])
    with torch.no_grad():
        return sam.encode(pixels)


@pytest.mark.parametrize("name", ["tiny", "tiny_t"])
@pytest.mark.parametrize("blocks", ["all", "last:2", "[1]"])
def test_stored_features_equal_the_live_encoder(tools, images, name, blocks):
    sam, injection = adapted(name, blocks)
    features = tools.make_features(sam, injection, MemoryStore())
    expected = live(sam, features, images)
    for _ in range(2):  # computed, then read back
        with torch.no_grad():
            found = sam.encode_suffix(features(images), injection.first_trainable_block)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (features.computed, features.reused) == (4, 4)
    assert not features(images).requires_grad


def test_without_a_frozen_prefix_they_are_pixels(tools, images):
    sam, injection = adapted(method="full", blocks="all")
    assert injection.first_trainable_block == -1
    features = tools.make_features(sam, injection)
    with torch.no_grad():
        torch.testing.assert_close(sam.encode(features(images)), live(sam, features, images))
    assert features(images).shape == (4, 3, 64, 64)


def test_a_second_run_computes_nothing(tools, images, store):
    sam, injection = adapted()
    first = tools.make_features(sam, injection, store)
    counted = []
    by_key = {first.key(image): image for image in images}
    first.read = by_key.__getitem__
    first.warm(list(by_key), counted.append)
    assert sum(counted) == 4
    assert first.computed == 4
    second = tools.make_features(sam, injection, store, batch_size=3)
    assert torch.equal(second(images), first(images))
    assert (second.computed, second.reused) == (0, 4)
    again = second([images[0], images[0]])
    assert torch.equal(again[0], again[1])


def test_features_that_are_computed_when_read_do_not_depend_on_what_is_read_first(
    tools, images, store
):
    sam, injection = adapted()
    by_key = {tools.make_features(sam, injection).key(image): image for image in images}
    keys = list(by_key)

    def in_order(own_store):
        found = tools.make_features(sam, injection, own_store, batch_size=3)
        found.read = by_key.__getitem__
        found.compute_in_order(keys)
        return found

    first = in_order(MemoryStore())
    expected = first.stored(keys)
    assert first.computed == 4
    later = in_order(store)
    assert torch.equal(later.stored(keys[2:3]), expected[2:3])
    assert later.computed == 3  # with the two before it
    assert torch.equal(later.stored(keys), expected)
    assert later.computed == 4


def test_compute_keeps_no_features(tools, images, store):
    features = tools.make_features(*adapted(), store)
    assert torch.equal(features.compute(images), features(images))
    assert (features.computed, features.reused) == (8, 0)


def test_the_key_changes_with_all_that_features_depend_on(tools, images, monkeypatch):
    sam, injection = adapted()
    base = tools.make_features(sam, injection)
    image = images[1]
    one_pixel = image.copy()
    one_pixel[3, 4, 1] ^= 1
    first_trainable_block = tools.make_features(*adapted(blocks="last:1"))
    larger = load_sam("tiny", image_size=128)
    others = [
        base.key(one_pixel),
        base.key(image.reshape(32, 128, 3)),
        first_trainable_block.key(image),
        tools.make_features(sam, injection, base_sha256="other").key(image),
        tools.make_features(sam, injection, dtype=torch.bfloat16).key(image),
        tools.make_features(sam, injection, route="bf16 on cuda").key(image),
        tools.make_features(
            larger,
            inject(larger, METHODS["lora"](blocks="last:2")),
            base_sha256=module.json.loads(base._settings)[1],
        ).key(image),
    ]
    assert len({base.key(image), *others}) == 8
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert tools.make_features(sam, injection).key(image) != base.key(image)
    assert base.key(image.copy()) == base.key(image)
    assert base.key(np.asfortranarray(image)) == base.key(image)


def test_a_damaged_file_is_computed_again(tools, images, tmp_path):
    sam, injection = adapted()
    right = tools.make_features(sam, injection, DiskStore(tmp_path))(images[:1])
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    features = tools.make_features(sam, injection, DiskStore(tmp_path))
    assert torch.equal(features(images[:1]), right)
    assert features.computed == 1
    assert path.read_bytes() == whole


def test_bf16_features_survive_the_disk(tools, images, tmp_path):
    sam, injection = adapted()
    features = tools.make_features(sam, injection, DiskStore(tmp_path), dtype=torch.bfloat16)
    first = features(images)
    assert first.dtype == torch.bfloat16
    assert torch.equal(features(images), first)
    assert features.computed == 4


def test_planned_images_are_found_by_key_without_hashing(tools, images, store, monkeypatch):
    sam, injection = adapted()
    features = tools.make_features(sam, injection, store)
    keys = [features.key(image) for image in images]
    monkeypatch.setattr(features, "key", None)
    with pytest.raises(RuntimeError, match="plan_features was not called"):
        features.stored(keys)
    features.read = dict(zip(keys, images, strict=True)).__getitem__
    found = features.stored([*keys, keys[0]])
    assert torch.equal(found[:4], features.compute(images))
    assert torch.equal(found[4], found[0])
    features.read = None  # nothing is read any more
    assert torch.equal(features.stored(keys), found[:4])


def test_a_damaged_file_of_a_key_is_computed_again(tools, images, tmp_path):
    sam, injection = adapted()
    features = tools.make_features(sam, injection, DiskStore(tmp_path))
    key = features.key(images[0])
    features.read = {key: images[0]}.__getitem__
    right = features.stored([key])
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(features.stored([key]), right)
    assert features.computed == 2
