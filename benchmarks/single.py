"""One row in a process of its own: its times do not depend on the rows before it.

    python -m benchmarks.single SUITE ROW < RUN

Takes a ``Run`` as JSON and prints, as JSON, what the row measured. It matters: whether glibc keeps
what was freed or asks the system for new pages depends on what was freed before, and made one peer
twice as fast behind larger models' rows.
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
        RuntimeError: when the process fails, with the end of its messages.
    """
    return ask("benchmarks.single", run.suite, row, given=json.dumps(asdict(run)))


def main() -> None:
    """Measure the row, print."""
    suite, name = sys.argv[1:]
    run = Run(**json.load(sys.stdin))
    set_threads()
    warnings.simplefilter("ignore", FutureWarning)  # of the peers, about one another
    torch.manual_seed(0)
    (row,) = (row for row in find_rows(suite) if row.name == name)
    print(json.dumps(row.measure(run)))


if __name__ == "__main__":
    main()
