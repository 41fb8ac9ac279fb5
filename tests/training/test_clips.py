"""Training through the memory of SAM 2: the same gradients as from a walk written out by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import repeat
from types import SimpleNamespace

import pytest
import torch

from samadapt.data.types import Sample, SliceRef
from samadapt.errors import ConfigError
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.decode import class_frame
from samadapt.sam.tracking import Tracker
from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import POINTERS, MemoryBank
from samadapt.training.batch_parts import split
from samadapt.training.batches import make_batch
from samadapt.training.keyed_random import BatchRandom
from samadapt.training.loop import LoopOptions, TrainableTail, learn, make_optimizer, train
from samadapt.training.mask_losses import object_loss
from samadapt.training.samples import TrainingSamples

CLIP = 3


@pytest.fixture
def clips(make_clips):
    """A SAM 2 with two clips of three slices, whose object has ended on the last one."""
    return make_clips("box")


@pytest.fixture
def make_clips(tools, tmp_path):
    """Return a function that makes the clips, prompted in one way."""
    return partial(clips_of, tools, tmp_path)


def clips_of(tools, tmp_path, kind, **options):
    training = tools.make_training(tmp_path, model="tiny_h", **({"blocks": "last:2"} | options))
    sam = training.sam
    training.tracker = Tracker(sam, POINTERS, training=True)
    training.injection.set_training(sam)
    samples = []
    for number in range(2):
        for index in range(CLIP):
            made = tools.make_sample(10 * number + index, objects=2)
            labels = made.labels * (index < CLIP - 1)
            samples.append(Sample(f"case{number}", index, made.image, labels))
    random = BatchRandom.at(0, 0, range(2))
    policy = PromptPolicy(kind, objects="class", max_objects=2, clip=CLIP)
    frame = partial(class_frame, sam)
    side = 4 * sam.embedding_size
    batch = make_batch(samples, policy, frame, side, random.of_slices([CLIP] * 2))
    return training, batch


def gradients(training):
    parameters = training.injection.parameters.items()
    found = {name: p.grad.clone() for name, p in parameters if p.grad is not None}
    for _, parameter in parameters:
        parameter.grad = None
    return found


def by_hand(training, batch, *, multimask=False):
    """The mean loss of all slices, without the code that trains."""
    sam, loss = training.sam, object_loss()
    tracker = Tracker(sam, POINTERS, training=True)
    first = training.injection.first_trainable_block
    embeddings = TrainableTail(sam, first)(training.features.compute(batch.images))
    losses = []
    for start in range(0, len(batch.targets), CLIP):
        given = vars(batch.prompts).items()
        own = {k: v[start][:, None] for k, v in given if isinstance(v, torch.Tensor)}
        copies = [embeddings[start + i].expand(2, -1, -1, -1) for i in range(CLIP)]
        seen = tracker.prompted(copies[0], Prompts(**own), multimask=multimask)
        bank = MemoryBank({0: seen.memory})
        walk = [seen, *(tracker.tracked(copies[i], bank, i, 1) for i in range(1, CLIP))]
        for index, one in enumerate(walk):
            losses.append(loss(one.masks, batch.targets[start + index][:, None]).total)
    return torch.stack(losses).mean()


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, rtol=1e-3, atol=1e-5, msg=name)


def test_every_slice_has_the_loss_and_memory_carries_its_gradient(clips):
    training, batch = clips
    assert batch.targets.shape[:2] == (2 * CLIP, 2)
    assert batch.round_count == 2
    assert not (batch.targets[CLIP - 1 :: CLIP] > 0).any()  # the objects have ended
    tail = TrainableTail(training.sam, training.injection.first_trainable_block)
    value = learn(training, tail, batch, 1)
    found = gradients(training)
    expected = by_hand(training, batch)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    right = gradients(training)
    assert any(name.startswith("image_encoder") for name in right)
    assert any("pred_obj_score_head" in name for name in right)
    assert_close(found, right)
    assert all(p.grad is None for p in training.tracker.memory.parameters())


def test_a_memory_trains_by_the_gradient_of_the_slices_after_the_prompt(tools, tmp_path):
    training, batch = clips_of(tools, tmp_path, "box", method="none", memory="full", blocks="all")
    parameters = training.injection.parameters
    assert all(name.startswith("video_memory.") for name in parameters)
    tail = TrainableTail(training.sam, training.injection.first_trainable_block)
    learn(training, tail, batch, 1)
    training.injection.check_gradients()
    found = gradients(training)
    by_hand(training, batch).backward()
    assert_close(found, gradients(training))
    # What makes maps, what makes pointers, what dates both and what attends to them.
    parts = {name.split(".")[1] for name, value in found.items() if value.any()}
    assert parts >= {
        "memory_attention",
        "memory_encoder",
        "maskmem_tpos_enc",
        "obj_ptr_proj",
        "obj_ptr_tpos_proj",
    }


@pytest.mark.parametrize("memory", ["frozen", "full"])
def test_only_a_memory_that_trains_changes(tools, tmp_path, memory):
    training, batch = clips_of(tools, tmp_path, "box", memory=memory, decoder="frozen")
    training.batches, training.validate = repeat(batch), None
    own = training.tracker.memory
    before = {name: value.clone() for name, value in own.state_dict().items()}
    base = {name: value.clone() for name, value in training.sam.memory.items()}
    train(training, LoopOptions(steps=3, warmup_steps=0, decoder_lr=1e-3), None)
    changed = [name for name, value in own.state_dict().items() if not value.equal(before[name])]
    assert bool(changed) is (memory == "full")
    assert all(torch.equal(training.sam.memory[name], value) for name, value in base.items())
    assert ("memory" in training.injection.groups) is (memory == "full")


def test_a_memory_learns_as_fast_as_the_decoder(tools, tmp_path):
    training, _ = clips_of(tools, tmp_path, "box", memory="full")
    options = LoopOptions(steps=1, lr=1e-2, decoder_lr=1e-4)
    optimizer = make_optimizer(training.injection, options)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in training.injection.parameters.items():
        slow = name.startswith(("video_memory.", "mask_decoder."))
        assert rates[id(parameter)] == (1e-4 if slow else 1e-2), name


@pytest.mark.parametrize(("kind", "multimask"), [("point", True), ("mask", False)])
def test_a_clip_begins_with_a_point_or_a_mask(make_clips, kind, multimask):
    training, batch = make_clips(kind)
    assert (batch.prompts.boxes, batch.multimask) == (None, multimask)
    assert (batch.prompts.masks is None) is (kind == "point")
    tail = TrainableTail(training.sam, training.injection.first_trainable_block)
    with torch.no_grad():
        value = learn(training, tail, batch, 1)
        expected = by_hand(training, batch, multimask=multimask)
    assert value == pytest.approx(expected.item(), rel=1e-5)


def test_clips_that_do_not_fit_into_memory_are_split(clips):
    training, batch = clips
    batch = replace(batch, seeds=(1, 2))
    tail = TrainableTail(training.sam, training.injection.first_trainable_block)
    value = learn(training, tail, batch, 1)
    whole = gradients(training)
    parts = split(batch, 2)
    assert [len(part.images) for part in parts] == [CLIP, CLIP]
    assert sum(learn(training, tail, part, 1) for part in parts) == pytest.approx(value, rel=1e-5)
    assert_close(gradients(training), whole)


def samples_of(train, empty, size):
    """Training slices of a data set that holds these slices."""
    sorts = {"keep": sorted([*train, *empty]), "drop": sorted(train)}
    dataset = SimpleNamespace(slices=lambda split, empty, step: sorts[empty])
    return TrainingSamples(dataset, PromptPolicy("box", clip=size))


def test_clips_go_both_ways_and_past_the_ends_of_objects():
    train = [SliceRef("a", index) for index in (1, 2, 3)] + [SliceRef("b", 0)]
    empty = [SliceRef("a", 4), SliceRef("c", 1)]
    samples = samples_of(train, empty, 3)
    found = [[ref.index for ref in item.refs] for item in samples.items(train)]
    assert found == [[1, 2, 3], [2, 3, 4], [3, 2, 1]]
    assert samples.items(train)[0].trained == (0, 1, 2)
    assert samples.seen(train) == [SliceRef("a", index) for index in (1, 2, 3, 4)]
    # Slices that choose the best step have objects and do not train; nothing goes through them.
    assert [len(item.refs) for item in samples.items(train[:3])] == [3, 3, 3]
    with pytest.raises(ConfigError, match="no training volume"):
        samples.items(train[:2])


def test_volumes_must_be_deep_enough():
    train = [SliceRef("a", index) for index in (1, 2, 3)]
    with pytest.raises(ConfigError, match=r"no training volume has prompts\.clip=4 neighbouring"):
        samples_of(train, [], 4).items(train)


def test_adapters_record_that_memory_carries_their_objects():
    assert PromptPolicy("box", clip=4).to_dict()["clip"] == 4
    assert "clip" not in PromptPolicy("box").to_dict()
