"""What the processes of a run share, without any other process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from samadapt.system import collectives, processes
from samadapt.system.launchers import Place


def test_a_single_process_gets_back_what_it_gave() -> None:
    values = torch.arange(3.0)
    assert collectives.total(values) is values
    assert collectives.own_part(values) is values
    assert processes.gather("own") == ["own"]
    assert processes.from_first("own") == "own"
    assert processes.any_of(True)
    assert not processes.any_of(False)
    assert processes.share([1, 2, 3]) == processes.block([1, 2, 3]) == [1, 2, 3]
    with processes.together():
        assert (processes.count(), processes.is_first()) == (1, True)
    processes.wait()
    processes.refuse_differences("the values", {"a": 1}, "never mind")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [0, 1, 5, 12])
def test_shares_hold_everything_once(
    monkeypatch: pytest.MonkeyPatch, size: int, length: int
) -> None:
    items = list(range(length))
    shares, blocks = [], []
    for rank in range(size):
        monkeypatch.setattr(processes, "_place", Place(rank, size))
        shares.append(processes.share(items))
        blocks.append(processes.block(items))
    assert processes.shares_joined(shares) == items
    assert [item for block in blocks for item in block] == items
    for parts in (shares, blocks):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_of_a_number_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_place", Place(0, 4))
    number = torch.tensor(3.0, requires_grad=True)
    part = collectives.own_part(number * 2)
    part.backward()
    assert part.item() == pytest.approx(6 / 4)
    assert number.grad is not None
    assert number.grad.item() == 2


@pytest.mark.slow
def test_a_missing_process_is_counted() -> None:
    program = (
        "from samadapt.system import processes\n"
        "processes.ARRIVAL_SECONDS = 2\n"
        "try:\n"
        "    with processes.together():\n"
        "        pass\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"WORLD_SIZE": "3", "RANK": "0", "MASTER_PORT": "29633"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert "ConfigError only 1 of 3 processes arrived" in done.stdout, done.stderr
