"""Read which of several processes this one is, as torchrun, accelerate, MPI and SLURM say it.

Launchers set environment variables that tell a process its rank and the number of processes. All
of them are read here and nowhere else. What the processes tell each other is in ``processes.py``.
This file imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from samadapt.errors import ConfigError


class Launcher(NamedTuple):
    """The environment variables of a launcher.

    Attributes:
        name: name of the programs.
        size: holds the number of processes.
        rank: holds the rank of this process, from 0.
        local_rank: holds its rank among the processes of its machine.
        local_size: holds the number of processes of its machine; empty if there is none.
    """

    name: str
    size: str
    rank: str
    local_rank: str
    local_size: str = ""


# SLURM_NTASKS is the number of processes that the job may start. A batch script has it too,
# although it runs as one process, so only the size of the step (srun) counts.
LAUNCHERS = (
    Launcher("torchrun or accelerate", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    Launcher(
        "Open MPI",
        *(f"OMPI_COMM_WORLD_{what}" for what in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")),
    ),
    Launcher(
        "MVAPICH",
        *(f"MV2_COMM_WORLD_{what}" for what in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")),
    ),
    Launcher("Intel MPI or MPICH", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    Launcher("srun of SLURM", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    Launcher(
        "submitit",
        *(f"SUBMITIT_LOCAL_{what}" for what in ("NTASKS", "GLOBALID", "LOCALID")),
    ),
)

READ_BY_ACCELERATE = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "PMI_SIZE",
    "PMI_RANK",
    "MPI_LOCALNRANKS",
    "MPI_LOCALRANKID",
    *(f"{kind}_COMM_WORLD_{what}" for kind in ("OMPI", "MV2") for what in ("SIZE", "RANK")),
    *(f"{kind}_COMM_WORLD_LOCAL_{what}" for kind in ("OMPI", "MV2") for what in ("SIZE", "RANK")),
)

PORT = 29500
"""The port where processes meet unless ``MASTER_PORT`` names another; torch's own default."""


class Place(NamedTuple):
    """Which of several processes this one is.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, which is that of its GPU.
        launcher: name of the program that started them; empty for a single process.
        address: name of the machine of process 0.
        port: the port where the processes meet.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = ""
    address: str = ""
    port: int = PORT


def find_place(environ: Mapping[str, str] | None = None) -> Place:
    """Return which process this is, as the environment says.

    Args:
        environ: the environment; None takes that of the process.

    Raises:
        ConfigError: the variables contradict each other, or do not say where the processes meet.
    """
    environ = os.environ if environ is None else environ
    for launcher in LAUNCHERS:
        # With its PMI plugin SLURM sets these two as well, but says more in its own variables.
        is_slurm = environ.get("SLURM_STEP_NUM_TASKS", "") == environ.get("PMI_SIZE")
        if launcher.size == "PMI_SIZE" and is_slurm and "MPI_LOCALRANKID" not in environ:
            continue
        size, rank = _number(environ, launcher.size), _number(environ, launcher.rank)
        if size > 1:
            if launcher.rank not in environ or not 0 <= rank < size:
                raise ConfigError(
                    f"{launcher.size}={environ[launcher.size]} in the environment, as "
                    f"{launcher.name} sets it, but {launcher.rank} is "
                    f"{environ.get(launcher.rank, 'missing')}: expected 0 to {size - 1}; start "
                    f"with torchrun, or unset {launcher.size} if it is left over from another "
                    "program"
                )
            address, port = _meeting_place(environ, launcher, size)
            local_rank = _number(environ, launcher.local_rank)
            return Place(rank, size, local_rank, launcher.name, address, port)
        # A batch script of SLURM has the rank 0 and no size.
        if rank > 0 and launcher.size not in environ:
            raise ConfigError(
                f"{launcher.rank}={environ[launcher.rank]} in the environment, as {launcher.name} "
                f"sets it, but {launcher.size} is missing; start with torchrun, or unset "
                f"{launcher.rank} if it is left over from another program"
            )
    return Place()


def warning_of_launcher(environ: Mapping[str, str] | None = None) -> str:
    """Return a warning if a launcher was asked for several processes and started one; else "".

    Args:
        environ: the environment; None takes that of the process.
    """
    environ = os.environ if environ is None else environ
    # accelerate names a meeting place only where it was asked for more than one process.
    asked = environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and (
        environ.get("MASTER_ADDR") and environ.get("MASTER_PORT")
    )
    if not asked or find_place(environ).size > 1:
        return ""
    return (
        "warning: accelerate was asked for several processes on CPUs and started a single one; use "
        "torchrun --nproc-per-node N -m samadapt ..., or accelerate launch --cpu with "
        "--mpirun_hostfile"
    )


def refuse_several_processes(environ: Mapping[str, str] | None = None) -> None:
    """Check that this is the only process, for commands that several would only repeat.

    Args:
        environ: the environment; None takes that of the process.

    Raises:
        ConfigError: there are several.
    """
    place = find_place(environ)
    if place.size > 1:
        raise ConfigError(
            f"this is one of {place.size} processes, started by {place.launcher}, "
            "and this command runs as one; finetune, evaluate, predict and masks share their work"
        )


def _meeting_place(environ: Mapping[str, str], launcher: Launcher, size: int) -> tuple[str, int]:
    """Return the machine of process 0 and the port where all processes meet."""
    port = _number(environ, "MASTER_PORT") or PORT
    if address := environ.get("MASTER_ADDR", "").strip():
        return address, port
    if launcher.name == "submitit" and "MASTER_PORT" not in environ:
        port = 20000 + _number(environ, "SUBMITIT_LOCAL_JOB_ID") % 20000
    # "node[01-04,07],other": the first machine has process 0.
    nodes = environ.get("SLURM_STEP_NODELIST", "") if "SLURM" in launcher.name else ""
    if first := re.match(r"([^\[,]+)(?:\[(\d+))?", nodes):
        if "MASTER_PORT" not in environ:  # two jobs on one machine must not meet each other
            port = 20000 + _number(environ, "SLURM_JOB_ID") % 20000
        return first[1] + (first[2] or ""), port
    if launcher.local_size and _number(environ, launcher.local_size) not in (0, size):
        raise ConfigError(
            f"{launcher.name} started {size} processes on several machines; name the machine of "
            "process 0 with the environment variable MASTER_ADDR"
        )
    return "127.0.0.1", port


@contextmanager
def as_only_process() -> Iterator[None]:
    """Hide the variables of launchers, and accelerate's own, from accelerate while it starts.

    With them it would wait for other processes, or choose another device and precision than the
    configuration does.
    """
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name in READ_BY_ACCELERATE or name.startswith("ACCELERATE_")
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def _number(environ: Mapping[str, str], name: str) -> int:
    """Return the value of a variable as a number; 0 if it is not a number."""
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else 0
