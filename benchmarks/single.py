"""Measure one row in a process of its own, so that its times do not depend on earlier rows.

    python -m benchmarks.single SUITE ROW < RUN

It reads a ``Run`` as JSON and prints what the row measured as JSON. The separate process matters:
whether glibc keeps freed memory or asks the system for new pages depends on what was freed before.
One peer was twice as fast after the rows of larger models.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.harness import Run, find_rows, set_threads
from benchmarks.process import ask


def measure(run: Run, row: str) -> dict[str, Any]:
    """Run this module for a row of ``run.suite`` and return what it prints.

    Raises:
        RuntimeError: the process fails; the message ends with what it wrote to stderr.
    """
    return ask("benchmarks.single", run.suite, row, given=json.dumps(asdict(run)))


def main() -> None:
    """Measure the row and print the result."""
    suite, name = sys.argv[1:]
    run = Run(**json.load(sys.stdin))
    set_threads()
    warnings.simplefilter("ignore", FutureWarning)  # the peers raise them about each other
    torch.manual_seed(0)
    (row,) = (row for row in find_rows(suite) if row.name == name)
    print(json.dumps(row.measure(run)))


if __name__ == "__main__":
    main()
