"""Choose how OpenMP's threads wait and how many there are, where the user has not chosen.

torch and the compiled attention share one OpenMP, which reads its settings once, when it is loaded.
So ``import samadapt`` sets them before torch is imported. After torch, this changes nothing.

GNU's threads spin at each barrier until the others arrive. That is good while each thread has a
processor of its own. Beside one other busy process, a thread spins through the whole time slice
that the thread it waits for does not get: LiteMedSAM's encoder took 15 times as long. With a short
spin it takes 2.4 times as long there, and up to 1.08 times as long on an idle machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass

from samadapt.system.machine import Processors, find_processors

SPIN_COUNT = "3000"
"""Iterations of the waiting loop before a thread sleeps; they take some microseconds."""

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables with which users choose how threads wait, in GNU's, LLVM's or Intel's OpenMP."""

COUNTING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables with which users choose the number of threads; torch reads both."""


@dataclass(frozen=True)
class ThreadSettings:
    """What was found and done when samadapt was imported.

    Attributes:
        ours: variables that samadapt has set, with their values.
        users: variables that were set before, with their values.
        too_late: whether torch was loaded before samadapt.
        processors: the processors that the process may use.
    """

    ours: dict[str, str]
    users: dict[str, str]
    too_late: bool
    processors: Processors

    def describe_threads(self, threads: int) -> str:
        """Describe how many threads torch has, and why.

        Args:
            threads: what ``torch.get_num_threads()`` returns.
        """
        has, text = self.processors, f"{threads} thread" + ("s" if threads > 1 else "")
        if chosen := [f"{name}={self.users[name]}" for name in COUNTING if name in self.users]:
            return f"{text}: {' '.join(chosen)} is set"
        if has.quota is not None and has.quota < has.allowed:
            limit = f"the container grants the time of {has.quota:g} processors"
            return f"{text}: {limit}" + (", but torch was loaded first" if self.too_late else "")
        if has.allowed < has.cores:
            return f"{text}: the process may run on {has.allowed} of {has.cores} processors"
        return f"{text}: torch's default for {has.cores} processors"

    def describe_waiting(self) -> str:
        """Describe how threads wait at barriers, and why."""
        if chosen := [f"{name}={self.users[name]}" for name in WAITING if name in self.users]:
            return f"threads wait as {' '.join(chosen)} says"
        if self.too_late:
            return "threads wait as OpenMP does by default: torch was loaded before samadapt"
        return f"threads wait briefly and then sleep (GOMP_SPINCOUNT={SPIN_COUNT})"


def choose(
    environ: MutableMapping[str, str], processors: Processors, loaded: bool
) -> ThreadSettings:
    """Set the variables that the user has not set.

    Args:
        environ: the environment; it is changed in place, unless torch is loaded.
        processors: the processors that the process may use.
        loaded: whether torch is loaded.
    """
    users = {name: environ[name] for name in (*WAITING, *COUNTING) if environ.get(name)}
    ours = {}
    if not loaded:
        if not users.keys() & set(WAITING):
            ours["GOMP_SPINCOUNT"] = SPIN_COUNT
        if not users.keys() & set(COUNTING) and processors.usable < processors.allowed:
            ours["OMP_NUM_THREADS"] = str(processors.usable)
    environ.update(ours)
    return ThreadSettings(ours, users, loaded, processors)


settings = choose(os.environ, find_processors(), "torch" in sys.modules)
"""The settings of this process."""
