"""Slices made on the spot, and a training of a tiny model that takes milliseconds a step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from samadapt.adapters.injection import inject
from samadapt.data.types import Sample, SliceRef
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.decode import class_frame
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.system import processes
from samadapt.training.batches import Sampler, make_batch
from samadapt.training.feature_plan import plan_features
from samadapt.training.features import Features
from samadapt.training.keyed_random import BatchRandom
from samadapt.training.mask_losses import object_loss, semantic_loss
from samadapt.training.progress import Progress
from samadapt.training.state import Training


def make_sample(index: int, shape: tuple[int, int] = (24, 40), objects: int = 1) -> Sample:
    """A dark noisy picture with bright rectangles, the ground truth."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 60, (*shape, 3), dtype=np.uint8)
    labels = np.zeros(shape, np.int16)
    for number in range(objects):
        row, column = rng.integers(1, shape[0] - 8), number * 9 + rng.integers(0, 3)
        labels[row : row + 6, column : column + 7] = 1 + number % 2
    image[labels > 0] += 150
    return Sample(f"case{index}", 0, image, labels)


def make_features(sam, injection, store=None, **changes) -> Features:
    values = {
        "base_sha256": base_hash(sam),
        "autocast": nullcontext,
        "dtype": torch.float32,
        "store": store,
    }
    return Features(sam, injection.first_trainable_block, **(values | changes))


def make_training(
    run_dir,
    *,
    model="tiny",
    method="lora",
    kind="box",
    prompts=None,
    batch_size=2,
    seed=0,
    samples=None,
    dtype=torch.float32,
    **options,
) -> Training:
    """Everything that the loop needs, on a tiny model and six slices.

    ``prompts`` are more fields of the ``PromptPolicy`` of this kind.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    sam = load_sam(model).to(dtype)
    injection = inject(sam, METHODS[method](**options))
    samples = samples or [make_sample(index) for index in range(6)]
    refs = [SliceRef(sample.case, 0) for sample in samples]
    by_ref = dict(zip(refs, samples, strict=True))
    features = make_features(sam, injection, dtype=dtype)
    keys = {}
    if injection.has_frozen_prefix:
        read, limits = (lambda ref: by_ref[ref].image), {"folder": run_dir, "max_bytes": math.inf}
        keys = plan_features(features, refs, read, where="memory", **limits).keys
    sampler = Sampler(len(refs), batch_size, seed)
    policy = PromptPolicy(kind, **(prompts or {}))

    def make():
        first = sampler.drawn
        random = BatchRandom.at(
            seed, first // batch_size, processes.share(range(first, first + batch_size))
        )
        drawn = [refs[index] for index in sampler.next()]
        side, chosen = 4 * sam.embedding_size, [by_ref[ref] for ref in drawn]
        own = [keys[ref] for ref in drawn if ref in keys]
        frame = partial(class_frame, sam)
        return make_batch(chosen, policy, frame, side, random, keys=own)

    return Training(
        sam=sam,
        injection=injection,
        features=features,
        batches=(make() for _ in count()),
        sampler=sampler,
        loss=semantic_loss(2) if kind == "semantic" else object_loss(),
        validate=lambda: 0.5,
        run_dir=run_dir,
        progress=Progress(Console(quiet=True), run_dir / "log.txt"),
    )


@pytest.fixture
def tools() -> SimpleNamespace:
    """The helpers above; test modules cannot import this file."""
    return SimpleNamespace(
        make_sample=make_sample, make_features=make_features, make_training=make_training
    )
