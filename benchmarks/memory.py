"""Measure the peak memory of one contender of one row, in a process of its own.

    python -m benchmarks.memory SUITE ROW CONTENDER

It prints two numbers as JSON: the resident memory once model and input are built (the weights and
everything else), and the peak of one call above that.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Comparison, find_rows, set_threads

STATUS = Path("/proc/self/status")


def above_the_weights(call: Callable[[], Any], device: str) -> dict[str, int | None]:
    """Return ``before_bytes``, resident before the call, and ``peak_bytes``, the peak above that.

    The values are None where the system does not report them (Linux and CUDA do).
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return {
            "before_bytes": before,
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }
    if not STATUS.exists():
        return {"before_bytes": None, "peak_bytes": None}
    with suppress(AttributeError):  # a C library without it may keep freed memory resident
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the high-water mark
    before = _status("VmRSS")
    call()
    return {"before_bytes": before, "peak_bytes": _status("VmHWM") - before}


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    if found is None:
        raise RuntimeError(f"{STATUS} holds no {key}")
    return 1024 * int(found[1])


def main() -> None:
    """Build the contender, call it once, and print what was measured."""
    suite, name, contender = sys.argv[1:]
    set_threads()
    row = next(row for row in find_rows(suite) if row.name == name)
    if not isinstance(row, Comparison):
        raise SystemExit(f"{name}: only comparisons have contenders")
    print(json.dumps(above_the_weights(row.contenders[contender](), row.device)))


if __name__ == "__main__":
    main()
