"""Two processes train what one does: torchrun starts them, gloo connects them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("several_processes.py")
_spec = importlib.util.spec_from_file_location("several_processes", WORKER)
worker = importlib.util.module_from_spec(_spec)
sys.modules["several_processes"] = worker
_spec.loader.exec_module(worker)


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", str(count), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(2, str(WORKER), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", worker.CASES, ids=lambda case: case.name)
def test_two_processes_train_what_one_does(two, tmp_path, case):
    shared = torch.load(two / f"{case.name}.pt", weights_only=True)
    alone = worker.results(tmp_path, case)
    assert torch.equal(shared["step"], alone["step"])
    away = {name: (shared[name] - alone[name]).abs().max() for name in ("weights", "masks")}
    gradient = (shared["gradient"] - alone["gradient"]).norm() / alone["gradient"].norm()
    assert alone["gradient"].norm() > 0
    if case.dtype == torch.float64:
        assert max(away["weights"], gradient) < 1e-9
        assert away["masks"] < 1e-9 * alone["masks"].abs().max()
    elif case.dtype == torch.float16:
        assert gradient < 1e-2
        assert away["masks"] < 5e-2 * alone["masks"].abs().max()
    else:
        # AdamW turns rounding into whole steps where the true gradient is zero.
        assert gradient < 1e-5
        assert away["masks"] < 1e-3 * alone["masks"].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("case", worker.LOSS_CASES, ids=lambda case: "-".join(map(str, case)))
def test_parts_of_a_loss_add_up_to_the_loss_of_the_batch(two, case):
    shared = torch.load(two / f"loss-{'-'.join(map(str, case))}.pt", weights_only=True)
    alone = worker.loss_of(*case)
    assert alone["gradient"].abs().max() > 0
    assert abs(shared["loss"] - alone["loss"]) < 1e-12
    assert (shared["gradient"] - alone["gradient"]).abs().max() < 1e-12


@pytest.mark.slow
def test_nan_in_one_process_skips_the_step_in_all(two, tmp_path):
    alone = worker.results(tmp_path, worker.NAN_CASE, nan_at=2)
    assert alone["step"].tolist() == [5, 1]
    for rank in range(2):
        shared = torch.load(two / f"nan-{rank}.pt", weights_only=True)
        assert shared["step"].tolist() == [5, 1]
        assert (shared["weights"] - alone["weights"]).abs().max() < 1e-9
