"""Cached features equal the live encoder's, and a file is right or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from samadapt.errors import RunError
from samadapt.methods import METHODS, inject
from samadapt.sam.geometry import resize_image
from samadapt.sam.weights import load_sam
from samadapt.training import features as module
from samadapt.training.features import DiskStore, MemoryStore, choose_store


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
    resized = [resize_image(image, features.frame(image)) for image in images]
    pixels = sam.preprocess([torch.tensor(x).permute(2, 0, 1).float() for x in resized])
    with torch.no_grad():
        return sam.encode(pixels)


@pytest.mark.parametrize("name", ["tiny", "tiny_t"])
@pytest.mark.parametrize("blocks", ["all", "last:2", "[1]"])
def test_they_equal_the_live_encoder(tools, images, name, blocks):
    sam, injection = adapted(name, blocks)
    features = tools.make_features(sam, injection, MemoryStore())
    expected = live(sam, features, images)
    for _ in range(2):  # computed, then read back
        with torch.no_grad():
            found = sam.encode_suffix(features(images), injection.boundary)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (features.computed, features.reused) == (4, 4)
    assert not features(images).requires_grad


def test_without_a_frozen_prefix_they_are_pixels(tools, images):
    sam, injection = adapted(method="full", blocks="all")
    assert injection.boundary == -1
    features = tools.make_features(sam, injection)
    with torch.no_grad():
        torch.testing.assert_close(sam.encode(features(images)), live(sam, features, images))
    assert features(images).shape == (4, 3, 64, 64)


def test_a_second_run_computes_nothing(tools, images, store):
    sam, injection = adapted()
    first = tools.make_features(sam, injection, store)
    counted = []
    first.warm(iter(images), counted.append)
    assert sum(counted) == 4
    assert first.computed == 4
    second = tools.make_features(sam, injection, store, batch_size=3)
    assert torch.equal(second(images), first(images))
    assert (second.computed, second.reused) == (0, 4)
    again = second([images[0], images[0]])
    assert torch.equal(again[0], again[1])


def test_measuring_their_size_is_not_counted(tools, images, store):
    features = tools.make_features(*adapted(), store)
    size = features.bytes_each(images[0])
    assert size == features(images[:1]).nbytes
    assert (features.computed, features.reused) == (1, 0)


def test_the_key_is_everything_they_depend_on(tools, images):
    sam, injection = adapted()
    base = tools.make_features(sam, injection)
    image = images[1]
    one_pixel = image.copy()
    one_pixel[3, 4, 1] ^= 1
    boundary = tools.make_features(*adapted(blocks="last:1"))
    larger = load_sam("tiny", image_size=128)
    others = [
        base.key(one_pixel),
        base.key(image.reshape(32, 128, 3)),
        boundary.key(image),
        tools.make_features(sam, injection, base_sha256="other").key(image),
        tools.make_features(sam, injection, dtype=torch.bfloat16).key(image),
        tools.make_features(
            larger,
            inject(larger, METHODS["lora"](blocks="last:2")),
            base_sha256=module.json.loads(base._settings)[0],
        ).key(image),
    ]
    assert len({base.key(image), *others}) == 7
    assert base.key(image.copy()) == base.key(image)
    assert base.key(np.asfortranarray(image)) == base.key(image)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_file_is_computed_again(tools, images, tmp_path, damage):
    store = DiskStore(tmp_path)
    sam, injection = adapted()
    right = tools.make_features(sam, injection, store)(images[:1])
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-40],
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "empty": b"",
        "text": b"no safetensors at all, but long enough to hold a header",
    }
    path.write_bytes(broken[damage])
    features = tools.make_features(sam, injection, store)
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


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    """The process dies after the bytes are written and before the file has its name."""
    code = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from samadapt.training.features import DiskStore
        Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
        DiskStore(Path(sys.argv[1])).put("key", torch.ones(1, 4))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("*.safetensors"))
    assert list(tmp_path.iterdir())
    store = DiskStore(tmp_path)
    assert store.get("key") is None
    store.put("key", torch.ones(1, 4))
    assert torch.equal(store.get("key"), torch.ones(1, 4))


def test_where_they_are_kept(tmp_path, monkeypatch):
    assert isinstance(choose_store("auto", tmp_path, 10, 1000)[0], MemoryStore)
    store, text = choose_store("disk", tmp_path / "new", 10, 1_000_000)
    assert isinstance(store, DiskStore)
    assert text == f"1.0 MB each, 0.01 GB in {tmp_path / 'new'}"
    monkeypatch.setattr(module, "MEMORY_SHARE", 0)
    assert isinstance(choose_store("auto", tmp_path, 10, 1000)[0], DiskStore)
    assert isinstance(choose_store("memory", tmp_path, 10, 1000)[0], MemoryStore)
    with pytest.raises(RunError, match=r"are free; name another disk with cache\.dir"):
        choose_store("disk", tmp_path, 10**9, 10**9)
