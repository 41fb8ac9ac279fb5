"""Contenders at one task on one device, in one process.

``harness.Comparison`` starts a process for every figure of memory. On a GPU this is not needed,
since its allocator counts exactly, and starting processes would take most of eight minutes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.harness import Build, Call, Run, Values, alternate, figures, ratios, relative_error
from benchmarks.machine import PrecisionName, seconds, tf32_products
from benchmarks.memory import above_the_weights

Device = Literal["cpu", "cuda"]

TIMING_S = 2.0
"""Seconds that all repetitions of a row take together, unless two of each take longer."""


@dataclass(frozen=True)
class Contest:
    """Several contenders at the same task. The first one is samadapt.

    A peer that lacks a package, runs out of memory or fails is left out, and the row says why.

    Attributes:
        name: name of the row.
        contenders: for each name, a function that builds model and input on the device and returns
            the call to be timed. A call returns the values that are compared: a tensor, a tuple of
            them, or None.
        device: ``"cpu"`` or ``"cuda"``.
        precision: precision of all contenders, and of the roofline that speeds are divided by.
        images: how many images a call takes.
        flop: returns the number of operations for one image; None if there is no count.
        exact: returns the values that errors are relative to; None: there are none.
        limit: returns the highest error that samadapt may have, given the errors of the others;
            None: its error is only shown.
        compare: returns more facts from the values of all contenders.
    """

    name: str
    contenders: Mapping[str, Build]
    device: Device
    precision: PrecisionName
    images: int = 1
    flop: Callable[[], float] | None = None
    exact: Callable[[], Values] | None = None
    limit: Callable[[Mapping[str, float]], float] | None = None
    compare: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def measure(self, run: Run) -> dict[str, Any]:
        """Warm each contender up, measure its memory, then time all of them in turn.

        Raises:
            Exception: what samadapt's own contender raises.
        """
        with tf32_products(self.precision == "tf32"):
            return self._measure(run)

    def _measure(self, run: Run) -> dict[str, Any]:
        calls, values, memory, left_out = self._warm_up()
        pilot = {name: seconds(call, self.device)[0] for name, call in calls.items()}
        repeat = max(2, min(run.repeat, int(TIMING_S / sum(pilot.values()))))
        times = alternate(calls, repeat, self.device)
        calls.clear()
        exact, lacks = self._exact()
        left_out |= lacks
        errors = {
            name: relative_error(value, exact)
            for name, value in values.items()
            if exact is not None and isinstance(value, Tensor | tuple)
        }
        first = next(iter(times.values()))
        gflop = self.flop() / 1e9 if self.flop else None
        peak = run.rooflines.get(self.device, {}).get(self.precision)
        found: dict[str, Any] = {}
        for name, taken in times.items():
            found[name] = figures(taken) | {"error": errors.get(name), "memory": memory[name]}
            if gflop:
                rate = self.images * gflop / found[name]["median_s"]
                found[name] |= {"gflop_s": rate, "share_of_peak": peak and rate / peak}
            if taken is not first:
                found[name]["ratio"] = ratios(first, taken)
        facts = self.compare(values) if self.compare else {}
        facts |= {f"without {name}": why for name, why in left_out.items()}
        return {
            "row": self.name,
            "kind": "comparison",
            "device": self.device,
            "precision": self.precision,
            "images": self.images,
            "gflop": gflop,
            "contenders": found,
            "facts": facts,
            **self._verdict(errors),
        }

    def _warm_up(self) -> tuple[dict[str, Call], dict[str, Any], dict[str, Any], dict[str, str]]:
        """Call every contender twice, the second time to measure its memory.

        Returns:
            The calls, the values that they returned, their memory, and the reasons of those that
            are left out, each by name.
        """
        calls: dict[str, Call] = {}
        values: dict[str, Any] = {}
        memory: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for name, build in self.contenders.items():
            try:
                call = build()
                call()  # kernels are chosen and compiled
                kept: list[Any] = []
                memory[name] = above_the_weights(lambda: kept.append(call()), self.device)  # noqa: B023
            except Exception as error:
                if not calls:  # samadapt itself
                    raise
                left_out[name] = reason(error)
                release(self.device)
            else:
                calls[name], values[name] = call, kept[0]
        return calls, values, memory, left_out

    def _exact(self) -> tuple[Values | None, dict[str, str]]:
        """Return the exact values, or the reason why there are none."""
        if self.exact is None:
            return None, {}
        try:
            return self.exact(), {}
        except (ModuleNotFoundError, torch.OutOfMemoryError) as error:
            return None, {"exact values": reason(error)}

    def _verdict(self, errors: Mapping[str, float]) -> dict[str, Any]:
        """Return whether samadapt is as exact as the row demands; nothing where it demands none."""
        ours = next(iter(self.contenders))
        if self.limit is None or ours not in errors:
            return {}
        limit = self.limit(errors)
        return {"limit": limit, "passed": errors[ours] <= limit}


def reason(error: Exception) -> str:
    """Return in a few words why something could not be measured."""
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name} is missing"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def release(device: str) -> None:
    """Give memory that nothing uses back to a GPU."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
