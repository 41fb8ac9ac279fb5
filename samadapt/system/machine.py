"""The memory and the processors that this process may use, on every platform.

The limits of a container (Linux control groups, version 1 and 2) count as well as the size of the
machine, because a program that ignores them is throttled or killed. This file imports no torch.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups."""

OWN_GROUPS = Path("/proc/self/cgroup")
"""The groups of this process, one line ``number:controllers:path`` each."""

UNLIMITED_BYTES = 2**62
"""Version 1 writes a number near 2**63 where the memory is not limited."""


@dataclass(frozen=True)
class Processors:
    """How many processors this process may use.

    Attributes:
        cores: logical processors of the machine.
        allowed: processors that the process may run on (affinity).
        quota: processor time that the container grants, in processors; None if it is not limited.
    """

    cores: int
    allowed: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Number of threads that can run at the same time; a quota of 1.5 keeps 2 threads busy."""
        granted = self.allowed if self.quota is None else math.ceil(self.quota)
        return max(1, min(self.allowed, granted))


def find_processors() -> Processors:
    """Return how many processors the machine has, and how many this process may use."""
    cores = os.cpu_count() or 1
    return Processors(cores, _affinity() or cores, _cpu_quota())


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as ``8GB``, ``7.5 GiB`` or ``900MB`` names.

    Raises:
        ValueError: it names no amount above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    count = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if count < 1:
        raise ValueError(f"expected an amount of memory such as 8GB or 900MB; got {text[:40]!r}")
    return count


def total_memory_bytes() -> int:
    """Return the memory that this process may use, in bytes: the machine's or the container's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limits = [limit for limit in _memory_limits() if 0 < limit < UNLIMITED_BYTES]
    return min(total, *limits) if limits else total


def busy_processors(seconds: float = 0.5) -> float:
    """Measure how many processors other programs keep busy, while this process sleeps.

    Args:
        seconds: how long to measure.

    Returns:
        A number between 0 and the number of processors of the machine.
    """
    import psutil

    return float(psutil.cpu_percent(interval=seconds)) / 100 * (os.cpu_count() or 1)


def _affinity() -> int:
    """Return how many processors the process may run on; 0 if the system does not report it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    if sys.platform == "win32":
        import psutil

        return len(psutil.Process().cpu_affinity())
    return 0


def _cpu_quota() -> float | None:
    """Return the smallest quota among the groups of this process and their parents."""
    quotas = []
    for folder in _groups("cpu"):
        words = _words(folder / "cpu.max")  # version 2: "max 100000" or "150000 100000"
        if not words:
            quota, period = (
                _words(folder / "cpu.cfs_quota_us"),
                _words(folder / "cpu.cfs_period_us"),
            )
            words = quota[:1] + period[:1]
        if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _memory_limits() -> Iterator[int]:
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            yield from (int(word) for word in _words(folder / name)[:1] if word.isdecimal())


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups of this process that have a controller, and their parents.

    In a container, the path that the process sees may not exist below the mount. The root of the
    mount is then the group of the container, so the root is included.
    """
    for line in _lines(OWN_GROUPS):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        roots = (controllers, controller) if controllers else ("", "unified")
        for root in {GROUPS / name for name in roots}:
            inner = root / path.lstrip("/")
            while True:
                yield inner
                if inner == root or root not in inner.parents:
                    break
                inner = inner.parent


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return []
