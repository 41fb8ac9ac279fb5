"""Which of several processes this one is, whatever a launcher set; some commands run as one."""

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
from samadapt.system.launchers import (
    LAUNCHERS,
    Place,
    as_only_process,
    find_place,
    refuse_several_processes,
    warning_of_launcher,
)

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}

SEVERAL = [
    ({"WORLD_SIZE": "2", **TORCHRUN}, Place(0, 2, 0, "torchrun or accelerate", "127.0.0.1", 29511)),
    (
        {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "node0"},
        Place(3, 4, 1, "torchrun or accelerate", "node0", 29500),
    ),
    (
        {
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        },
        Place(1, 2, 1, "Open MPI", "127.0.0.1", 29500),
    ),
    (
        {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        Place(1, 2, 1, "Intel MPI or MPICH", "127.0.0.1", 29500),
    ),
    (
        {"MV2_COMM_WORLD_SIZE": "3", "MV2_COMM_WORLD_RANK": "2", "MASTER_PORT": "4000"},
        Place(2, 3, 0, "MVAPICH", "127.0.0.1", 4000),
    ),
    (
        {
            "SLURM_STEP_NUM_TASKS": "4",
            "SLURM_PROCID": "2",
            "SLURM_LOCALID": "0",
            "SLURM_STEP_NODELIST": "gpu[007-008,012]",
            "SLURM_JOB_ID": "61234",
            "SLURM_NTASKS": "4",
        },
        Place(2, 4, 0, "srun of SLURM", "gpu007", 21234),
    ),
    (
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "alpha,beta"},
        Place(0, 2, 0, "srun of SLURM", "alpha", 20000),
    ),
    (  # SLURM with its PMI plugin
        {
            "PMI_SIZE": "8",
            "PMI_RANK": "5",
            "SLURM_STEP_NUM_TASKS": "8",
            "SLURM_PROCID": "5",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NODELIST": "node[01-02]",
        },
        Place(5, 8, 1, "srun of SLURM", "node01", 20000),
    ),
    (  # Intel's mpirun starts its proxies by srun
        {
            "PMI_SIZE": "2",
            "PMI_RANK": "1",
            "MPI_LOCALRANKID": "1",
            "MPI_LOCALNRANKS": "2",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_PROCID": "0",
        },
        Place(1, 2, 1, "Intel MPI or MPICH", "127.0.0.1", 29500),
    ),
]

UNCLEAR = [
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": "2", "RANK": "2"},
    {"RANK": "1"},
    {"OMPI_COMM_WORLD_RANK": "1"},
    {"PMI_RANK": "1"},
    {"MV2_COMM_WORLD_SIZE": "2"},
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


@pytest.mark.parametrize(("variables", "place"), SEVERAL)
def test_the_place_of_a_process_is_read(variables: dict[str, str], place: Place) -> None:
    assert find_place(variables) == place
    with pytest.raises(ConfigError, match=f"this is one of {place.size} processes, started by"):
        refuse_several_processes(variables)


@pytest.mark.parametrize("variables", UNCLEAR, ids=named)
def test_variables_that_contradict_each_other_are_named(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"in the environment, as .* sets it, but") as caught:
        find_place(variables)
    assert str(caught.value).partition("=")[0] in variables


def test_processes_on_several_machines_must_say_where_they_meet() -> None:
    variables = {
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        find_place(variables)
    assert find_place(variables | {"MASTER_ADDR": "first"}).address == "first"


def test_accelerate_that_starts_one_process_in_place_of_several_is_noticed() -> None:
    asked = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert "--mpirun_hostfile" in warning_of_launcher(asked)
    for variables in (
        {},
        {"ACCELERATE_USE_CPU": "True"},  # one process was asked for
        asked | {"PMI_SIZE": "2", "PMI_RANK": "0"},
        asked | {"ACCELERATE_USE_CPU": "False"},
    ):
        assert warning_of_launcher(variables) == ""


@pytest.mark.parametrize("variables", ALONE, ids=named)
def test_a_launcher_of_one_process_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """accelerate starts one process at once, on the given device."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    refuse_several_processes(variables)
    for name in {name for _, *names in LAUNCHERS for name in names}:
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


def samadapt(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samadapt", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        encoding="utf-8",
    )


def test_the_command_refuses_before_it_loads_anything() -> None:
    started = time.perf_counter()
    done = samadapt(SEVERAL[0][0], "check", "data=folder", "data.root=nowhere")
    seconds = time.perf_counter() - started
    assert done.returncode == 2
    assert done.stderr.startswith("samadapt: error: this is one of 2 processes")
    assert "Traceback" not in done.stderr
    assert seconds < 10  # 0.1 s on a quiet machine; loading torch alone takes longer on a busy one


def test_help_is_shown_under_a_launcher_of_several_processes() -> None:
    assert samadapt(SEVERAL[0][0], "curve", "--help").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("variables", [ALONE[1], ALONE[2], ALONE[6], ALONE[8]], ids=named)
def test_a_launched_process_that_is_alone_trains(tmp_path: Path, variables: dict[str, str]) -> None:
    y, x = np.mgrid[:64, :64]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(5):
            disc = (y - 32) ** 2 + (x - 20 - 4 * i) ** 2 < 150
            Image.fromarray((disc * 255).astype("uint8")).save(tmp_path / folder / f"a{i}.png")
    done = samadapt(
        variables,
        "finetune",
        "recipe=photos",
        "model=tiny",
        "peft.blocks=all",
        "train.steps=1",
        f"data.root={tmp_path}",
        f"output.dir={tmp_path / 'runs'}",
    )
    assert done.returncode == 0, done.stderr
