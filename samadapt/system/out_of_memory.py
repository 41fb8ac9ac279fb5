"""Recognise errors that mean that memory ran out, whichever library raises them.

PyTorch raises ``RuntimeError`` for the CPU and its own class for a GPU, NumPy and Pillow raise
``MemoryError``, the system raises ``OSError``, and a module that no longer fits in memory raises
``ImportError``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress

_SAID = re.compile(
    r"out of memory|not enough memory|insufficient memory|(?:unable|failed) to allocate"
    r"|can(?:'|no)?t allocate(?! memory in static TLS)|bad_?alloc|failed to map segment"
    r"|ALLOC_FAILED|unable to mmap",
    re.IGNORECASE,
)
_GPU = re.compile(r"\b(?:CUDA|HIP|XPU|MPS)\b|CUBLAS|CUDNN", re.IGNORECASE)
_ASKED = (
    re.compile(r"tried to allocate ([\d.]+) ?(bytes|[KMGTPE]i?B)", re.IGNORECASE),
    re.compile(r"[Uu]nable to allocate ([\d.]+) ?(bytes|[KMGTPE]i?B)"),
    re.compile(r"unable to mmap (\d+) (bytes)"),
)
_TYPES = (MemoryError, RuntimeError, OSError, ImportError, ValueError)

ADVICE = {
    "finetune": (
        "train.batch_size=1 with train.accumulate=4, train.recompute=true, peft.blocks=last:2, "
        "eval.batch_size=1, cache.where=disk, a smaller model.image_size or model, and data.tile "
        "for large pictures"
    ),
    "evaluate": "eval.batch_size=1, eval.max_cases, cache.where=disk, and data.tile for large "
    "pictures",
    "predict": "tile=1024 for large pictures, probabilities=false, and one file at a time",
    "check": "data.max_cases",
}
"""Keys that make each command need less memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or an error that caused it, means that memory ran out."""
    return any(_says_so(one) for one in _chain(error))


def explain(error: BaseException, command: str = "") -> str | None:
    """Return one message about memory that ran out, or None for any other error.

    Args:
        error: the error.
        command: the command that ran, for the advice on its keys.

    Returns:
        Which memory ran out, how much was requested, how much there is, and which keys need less.
    """
    found = next((one for one in _chain(error) if _says_so(one)), None)
    if found is None:
        return None
    text = str(found)
    on_gpu = _GPU.search(text) is not None
    asked = _asked(text)
    parts = ["out of memory: the memory of the GPU" if on_gpu else "out of memory: the main memory"]
    parts.append(" ran out")
    parts.append(f" when {asked} more were asked for" if asked else "")
    parts.append("" if on_gpu else _available())
    advice = ADVICE.get(command, "")
    parts.append(f". These need less: {advice}" if advice else ". Use smaller images or fewer")
    if on_gpu:
        parts.append("; or device=cpu, which is slower")
    return "".join(parts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors that caused it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__]


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, _TYPES) and _SAID.search(str(error)) is not None


def _asked(text: str) -> str:
    for pattern in _ASKED:
        if match := pattern.search(text):
            number, unit = match.groups()
            if unit != "bytes":
                return f"{number} {unit}"
            return f"{int(float(number)) / 2**30:.2f} GiB ({number} bytes)"
    return ""


def _available() -> str:
    with suppress(Exception):  # with no memory left, even this import may fail
        import psutil

        from samadapt.system.machine import total_memory_bytes

        total = total_memory_bytes()
        left = min(total, psutil.virtual_memory().available)
        said = f" ({left / 2**30:.1f} of {total / 2**30:.1f} GiB are available"
        if (limit := _limit()) is not None:
            said += f"; this process may use {limit / 2**30:.1f} GiB (ulimit -v)"
        return f"{said})"
    return ""


def _limit() -> int | None:
    """Return the limit of the address space of this process in bytes; None if there is none."""
    import psutil

    if not hasattr(psutil, "RLIMIT_AS"):  # not on Linux
        return None
    limit: int = psutil.Process().rlimit(psutil.RLIMIT_AS)[0]
    return None if limit == psutil.RLIM_INFINITY else limit
