"""One process against two, each with one thread: time by phase, and what communication costs.

    python benchmarks/processes.py DATA_ROOT [--repeats 3] [--steps 24] [--output FILE]

Trains hippocampus volumes with boxes (LoRA, batch of 4) by one process and by two in turn, started
by torchrun, with features of their own each time. The seconds of features, training and scores are
those of the first process; in them, what it spent in collectives, waiting for the other included.
Afterwards sums of several sizes are timed alone, and a line through them gives the latency of a sum
and the bytes a second.

From these follows an extrapolation to more machines, which nobody has measured. On n processes a
step takes::

    compute / n + 2 (n - 1) / n * bytes / rate + latency * log2(n)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUTPUT = ROOT / "benchmarks" / "results" / "processes.json"
SIZES = (1, 10_000, 100_000, 1_000_000, 4_000_000)
PHASES = {
    "features": "samadapt.runs.finetune.compute_features",
    "training": "samadapt.runs.train_adapter.train",
    "scores": "samadapt.runs.finetune.score_held_out",
}
"""The function of each phase, by the module that calls it."""


class Watch:
    """Adds up the seconds of functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.bytes = 0
        self.phase = "other"

    def timed(self, name: str, function: Callable[..., Any], *, phase: bool) -> Callable[..., Any]:
        """Return a function that is timed; as a phase, or as communication within one."""

        def run(*args: Any, **options: Any) -> Any:
            before, started = self.phase, time.perf_counter()
            self.phase = name if phase else self.phase
            try:
                return function(*args, **options)
            finally:
                key = name if phase else f"{self.phase}: {name}"
                spent = time.perf_counter() - started
                self.seconds[key] = self.seconds.get(key, 0.0) + spent
                self.calls[key] = self.calls.get(key, 0) + 1
                self.phase = before

        return run


def work(data: str, steps: int, output: Path) -> None:
    """Train as one of the processes; the first one writes what it measured."""
    import torch

    from samadapt.config.compose import compose
    from samadapt.runs.finetune import finetune
    from samadapt.system import collectives, processes
    from samadapt.training import gradients

    torch.set_num_threads(1)
    watch, add_up = Watch(), collectives.add_up

    def adding(tensor: torch.Tensor) -> None:
        watch.bytes += tensor.nbytes if watch.phase == "training" else 0
        add_up(tensor)

    for phase, path in PHASES.items():
        place, _, name = path.rpartition(".")
        module = import_module(place)
        setattr(module, name, watch.timed(phase, getattr(module, name), phase=True))
    gathered = watch.timed("gather", processes.gather, phase=False)
    processes.gather = gathered
    summed = watch.timed("sum", adding, phase=False)
    for module in (collectives, gradients):  # each has a name of its own for it
        setattr(module, "add_up", summed)  # noqa: B010
    with processes.together(), tempfile.TemporaryDirectory() as folder:
        shared = processes.from_first(folder)  # the first process's folder, for both
        keys = [
            f"data.root={data}",
            "data.max_cases=12",
            "data.slice_step=2",
            f"train.steps={steps}",
            "train.max_seconds=86400",  # a limit lets one process compute its features first, too
            "train.validate_every=0",
            "precision=fp32",
            "eval.overlays=0",
            f"output.dir={shared}",
        ]
        run_dir = finetune(compose("hippocampus", keys)).run_dir
        sums = {}
        for size in SIZES:
            tensor, spent = torch.ones(size), []
            for _ in range(15):
                processes.wait()
                started = time.perf_counter()
                add_up(tensor)
                spent.append(time.perf_counter() - started)
            sums[4 * size] = median(spent)
        if processes.is_first():
            row = {
                "processes": processes.count(),
                "seconds": watch.seconds,
                "calls": watch.calls,
                "step": median(step_seconds(run_dir)),
                "bytes_a_step": watch.bytes / steps,
                "sums": sums,
            }
            output.write_text(json.dumps(row), encoding="utf-8")
        processes.wait()


def step_seconds(run_dir: Path) -> list[float]:
    """Return the seconds of the steps, without validation."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["seconds"] for line in map(json.loads, lines) if line["kind"] == "train"]


def measure(data: str, steps: int, count: int) -> dict[str, Any]:
    """Start processes, and return what the first of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        worker = [str(Path(__file__).resolve()), data, "--steps", str(steps), "--worker"]
        subprocess.run(
            [*launcher, "--nproc-per-node", str(count), *worker, str(output)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        row: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return row


def line_of(sums: dict[str, float]) -> tuple[float, float]:
    """Return the latency of a sum in seconds, and its bytes a second."""
    points = sorted((int(size), seconds) for size, seconds in sums.items())
    latency = points[0][1]
    rates = [size / max(seconds - latency, 1e-9) for size, seconds in points[-2:]]
    return latency, median(rates)


def seconds_of(row: dict[str, Any], phase: str) -> float:
    """Return the seconds of a phase, or of a step."""
    return float(row["step"] if phase == "a step" else row["seconds"][phase])


def table(rows: list[dict[str, Any]], steps: int) -> str:
    """Return the phases, the communication and the extrapolation as Markdown."""
    lines = ["| phase | 1 process | 2 processes | times faster |", "| --- | ---: | ---: | ---: |"]
    by_count = {n: [row for row in rows if row["processes"] == n] for n in (1, 2)}
    for phase in (*PHASES, "a step"):
        times = {n: [seconds_of(row, phase) for row in found] for n, found in by_count.items()}
        ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
        lines.append(
            f"| {phase} | {median(times[1]):.2f} s | {median(times[2]):.2f} s | "
            f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    both = by_count[2]
    waits = [
        sum(s for name, s in row["seconds"].items() if name.startswith("training: ")) / steps
        for row in both
    ]
    pairs = [line_of(row["sums"]) for row in both]
    latency, rate = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    size = median(row["bytes_a_step"] for row in both)
    step, measured = (median(row["step"] for row in by_count[n]) for n in (1, 2))
    lines += [
        "",
        (
            f"A step of two processes spends {1e3 * median(waits):.0f} ms in collectives, waiting "
            f"for the other included; it adds up {size / 1e6:.1f} MB. A sum alone has a latency of "
            f"{1e3 * latency:.2f} ms and moves {rate / 1e9:.2f} GB/s."
        ),
        "",
        (
            "Extrapolated, not measured: seconds of a step on n processes with a network like "
            f"this. For two processes {measured:.3f} s were measured"
        ),
        "",
        "| n | " + " | ".join(str(n) for n in (1, 2, 4, 8, 16)) + " |",
        "| --- |" + " ---: |" * 5,
    ]
    model = [
        step / n + 2 * (n - 1) / n * size / rate + latency * math.log2(n) for n in (1, 2, 4, 8, 16)
    ]
    lines.append("| s | " + " | ".join(f"{seconds:.3f}" for seconds in model) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure one and two processes in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--worker", type=Path)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.data, asked.steps, asked.worker)
        return
    rows: list[dict[str, Any]] = []
    for _ in range(asked.repeats):
        for count in (1, 2):
            rows.append(measure(asked.data, asked.steps, count))
            result = {"steps": asked.steps, "rows": rows}
            asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows, asked.steps))


if __name__ == "__main__":
    main()
