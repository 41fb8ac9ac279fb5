"""The number of slices in a batch that ``auto`` means, for pictures, volumes and a U-Net."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from samadapt.config.compose import compose, from_yaml
from samadapt.config.train import Train
from samadapt.data.stacks import AUTO_STACK
from samadapt.errors import ConfigError, DataError
from samadapt.runs.batch_size import batch_size_for, with_batch_size

AUTO = "train.batch_size=auto"
DENSE = ("prompts=semantic", "head=unet", "head.width=4", "head.scales=2", AUTO)


def data(longest, stack=1):
    return SimpleNamespace(stack=stack, longest_side=lambda: longest)


@pytest.mark.parametrize(
    ("longest", "stack", "options", "expected"),
    [
        (50, 8, (), 8),  # one stack, whatever the size
        (500, 3, (), 3),
        (84, 1, (), 8),
        (168, 1, (), 7),
        (256, 1, (), 3),
        (1024, 1, (), 2),  # the head sees 320 of them
        (1024, 1, ("head.size=160",), 7),
        (84, 1, ("baseline=unet",), 12),
        (256, 1, ("baseline=unet",), 6),
        (448, 1, ("baseline=unet",), 2),
        (4000, 1, ("baseline=unet",), 2),
        (4000, 1, ("baseline=unet", "baseline.image_size=256"), 6),
        (4000, 1, ("baseline=unet", "train.steps=9"), 12),  # time does not matter
    ],
)
def test_large_pictures_come_in_small_batches(recipe, longest, stack, options, expected):
    limit = () if "train.steps=9" in options else ("train.steps=null", "train.max_seconds=60")
    config = compose(str(recipe), ["data.root=here", *DENSE, *limit, *options])
    assert batch_size_for(config, data(longest, stack)) == expected


def test_a_number_stays_and_reads_no_data(recipe):
    config = compose(str(recipe), ["data.root=nowhere", "train.batch_size=5"])
    assert with_batch_size(config) is config
    with pytest.raises(DataError, match="nowhere"):
        with_batch_size(compose(str(recipe), ["data.root=nowhere", AUTO]))


def test_a_number_must_hold_whole_stacks(recipe):
    options = ["data.root=nowhere", "peft=adapter", "peft.depth=3", "train.batch_size=4"]
    with pytest.raises(ConfigError, match=r"multiple of 3.*got 4; use 6"):
        with_batch_size(compose(str(recipe), options))


def test_nothing_reads_a_number_that_is_not_settled():
    with pytest.raises(ConfigError, match="batch_size=auto"):
        _ = Train(batch_size="auto").slices


def test_a_run_of_pictures_keeps_the_number_that_it_used(make_pictures, run):
    result = run(make_pictures(), *DENSE, "train.steps=2")
    kept = from_yaml(result.run_dir / "config.yaml")
    assert kept.train.batch_size == 8
    assert result.summary["last_step"] == 2


def test_a_run_of_volumes_has_one_stack_a_step(make_scans, run):
    root = make_scans()  # of four slices each
    options = ("data.name=nifti", "head.depth=auto", "train.steps=2", "train.checkpoint_every=1")
    result = run(root, *DENSE, *options)
    kept = from_yaml(result.run_dir / "config.yaml")
    assert kept.head.depth == "auto"
    assert kept.train.batch_size == AUTO_STACK


def test_a_baseline_keeps_its_number_for_a_resumed_run(make_pictures, run):
    options = ("baseline=unet", "baseline.filters=4", "train.steps=null", "train.max_seconds=3")
    result = run(make_pictures(), *options)
    kept = from_yaml(result.run_dir / "config.yaml")
    assert kept.baseline.batch_size == kept.train.batch_size == 12
