"""Several adapters over one backbone: as if each were loaded alone, and no more memory."""

from __future__ import annotations

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.data.intensity import make_intensity
from samadapt.errors import AdapterError
from samadapt.inference.segmenter import load_adapter
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.weights.loading import base_hash

BOX = [3.0, 4.0, 25.0, 20.0]


@pytest.fixture
def saved(tiny_sam, tmp_path, monkeypatch):
    """``saved(name, kind="box", method="lora", masks=3, **options)``: an adapter directory."""
    monkeypatch.chdir(tmp_path)  # the record holds the bare name of the base's file
    weights = tmp_path / "base.safetensors"
    save_file(tiny_sam.state_dict(), weights)

    def make(name, kind="box", method="lora", masks=3, **options):
        sam = copy.deepcopy(tiny_sam)
        digest = base_hash(sam)
        if masks != 3:
            sam.resize_mask_tokens(masks)
        injection = inject(sam, METHODS[method](**options))
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in injection.parameters.values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        record = AdapterRecord(
            base="tiny",
            base_sha256=digest,
            checkpoint=str(weights),
            image_size=sam.image_size,
            num_masks=masks,
            preprocessing=asdict(sam.preprocessing),
            intensity=make_intensity("rgb").to_dict(),
            classes=[f"{name}-{i}" for i in range(masks if kind == "semantic" else 1)],
            prompt=PromptPolicy(kind).to_dict(),
        )
        save_adapter(tmp_path / name, sam, injection, record)
        return tmp_path / name

    return make


@pytest.fixture
def directories(saved):
    return {
        "lora": saved("lora"),
        "decoder": saved("decoder", method="none", decoder="full"),
        "five": saved("five", "semantic", "none", masks=5, decoder="full"),
        "bottlenecks": saved("bottlenecks", method="adapter"),
        "everything": saved("everything", method="full"),
    }


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def prompts(name):
    return {} if name == "five" else {"boxes": [BOX]}


def load_all(directories):
    (first, path), *others = directories.items()
    segmenter = load_adapter(path, device="cpu", name=first)
    for name, directory in others:
        segmenter.add(directory, name)
    return segmenter


def test_each_adapter_segments_as_if_it_were_loaded_alone(directories, image):
    segmenter = load_all(directories)
    assert segmenter.names == list(directories)
    answers = {}
    for name in [*directories, *reversed(directories)]:  # twice: switching leaves no trace
        segmenter.use(name)
        found = segmenter.segment(image, **prompts(name))
        alone = load_adapter(directories[name], device="cpu")
        assert np.array_equal(found, alone.segment(image, **prompts(name)))
        assert segmenter.classes == alone.classes
        answers[name] = found
    assert len({answer.tobytes() for answer in answers.values()}) == len(answers)


def test_the_base_is_in_memory_once(directories):
    segmenter = load_all(directories)
    base = {p.data_ptr() for p in segmenter._base.image_encoder.parameters()}
    decoder = {p.data_ptr() for p in segmenter._base.mask_decoder.parameters()}
    for name in directories:
        segmenter.use(name)
        held = {p.data_ptr() for p in segmenter.sam.parameters()}
        assert not base & held if name == "everything" else base <= held
        assert not decoder & held  # each has trained it


def test_frozen_encoders_share_embeddings(directories, image):
    segmenter = load_all(directories)
    for name in ("decoder", "five", "decoder"):
        segmenter.use(name)
        segmenter.segment(image, **prompts(name))
    assert segmenter._embeddings.computed == 1
    segmenter.use("lora")
    segmenter.segment(image, **prompts("lora"))
    assert segmenter._embeddings.computed == 2
    segmenter.segment(255 - image, **prompts("lora"))
    assert segmenter._embeddings.computed == 3


def test_a_removed_adapter_changes_no_other(directories, image):
    segmenter = load_all(directories)
    before = segmenter.segment(image, boxes=[BOX])
    for name in ("decoder", "everything", "bottlenecks"):
        segmenter.remove(name)
    assert np.array_equal(segmenter.segment(image, boxes=[BOX]), before)
    with pytest.raises(AdapterError, match="no adapter 'decoder'; there are lora, five"):
        segmenter.use("decoder")
    with pytest.raises(AdapterError, match="'lora' is in use"):
        segmenter.remove("lora")
    with pytest.raises(AdapterError, match="there is an adapter 'five' already"):
        segmenter.add(directories["five"], "five")
    segmenter.add(directories["decoder"], "decoder")


def test_an_adapter_of_another_base_is_refused(directories, saved, tiny_sam, tmp_path):
    segmenter = load_all(directories)
    with torch.no_grad():
        tiny_sam.image_encoder.neck[0].weight.add_(1)
    other = saved("other")
    with pytest.raises(AdapterError, match=r"samadapt\.json: trained on base tiny with sha256"):
        segmenter.add(other, "other")
    assert "other" not in segmenter.names


def test_the_oldest_embeddings_go_first():
    from samadapt.inference.embedding_cache import EmbeddingCache
    from samadapt.sam.weights.loading import load_sam

    sam = load_sam("tiny")
    images = [np.full((20, 30, 3), value, np.uint8) for value in (10, 20, 30)]
    size = sam.encode(torch.zeros(1, 3, 64, 64)).nbytes
    kept = EmbeddingCache(max_bytes=2 * size)
    for image in images:
        kept(sam, "base", [image])
    kept(sam, "base", images[1:])
    assert kept.computed == 3
    kept(sam, "base", images)
    assert kept.computed == 4
