"""Refuse to run as one of several processes (torchrun, MPI, SLURM): samadapt trains in one process.

Launchers set environment variables that tell a process its rank and the number of processes. If
there are several, the program stops before it would wait for the others. A single process runs,
whatever the variables say about hosts and ports. This file imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from samadapt.errors import ConfigError


class Launcher(NamedTuple):
    """The environment variables of a launcher.

    Attributes:
        name: name of the programs.
        sizes: variables that hold the number of processes.
        ranks: variables that hold the rank of this process, from 0. They are used only where no
            size is given.
    """

    name: str
    sizes: tuple[str, ...]
    ranks: tuple[str, ...]


# SLURM_NTASKS is the number of processes that the job may start. A batch script has it too,
# although it runs as one process, so only the size of the step (srun) counts.
LAUNCHERS = (
    Launcher("torchrun or accelerate", ("WORLD_SIZE", "LOCAL_WORLD_SIZE"), ("RANK", "LOCAL_RANK")),
    Launcher("Open MPI", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_RANK",)),
    Launcher("MPI", ("PMI_SIZE", "MPI_LOCALNRANKS"), ("PMI_RANK", "PMIX_RANK", "MPI_LOCALRANKID")),
    Launcher("MVAPICH", ("MV2_COMM_WORLD_SIZE",), ("MV2_COMM_WORLD_RANK",)),
    Launcher("srun of SLURM", ("SLURM_STEP_NUM_TASKS",), ("SLURM_PROCID",)),
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


def refuse_several_processes(environ: Mapping[str, str] | None = None) -> None:
    """Check that this is the only process.

    Args:
        environ: the environment; None takes that of the process.

    Raises:
        ConfigError: there are several; the message names the variable that says so.
    """
    environ = os.environ if environ is None else environ
    for name, sizes, ranks in LAUNCHERS:
        counts = {size: _number(environ, size) for size in sizes}
        first = next((size for size, count in counts.items() if count > 1), None)
        if first is not None:
            raise _refusal(first, environ, f"this is one of {counts[first]} processes", name)
        if not any(counts.values()):
            for rank in ranks:
                if _number(environ, rank) > 0:
                    raise _refusal(rank, environ, "this is not the only process", name)


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


def _refusal(variable: str, environ: Mapping[str, str], what: str, launcher: str) -> ConfigError:
    return ConfigError(
        f"{variable}={environ[variable]} in the environment: {what}, started by {launcher}, and "
        "samadapt trains in a single process; start one process, or unset the variable if it is "
        "left over from another program"
    )


def _number(environ: Mapping[str, str], name: str) -> int:
    """Return the value of a variable as a number; 0 if it is not a number."""
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else 0
