"""Measure a row: samadapt and its peers take turns, in one process, at the same task.

A suite is a module with a function ``rows()``. Each row measures itself and returns plain values:
the seconds of every repetition, and the figures that follow from them.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from benchmarks.machine import PrecisionName, seconds
from benchmarks.process import ask

SUITES = (
    "encoder",
    "attention",
    "train_step",
    "epoch",
    "decoder",
    "automatic_masks",
    "start_up",
    "scoring",
    "floor",
    "shared_machine",
    "compiled",
)

Values = Tensor | tuple[Tensor, ...]
Call = Callable[[], Any]
Build = Callable[[], Call]


class Row(Protocol):
    """One line of a suite."""

    @property
    def name(self) -> str:
        """Name of what is measured; unique in its suite."""

    def measure(self, run: Run) -> dict[str, Any]:
        """Measure it and return plain values."""


@dataclass(frozen=True)
class Run:
    """What all rows of one run of a suite share.

    Attributes:
        suite: name of the suite.
        repeat: repetitions of each contender.
        rooflines: what ``machine.roofline`` returned for each device.
        memory: whether to measure memory as well.
    """

    suite: str
    repeat: int
    rooflines: Mapping[str, Mapping[str, float]]
    memory: bool = True


@dataclass(frozen=True)
class Timed:
    """What a call returns if it measures its own time, instead of a clock around it."""

    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Several contenders at the same task. The first one is samadapt.

    Attributes:
        name: name of the row.
        contenders: for each name, a function that builds model and input and returns the call to
            be timed. A call returns the values that are compared: a tensor, a tuple of them, or
            None.
        flop: returns the number of operations for one image (``flops.py``); None if there is no
            count.
        precision: precision of samadapt, and of the roofline that its speed is divided by.
        reference: what the values are compared with: a function, or the name of a contender.
        device: ``"cpu"`` or ``"cuda"``.
        images: how many images a call takes.
        memory: whether peak memory is measured.
        compare: returns more facts from the values of all contenders, such as whether masks are
            equal.
    """

    name: str
    contenders: Mapping[str, Build]
    flop: Callable[[], float] | None = None
    precision: PrecisionName = "fp32"
    reference: Callable[[], Values] | str | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    images: int = 1
    memory: bool = True
    compare: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def measure(self, run: Run) -> dict[str, Any]:
        """Call each contender once to warm it up, then time all of them in turn."""
        calls = {name: build() for name, build in self.contenders.items()}
        values = {name: call() for name, call in calls.items()}
        times = alternate(calls, run.repeat, self.device)
        calls.clear()
        gc.collect()
        first = next(iter(times.values()))
        peak = run.rooflines.get(self.device, {}).get(self.precision)
        errors = self._errors(values)
        gflop = self.flop() / 1e9 if self.flop else None
        found: dict[str, Any] = {}
        for name, taken in times.items():
            found[name] = figures(taken) | {"error": errors.get(name)}
            if gflop:
                rate = self.images * gflop / found[name]["median_s"]
                found[name] |= {"gflop_s": rate, "share_of_peak": peak and rate / peak}
            if taken is not first:
                found[name]["ratio"] = ratios(first, taken)
            if self.memory and run.memory:
                # In a process of its own, so that nothing else is resident.
                found[name]["memory"] = ask("benchmarks.memory", run.suite, self.name, name)
        facts = self.compare(values) if self.compare else {}
        return {
            "row": self.name,
            "kind": "comparison",
            "device": self.device,
            "precision": self.precision,
            "images": self.images,
            "gflop": gflop,
            "contenders": found,
            "facts": facts,
        }

    def _errors(self, values: Mapping[str, Any]) -> dict[str, float]:
        if self.reference is None:
            return {}
        by_name = isinstance(self.reference, str)
        exact = values[self.reference] if isinstance(self.reference, str) else self.reference()
        return {
            name: relative_error(value, exact)
            for name, value in values.items()
            if isinstance(value, Tensor | tuple) and not (by_name and name == self.reference)
        }


@dataclass(frozen=True)
class Growth:
    """The cost of one more of something: the time at several counts, and a line through them.

    Attributes:
        name: name of the row.
        unit: what is counted.
        counts: the counts to measure at.
        build: returns the call to be timed for a count.
    """

    name: str
    unit: str
    counts: Sequence[int]
    build: Callable[[int], Call]

    def measure(self, run: Run) -> dict[str, Any]:
        """Time all counts in turn and fit seconds = intercept + slope * count to the medians."""
        calls = {count: self.build(count) for count in self.counts}
        for call in calls.values():
            call()
        times = alternate(calls, run.repeat, "cpu")
        medians = [statistics.median(times[count]) for count in self.counts]
        return {
            "row": self.name,
            "kind": "growth",
            "unit": self.unit,
            "seconds": {str(count): taken for count, taken in times.items()},
            **line_through(self.counts, medians),
        }


@dataclass(frozen=True)
class Fact:
    """Something that is counted instead of timed.

    Attributes:
        name: name of the row.
        count: returns the counts by name.
    """

    name: str
    count: Callable[[], dict[str, Any]]

    def measure(self, run: Run) -> dict[str, Any]:
        """Count once."""
        del run
        return {"row": self.name, "kind": "fact", "facts": self.count()}


def find_rows(suite: str) -> list[Row]:
    """Return the rows of a suite.

    Raises:
        ValueError: two rows have the same name.
    """
    rows: list[Row] = list(import_module(f"benchmarks.{suite}").rows())
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"{suite} has rows of the same name: {names}")
    return rows


def set_threads() -> None:
    """Use every core that the process may run on; torch may choose fewer on a shared machine."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def alternate(calls: Mapping[Any, Call], repeat: int, device: str) -> dict[Any, list[float]]:
    """Time the calls one after the other, and repeat this ``repeat`` times."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            taken, value = seconds(call, device)
            times[name].append(value.seconds if isinstance(value, Timed) else taken)
            del value
    return times


def figures(taken: Sequence[float]) -> dict[str, Any]:
    """Return the seconds of all repetitions, their median and their extremes."""
    return {
        "seconds": list(taken),
        "median_s": statistics.median(taken),
        "min_s": min(taken),
        "max_s": max(taken),
    }


def ratios(ours: Iterable[float], peer: Iterable[float]) -> dict[str, float]:
    """Return how many times longer the peer took, from pairs measured one after the other."""
    pairs = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def relative_error(value: Values, exact: Values) -> float:
    """Return the L2 norm of the difference over the norm of the exact values."""
    found, wanted = (_flat(one) for one in (value, exact))
    return float((found - wanted).norm() / wanted.norm())


def _flat(values: Values) -> Tensor:
    tensors = (values,) if isinstance(values, Tensor) else values
    return torch.cat([one.detach().double().cpu().flatten() for one in tensors])


def line_through(counts: Sequence[int], times: Sequence[float]) -> dict[str, float]:
    """Return the least-squares ``slope_s``, ``intercept_s`` and ``r2`` of seconds over counts."""
    slope, intercept = statistics.linear_regression(counts, times)
    mean = statistics.fmean(times)
    total = math.fsum((t - mean) ** 2 for t in times)
    left = math.fsum((t - intercept - slope * n) ** 2 for n, t in zip(counts, times, strict=True))
    r2 = 1 - left / total if total else math.nan
    return {"slope_s": slope, "intercept_s": intercept, "r2": r2}
