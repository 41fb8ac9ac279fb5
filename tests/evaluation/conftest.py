"""Slices with two classes, and a random model that segments them."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from samadapt.data.types import Sample, SliceRef
from samadapt.evaluation.evaluate import SlicePredictor
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.embed import to_pixels

SHAPE = (24, 40)


def _samples(cases=(("a", 3), ("b", 2))):
    samples = {}
    for number, (case, depth) in enumerate(cases):
        rng = np.random.default_rng(number)
        for index in range(depth):
            labels = np.zeros(SHAPE, np.int16)
            if index:  # the first slice is empty
                labels[2 + index : 14, 3 : 12 + number] = 1
                labels[5:20, 25:36] = 2
            image = rng.integers(0, 50, (*SHAPE, 3), dtype=np.uint8)
            image[labels > 0] += 120
            samples[SliceRef(case, index)] = Sample(case, index, image, labels)
    return samples


@pytest.fixture
def predictor(any_sam):
    def make(kind, first_trainable_block=-1, **changes):
        def features(images):
            pixels = to_pixels(any_sam, images)
            if first_trainable_block < 0:
                return pixels
            with torch.no_grad():
                return any_sam.encode_prefix(pixels, first_trainable_block)

        values = {
            "sam": any_sam,
            "first_trainable_block": first_trainable_block,
            "features": features,
            "policy": PromptPolicy(kind),
            "classes": 2,
            "autocast": nullcontext,
            "batch_size": 2,
        }
        return SlicePredictor(**(values | changes))

    return make


@pytest.fixture
def make_samples():
    """``make_samples(cases)``: slices with two classes by ``SliceRef``; each first one is empty."""
    return _samples
