"""Stand-ins: a model that sees the truth in the colours, and adapters of a random one."""

from __future__ import annotations

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch
from oracle import STEP, Oracle
from safetensors.torch import save_file

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.data.intensity import make_intensity
from samadapt.inference.segmenter import Segmenter
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.dense_head import HeadSettings
from samadapt.sam.types import MaskOutput
from samadapt.sam.weights.loading import base_hash


class RegionOracle(Oracle):
    """Knows two regions that overlap: "whole" has any colour, "core" the first or the third."""

    def decode(self, embeddings, prompts, *, multimask):
        if prompts.boxes is not None:
            return super().decode(embeddings, prompts, multimask=multimask)
        whole, core = embeddings > 0, (embeddings == STEP) | (embeddings == 3 * STEP)
        logits = torch.where(torch.cat([whole, core], dim=1)[:, None], 1.0, -1.0)
        return MaskOutput(logits, logits.mean((-2, -1)))


@pytest.fixture
def make_regions(make_oracle):
    """``make_regions(kind)``: a segmenter of the regions "whole tumour" and "core"."""
    names = ("whole tumour", "core")
    return lambda kind="semantic": make_oracle(kind, names, sam=RegionOracle(2), overlapping=True)


@pytest.fixture
def make_oracle():
    """``make_oracle(kind, classes, axis, **policy)``: a segmenter over an ``Oracle``."""

    def make(
        kind="semantic",
        classes=("a", "b", "c"),
        axis="auto",
        threshold=0.0,
        sam=None,
        overlapping=False,
        **policy,
    ):
        record = AdapterRecord(
            base="oracle",
            base_sha256="",
            image_size=Oracle.image_size,
            preprocessing={},
            intensity={"kind": "window", "low": 0.0, "high": 255.0},
            classes=list(classes),
            prompt={"kind": kind, **policy},
            axis=axis,
            threshold=threshold,
            overlapping=overlapping,
        )
        return Segmenter(sam or Oracle(len(classes)), record)

    return make


@pytest.fixture
def save_adapted(tiny_sam, tmp_path, monkeypatch):
    """``save_adapted(name, seed, kind, blocks, grow, **record)``: a random adapter on one base.

    ``grow`` changes the base before the adapter is injected. The directory and the adapted model
    are returned.
    """
    base = tmp_path / "weights" / "base.safetensors"
    base.parent.mkdir()
    monkeypatch.chdir(base.parent)  # the record holds the bare name of the base's file
    save_file(tiny_sam.state_dict(), base)

    def save(name, seed, kind, blocks="all", grow=lambda sam: None, **changes):
        sam = copy.deepcopy(tiny_sam)
        digest = base_hash(sam)
        grow(sam)
        injection = inject(sam, METHODS["lora"](rank=2, blocks=blocks))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in injection.parameters.values():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        values = {
            "base": "tiny",
            "base_sha256": digest,
            "checkpoint": str(base),
            "image_size": sam.image_size,
            "num_masks": sam.build.num_multimask,
            "preprocessing": asdict(sam.preprocessing),
            "intensity": make_intensity("rgb").to_dict(),
            "classes": ["grey", "white"],
            "prompt": PromptPolicy(kind).to_dict(),
            "head": {} if sam.dense_head is None else sam.dense_head.describe(),
        }
        directory = tmp_path / name
        save_adapter(directory, sam, injection, AdapterRecord(**(values | changes)))
        return directory, sam.eval()

    return save


@pytest.fixture
def adapter(save_adapted):
    """``adapter(name, seed, kind, **record)``: the directory of an adapter on one base."""

    def make(name, seed=1, kind="semantic", blocks="last:1", width=None, **changes):
        def grow(sam):
            if width is not None:
                sam.add_dense_head(2, HeadSettings(side=48, width=width, scales=2))

        return save_adapted(name, seed, kind, blocks, grow, **changes)[0]

    return make


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (30, 41, 3), dtype=np.uint8)
