"""Batches that do not fit into memory are learnt in parts, with the gradients of the whole."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from samadapt.training import loop
from samadapt.training.batch_parts import split, stack_count
from samadapt.training.loop import LoopOptions


def trained(tools, folder, kind, limit, accumulate=1, **options):
    """Train three steps on a machine whose memory holds ``limit`` slices at once."""
    samples = [tools.make_sample(index, objects=1 + index % 3) for index in range(7)]
    training = tools.make_training(
        folder, kind=kind, samples=samples, batch_size=4, dtype=torch.float64, **options
    )
    learn, said, sizes = loop.learn, [], []

    def within(training, tail, batch, accumulate):
        found = learn(training, tail, batch, accumulate)
        sizes.append(stack_count(batch))
        if stack_count(batch) > limit:  # after gradients were added, which must not count
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found

    training.progress.say = said.append
    with patch.object(loop, "learn", within):
        options = LoopOptions(steps=3, accumulate=accumulate, warmup_steps=1, validate_every=0)
        state = loop.train(training, options, None)
    weights = torch.cat([p.detach().flatten() for p in training.injection.parameters.values()])
    return weights, training.parts, [text for text in said if "memory" in text], sizes, state


@pytest.mark.parametrize(
    ("kind", "accumulate"),
    [
        ("semantic", 1),
        *(
            pytest.param(kind, accumulate, marks=pytest.mark.slow)
            for kind, accumulate in (("box", 1), ("interactive", 1), ("semantic", 2), ("box", 2))
        ),
    ],
)
def test_halved_batches_train_what_whole_ones_do(tools, tmp_path, kind, accumulate):
    whole, parts, said, sizes, _ = trained(tools, tmp_path / "whole", kind, 4, accumulate)
    assert (parts, said, set(sizes)) == (1, [], {4})
    for limit, expected in ((2, 2), (1, 4)):
        halved, parts, said, sizes, state = trained(
            tools, tmp_path / str(limit), kind, limit, accumulate
        )
        assert parts == expected
        assert len(said) == (1 if expected == 2 else 2)
        assert f"goes through the model in {expected} parts" in said[-1]
        assert sizes[-1] == limit
        assert state.skipped == 0
        # The clicks of later rounds lie where the masks of earlier ones are wrong.
        assert (halved - whole).abs().max() < (1e-8 if kind == "interactive" else 1e-9)


@pytest.mark.slow
def test_dropout_is_the_same_in_parts(tools, tmp_path):
    """Both passes of a part hide the same numbers, so its sums are those of its gradients."""
    weights = [
        trained(tools, tmp_path / str(run), "semantic", 2, dropout=0.5)[0] for run in range(2)
    ]
    assert torch.equal(*weights)


def test_a_single_slice_that_does_not_fit_ends_the_run(tools, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        trained(tools, tmp_path, "box", 0)


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_parts_hold_everything_once(tools, tmp_path, parts):
    training = tools.make_training(tmp_path, kind="interactive", batch_size=5)
    batch = next(training.batches)
    found = split(batch, parts)
    assert len(found) == min(parts, 5)
    assert [name for part in found for name in part.names] == batch.names
    assert torch.equal(torch.cat([part.targets for part in found]), batch.targets)
    assert torch.equal(torch.cat([part.prompts.boxes for part in found]), batch.prompts.boxes)
    assert torch.equal(torch.cat([part.rounds.by_box for part in found]), batch.rounds.by_box)
    assert sum(part.share for part in found) == pytest.approx(1)
    assert [key for part in found for key in part.keys] == batch.keys
