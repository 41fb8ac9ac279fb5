"""What ``memory=8GB`` chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samadapt.config.compose import compose
from samadapt.errors import ConfigError, RunError
from samadapt.runs import memory_budget
from samadapt.runs.memory_budget import batches, changes, rehearse_apart, ways, within_memory
from samadapt.runs.part_runs import prepare_part
from samadapt.runs.plan import Phase, Rehearsal
from samadapt.system.machine import parse_bytes

GB = 10**9


@pytest.fixture
def config():
    options = ["train.batch_size=4", "train.accumulate=2", "precision=fp32"]
    return compose("photos", ["data.root=.", "device=cpu", "memory=8GB", *options])


def measured_of(config, limit, least=2.0):
    """A machine where a process holds 1 GB, each slice 2 GB more, or 0.5 GB with recomputation."""
    each = 0.5 if config.train.recompute else 2.0
    sizes = min(1, config.train.batch_size), min(2, config.train.batch_size)
    peaks = tuple(int((1 + least + each * size) * GB) for size in sizes)
    scores = int((0.5 + 0.4 * config.eval.batch_size) * GB)
    if max(*peaks, scores) > limit:
        return None
    return Rehearsal(
        trained=1,
        total=10,
        start_peak=GB,
        start_seconds=0.0,
        features=None,
        training=Phase(sizes, peaks, (1.0, 2.0)),
        scoring=Phase((1, 1), (scores, scores), (1.0, 1.0)),
        images=0,
        missing=0,
        feature_bytes=0,
        in_memory=False,
        later_bytes=0,
        stack=1,
        train=8,
        validation=1,
        test=1,
        deepest=1,
        passes=2,
        threads=1,
    )


@pytest.fixture
def machine(monkeypatch):
    """``machine(least)``: rehearsals are answered by ``measured_of``."""

    def make(least=2.0):
        monkeypatch.setattr(
            memory_budget, "rehearse_apart", lambda config, limit: measured_of(config, limit, least)
        )

    make()
    return make


def chosen(config, memory):
    found = within_memory(replace(config, memory=memory))
    return changes(replace(config, memory=None), found), found


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("16GB", []),
        ("8GB", ["train.batch_size=2", "train.accumulate=4"]),
        ("5.7GB", ["train.batch_size=1", "train.accumulate=8"]),
        (
            "4.5GB",
            [
                "train.batch_size=2",
                "train.accumulate=4",
                "train.recompute=true",
                "eval.batch_size=1",
            ],
        ),
    ],
)
def test_the_fastest_way_that_fits_is_chosen(config, machine, memory, expected, capsys):
    found, result = chosen(config, memory)
    assert found == expected
    assert result.memory is None
    assert result.train.batch_size * result.train.accumulate == 8
    said = capsys.readouterr().err
    assert f"memory={memory}: {', '.join(expected) or 'nothing has to change'}; " in said


def test_where_nothing_fits_the_least_that_is_possible_is_named(config, machine):
    with pytest.raises(ConfigError) as error:
        within_memory(replace(config, memory="3GB"))
    # 3.5 GB are needed, and a plan uses 89 % of a budget.
    assert "memory=3GB: nothing fits; the least that is possible is 4.0 GB" in str(error.value)
    assert "train.batch_size=1, train.accumulate=8, train.recompute=true" in str(error.value)
    assert chosen(config, "4GB")[0]  # that much is enough


def test_a_resumed_run_keeps_what_it_chose(config, machine):
    resumed = replace(config, resume="somewhere", memory="1GB")
    assert within_memory(resumed) == replace(resumed, memory=None)
    assert within_memory(replace(config, memory=None)) == replace(config, memory=None)


def test_ways_need_less_and_less(config):
    kept = replace(config, cache=replace(config.cache, where="memory"), precision="auto")
    found = list(ways(replace(kept, memory=None)))
    assert [changes(kept, way) for way in found] == [
        [],
        ["eval.batch_size=1", "cache.where=disk"],
        ["train.recompute=true", "eval.batch_size=1", "cache.where=disk"],
        ["train.recompute=true", "eval.batch_size=1", "cache.where=disk", "precision=bf16"],
    ]
    assert len(list(ways(config))) == 3  # the precision was asked for


def test_micro_batches_hold_whole_stacks_and_give_the_same_step(config):
    assert batches(config) == [4, 2, 1]
    six = replace(config, train=replace(config.train, batch_size=6, accumulate=1))
    assert batches(six) == [6, 3, 2, 1]
    deep = compose(
        "medical", ["peft=lora", "head=unet", "head.depth=2", "train.batch_size=8", "memory=8GB"]
    )
    assert batches(deep) == [8, 4, 2]


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * GB), ("8 GiB", 8 * 2**30), ("900mb", 9 * 10**8), ("1.5g", 15 * 10**8)],
)
def test_amounts_of_memory(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0GB", "8TBB", "1e3GB"])
def test_wrong_amounts_of_memory_are_refused(text):
    with pytest.raises(ConfigError, match=r"memory: expected an amount of memory such as 8GB"):
        compose("photos", ["data.root=.", f"memory='{text}'"])


def test_parts_of_a_larger_run_refuse_a_budget(config, tmp_path):
    with pytest.raises(ConfigError, match="memory=8GB is for finetune and plan"):
        prepare_part(config, tmp_path / "part")


@pytest.mark.slow
def test_a_rehearsal_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    options = ["model=tiny", "peft.blocks=all", "device=cpu", "train.steps=2"]
    options += [f"output.dir={tmp_path / 'runs'}"]
    config = compose("medical", [*options, "data.max_cases=1", "data.slice_step=8"])
    measured = rehearse_apart(config, 1 << 40)
    assert measured is not None
    assert measured.training is not None
    assert 10**8 < measured.training.peaks[0] < 4 * GB
    assert rehearse_apart(config, 10**7) is None  # importing torch alone needs more
    wrong = replace(config, data=replace(config.data, name="nifti", root=str(tmp_path / "no")))
    with pytest.raises(ConfigError, match="there is no such folder"):
        rehearse_apart(wrong, 1 << 40)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RunError, match="ended with 1"):
        rehearse_apart(config, 1 << 40)
