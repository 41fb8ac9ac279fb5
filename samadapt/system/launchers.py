"""Programs that start several processes (torchrun, MPI, SLURM): samadapt trains in one process.

They tell each process its place by environment variables. A process that is one of several is
refused before it waits for the others; one that is alone runs, whatever the variables say of hosts
and ports. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from samadapt.errors import ConfigError


class Launcher(NamedTuple):
    """How a launcher tells a process its place.

    Attributes:
        name: of the programs.
        sizes: variables with the number of processes.
        ranks: variables with this process's number, from 0; they count where no size is given.
    """

    name: str
    sizes: tuple[str, ...]
    ranks: tuple[str, ...]


# SLURM_NTASKS is what the job may start. A batch script has it too, and runs as one process, so
# only the size of the step (srun) counts.
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
    """Refuse to be one of several processes.

    Args:
        environ: the environment; the process's own when None.

    Raises:
        ConfigError: naming the variable that says so.
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
    """Hide from accelerate what launchers say, and its own settings, while it starts.

    It would wait for other processes, or take another device and precision than the configuration.
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
    """Return a variable as a number; 0 where it is none."""
    text = environ.get(name, "").strip()
    return int(text) if text.isdecimal() and len(text) < 10 else 0
