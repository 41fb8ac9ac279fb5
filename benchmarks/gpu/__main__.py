"""Measure on a GPU, in minutes: exactness, speed and memory of samadapt beside its peers.

    python -m benchmarks.gpu [--minutes N] [--rows PATTERN] [--output FILE]

The rows of most worth come first, and each is written as soon as it is measured. Nothing is
downloaded. A row whose packages are missing is named and skipped, and versions may be any. It ends
with 1 if a row failed or samadapt was less exact than the row demands.

    python -m benchmarks.gpu --device cpu --quick

tries the rows on tiny models without a GPU, and ``--add FILE`` adds runs that another machine wrote
to the results here.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, results
from benchmarks.gpu.contest import Device, reason, release
from benchmarks.gpu.plan import rows as planned
from benchmarks.harness import Row, Run, set_threads
from benchmarks.table import row_text

OWN = ("samadapt", "benchmarks")

PUBLISHED = """\
Published by segment-anything-fast (experiments/p4d_results, October 2023), not measured here:
images a second on one A100 of 40 GB, encoder and decoder, on the images of COCO 2017.
  ViT-B, batch 32: 50.1 in bf16 compiled, 65.2 with SDPA, 84.6 with its Triton kernel, 94.9 with
    nested tensors, 92.7 with int8; 6.2 GiB with the kernel (18.1 with SDPA).
  ViT-H, batch 8: 2.8 in fp32 as published by Meta, 14.9 in bf16, 19.7 compiled, 21.9 with SDPA,
    22.9 with its kernel, 24.9 with int8; 4.6 GiB with the kernel (7.9 with SDPA, 28.8 in fp32)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows, write each at once, and print the table and what was left out."""
    chosen = _parse(arguments)
    if chosen.add:
        for other in results.read(chosen.add):
            results.append(chosen.output, other)
        return 0
    device: Device = chosen.device
    rows = [
        row for row in planned(device, quick=chosen.quick) if fnmatch.fnmatch(row.name, chosen.rows)
    ]
    if chosen.list or not rows:
        print("\n".join(row.name for row in rows) or f"no row matches {chosen.rows!r}")
        return 0 if rows else 2
    deadline = time.monotonic() + 60 * chosen.minutes
    if not chosen.quick:
        set_threads()
    warnings.simplefilter("ignore", FutureWarning)  # the peers raise them about each other
    torch.manual_seed(0)
    rooflines = {} if chosen.quick else {device: machine.roofline(device)}
    for name, found in rooflines.items():
        print(name, {key: round(value, 1) for key, value in found.items()}, flush=True)
    entry = {
        "time": datetime.now(UTC).isoformat(),
        "suite": "gpu",
        "repeat": chosen.repeat,
        **machine.describe(),
        "rooflines": rooflines,
        "whole": False,
        "skipped": {},
        "failed": {},
        "rows": [],
    }
    run = Run("gpu", chosen.repeat, rooflines)
    for row in rows:
        if time.monotonic() > deadline:
            entry["skipped"][row.name] = f"the {chosen.minutes:g} minutes are over"
            continue
        _measure(row, run, entry)
        release(device)
        results.update(chosen.output, entry)
    entry["whole"] = chosen.rows == "*" and len(entry["rows"]) == len(rows)
    results.update(chosen.output, entry)
    print(f"wrote {len(entry['rows'])} rows to {chosen.output}\n\n{PUBLISHED}\n")
    return _conclude(entry)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models: a trial of the rows")
    parser.add_argument("--minutes", type=float, default=7.5, help="no row starts after them")
    parser.add_argument("--repeat", type=int, default=10, help="most repetitions of a contender")
    parser.add_argument("--rows", default="*", help="which rows, such as 'attention*'")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--add", type=Path, metavar="FILE", help="add its runs to the output")
    parser.add_argument("--output", type=Path, default=results.FOLDER / "gpu.json")
    chosen = parser.parse_args(arguments)
    measures = not (chosen.list or chosen.add)
    if measures and chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here; --device cpu --quick tries the rows without")
    return chosen


def _measure(row: Row, run: Run, entry: dict[str, Any]) -> None:
    """Measure a row into the entry, or say there why it is skipped or failed."""
    started = time.monotonic()
    try:
        found = row.measure(run)
    except Exception as error:
        outside = isinstance(error, ModuleNotFoundError) and str(error.name).split(".")[0]
        if outside and outside not in OWN:
            entry["skipped"][row.name] = reason(error)
            print(f"{row.name}\n  skipped: {reason(error)}\n", flush=True)
            return
        traceback.print_exc()
        entry["failed"][row.name] = reason(error)
        print(f"{row.name}\n  failed: {reason(error)}\n", flush=True)
        return
    taken = time.monotonic() - started
    entry["rows"].append({**found, "took_s": round(taken, 1)})
    print(f"{row_text(found)}\n  took {taken:.1f} s\n", flush=True)


def _conclude(entry: Mapping[str, Any]) -> int:
    """Print what is missing and what is wrong; return the exit code."""
    inexact = [row for row in entry["rows"] if row.get("passed") is False]
    for name, why in entry["skipped"].items():
        print(f"skipped {name}: {why}")
    for name, why in entry["failed"].items():
        print(f"FAILED {name}: {why}")
    for row in inexact:
        error = next(iter(row["contenders"].values()))["error"]
        print(f"INEXACT {row['row']}: error {error:.1e}, at most {row['limit']:.1e} is allowed")
    if not (entry["failed"] or inexact):
        print("no row failed, and every row that was measured is exact")
    return 1 if entry["failed"] or inexact else 0


if __name__ == "__main__":
    sys.exit(main())
