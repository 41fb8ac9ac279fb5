"""Several kinds of prompts in one step: one pass of the encoder, and gradients that add up."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.decode import class_frame
from samadapt.training.batches import make_batch, make_batch_of_kinds
from samadapt.training.keyed_random import BatchRandom
from samadapt.training.loop import TrainableTail, learn
from samadapt.training.mask_losses import semantic_loss

WAYS = [
    (PromptPolicy("box"), 0.25),
    (PromptPolicy("interactive", clicks=1), 0.25),
    (PromptPolicy("semantic"), 0.5),
]


def batch_of(training, samples, ways):
    make = partial(
        make_batch,
        frame_of=partial(class_frame, training.sam),
        side=4 * training.sam.embedding_size,
    )
    has_object = lambda sample: bool((sample.maps > 0).any())  # noqa: E731
    random = BatchRandom.of(np.random.default_rng(0), len(samples))
    return make_batch_of_kinds(samples, ways, has_object, range(len(samples)), [], random, make)


def learnt(training, batch):
    tail = TrainableTail(training.sam, training.injection.first_trainable_block)
    for parameter in training.injection.parameters.values():
        parameter.grad = None
    loss = learn(training, tail, batch, 1)
    named = training.injection.parameters.items()
    return loss, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture
def training(tools, tmp_path):
    made = tools.make_training(tmp_path, blocks="last:1")
    made.class_loss = semantic_loss(2)
    return made


def test_slices_without_an_object_train_without_prompts_alone(tools, training):
    samples = [tools.make_sample(index, objects=2) for index in range(3)]
    samples[1].labels[:] = 0
    batch = batch_of(training, samples, WAYS)
    assert batch.prompts.is_empty
    assert (batch.weight, len(batch.targets)) == (0.5, 3)
    assert [one.trained.tolist() for one in batch.others] == [[0, 2], [0, 2]]
    assert [one.rounds is None for one in batch.others] == [True, False]
    samples[0].labels[:] = samples[2].labels[:] = 0
    assert batch_of(training, samples, WAYS).others == ()


def test_gradients_are_the_weighted_sum_from_one_pass_of_the_encoder(tools, training):
    samples = [tools.make_sample(index, objects=2) for index in range(3)]
    samples[1].labels[:] = 0
    batch = batch_of(training, samples, WAYS)
    sam, runs = training.sam, []
    suffix = sam.encode_suffix
    sam.encode_suffix = lambda *args: runs.append(1) or suffix(*args)
    loss, found = learnt(training, batch)
    assert len(runs) == 1
    alone = [replace(batch, others=(), weight=1.0)]
    alone += [
        replace(one, weight=1.0, images=batch.images, trained=one.trained) for one in batch.others
    ]
    total, expected = 0.0, {}
    for one, weight in zip(alone, (0.5, 0.25, 0.25), strict=True):
        value, gradients = learnt(training, one)
        total += weight * value
        for name, gradient in gradients.items():
            expected[name] = expected.get(name, 0) + weight * gradient
    assert loss == pytest.approx(total, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=1e-6)
