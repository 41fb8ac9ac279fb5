"""The peak of this process's memory, in all and while a block of code runs."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""On Linux, writing 5 to the first lets the peak in the second (``VmHWM``) start anew; see proc(5).
This also lowers the peak that ``resource.getrusage`` reports."""

_POLL_S = 0.005
"""How often the memory is read where the system keeps no peak that can be reset."""


_before_reset = 0
"""Bytes of the highest peak that was reset: it belongs to the process all the same."""


@dataclass
class PeakMemory:
    """The memory of this process while a block ran.

    Attributes:
        peak: largest number of bytes; 0 until the block has ended.
    """

    peak: int = 0


def peak_memory_bytes() -> int:
    """Return the peak memory of the process in bytes.

    Where the system does not report it, this is what the process holds now.
    """
    return max(_before_reset, _reported())


def _reported() -> int:
    """Return the peak that the system reports; ``_reset`` lets it start anew."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        info = psutil.Process().memory_info()
        return int(getattr(info, "peak_wset", info.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Yield what holds the peak after the block, in bytes of resident memory.

    Memory that the process held before counts as well, but not what its C library keeps of freed
    memory. Blocks must not be nested.
    """
    found = PeakMemory()
    return_free_memory()
    if _reset():
        yield found
        found.peak = _status_bytes("VmHWM")
        return
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(found, stop), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def return_free_memory() -> None:
    """Return freed memory to the system, where the C library keeps some for later (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_bytes() -> int:
    """Return the bytes of memory that this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _reset() -> bool:
    """Let the system's peak start anew; return whether it could."""
    global _before_reset
    _before_reset = max(_before_reset, _reported())
    try:
        with _RESET.open("w", encoding="ascii") as file:
            file.write("5")
        return _status_bytes("VmHWM") > 0
    except OSError:
        return False


def _status_bytes(key: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _watch(found: PeakMemory, stop: threading.Event) -> None:
    while not stop.is_set():
        found.peak = max(found.peak, memory_bytes())
        stop.wait(_POLL_S)
    found.peak = max(found.peak, memory_bytes())
