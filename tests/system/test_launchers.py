"""One of several processes is refused at once; a single one runs, whatever a launcher set."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samadapt.errors import ConfigError
from samadapt.system.launchers import LAUNCHERS, as_only_process, refuse_several_processes

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}

SEVERAL = [
    {"WORLD_SIZE": "2", **TORCHRUN},
    {"WORLD_SIZE": "2"},
    {"RANK": "1"},
    {"LOCAL_RANK": "3"},
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
    {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
    {"PMI_SIZE": "2", "PMI_RANK": "0"},
    {"PMIX_RANK": "1"},
    {"MV2_COMM_WORLD_SIZE": "2"},
    {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"},
]

ALONE = [
    {},
    {"WORLD_SIZE": "1", **TORCHRUN},
    {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},  # nowhere to meet
    {"LOCAL_RANK": "-1"},
    {"WORLD_SIZE": "", "RANK": ""},
    {"WORLD_SIZE": "many"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_UNIVERSE_SIZE": "8"},
    {"PMI_SIZE": "1", "PMI_RANK": "0", "PMIX_RANK": "0"},
    {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script is one process
    {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "meta", "WORLD_SIZE": "1"},
]


def named(variables: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in variables.items())


@pytest.mark.parametrize("variables", SEVERAL, ids=named)
def test_one_of_several_is_refused(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="in the environment: this is") as caught:
        refuse_several_processes(variables)
    variable = str(caught.value).partition("=")[0]
    assert variable in variables


@pytest.mark.parametrize("variables", ALONE, ids=named)
def test_a_launcher_of_one_process_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """accelerate starts one process at once, on the given device."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    refuse_several_processes(variables)
    for name in {n for launcher in LAUNCHERS for n in (*launcher.sizes, *launcher.ranks)}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with as_only_process():
            accelerator = Accelerator(mixed_precision="no", cpu=True)
        assert accelerator.num_processes == 1
        assert accelerator.device == torch.device("cpu")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert {name: os.environ[name] for name in variables} == variables


def finetune(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samadapt", "finetune", "recipe=photos", "model=tiny", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        encoding="utf-8",
    )


def test_the_command_refuses_before_it_loads_anything() -> None:
    started = time.perf_counter()
    done = finetune(SEVERAL[0], "data.root=nowhere")
    seconds = time.perf_counter() - started
    assert done.returncode == 2
    assert done.stderr.startswith("samadapt: error: WORLD_SIZE=2 in the environment: ")
    assert "Traceback" not in done.stderr
    assert seconds < 10  # 0.1 s on a quiet machine; loading torch alone takes longer on a busy one


def test_help_is_shown_under_a_launcher_of_several_processes() -> None:
    assert finetune(SEVERAL[0], "--help").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("variables", [ALONE[1], ALONE[2], ALONE[6], ALONE[8]], ids=named)
def test_a_launched_process_that_is_alone_trains(tmp_path: Path, variables: dict[str, str]) -> None:
    y, x = np.mgrid[:64, :64]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(5):
            disc = (y - 32) ** 2 + (x - 20 - 4 * i) ** 2 < 150
            Image.fromarray((disc * 255).astype("uint8")).save(tmp_path / folder / f"a{i}.png")
    done = finetune(
        variables,
        "peft.blocks=all",
        "train.steps=1",
        f"data.root={tmp_path}",
        f"output.dir={tmp_path / 'runs'}",
    )
    assert done.returncode == 0, done.stderr
