"""The time that a training may use: its clocks, the share that has passed, and what still fits."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from samadapt.errors import ConfigError
from samadapt.system import processes
from samadapt.system.arrays import Array

RECENT = 20
"""The mean of this many steps predicts the time of the next one."""

KEYS = ("train.max_seconds", "train.max_cpu_seconds")
UNITS = ("s", "CPU-seconds")


def read_clocks() -> Array:
    """Return the wall clock and the CPU time of all threads of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class Budget:
    """Counts the time of a training, from the moment when this object is made.

    Each time is an array of two numbers: wall seconds, and CPU seconds of this process. Without
    limits every step fits, and the share that has passed is 0.

    With several processes the wall clock is that of the first one, and CPU seconds are those of
    all. Between two calls of ``agree`` the time then stands still, so that all decide alike.

    Args:
        max_seconds: limit of the wall seconds; None: no limit.
        max_cpu_seconds: limit of the CPU seconds; None: no limit.
        validation_steps: how many steps take as long as a validation. The guess counts until a
            validation has been measured; 0 if nothing is validated.
    """

    def __init__(
        self,
        max_seconds: float | None = None,
        max_cpu_seconds: float | None = None,
        validation_steps: float = 0.0,
    ) -> None:
        limits = (max_seconds, max_cpu_seconds)
        self.limits = np.array([math.inf if limit is None else limit for limit in limits])
        self.validation_steps = validation_steps
        self._agreed: Array | None = None
        self.agree()
        self._started = self._now()
        self._before = np.zeros(2)  # used by the run that is resumed
        self._first_step: Array | None = None  # the time used before the first step
        self._steps: deque[Array] = deque(maxlen=RECENT)
        self._validation: Array | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return bool(np.isfinite(self.limits).any())

    @property
    def used(self) -> Array:
        """The time used so far, (wall, CPU) seconds."""
        found: Array = self._before + self._now() - self._started
        return found

    def agree(self) -> None:
        """Read the clocks of all processes, if there are several and the time is limited."""
        if processes.count() > 1 and self.is_limited:
            read = np.array(processes.gather(tuple(read_clocks())))
            self._agreed = np.array([read[0, 0], read[:, 1].sum()])

    def _now(self) -> Array:
        return read_clocks() if self._agreed is None else self._agreed

    @property
    def share(self) -> float:
        """The share of the time for steps that has passed, 0 to 1; 0 without limits.

        It begins at 0 with the first step, because the features are computed before it. It reaches
        1 when only the last validation still fits. With two limits the larger share counts.
        """
        if self._first_step is None:
            return 0.0
        room = self.limits - self._first_step - self._validation_time()
        passed = self.used - self._first_step
        shares = np.where(room > 0, passed / np.maximum(room, 1e-9), 1.0)
        return float(np.clip(shares.max(), 0.0, 1.0))

    @property
    def seconds_left(self) -> float:
        """The wall seconds until a limit is reached; CPU time is taken to pass as before."""
        used = self.used
        left = (self.limits - used) * np.array([1.0, used[0] / max(used[1], 1e-9)])
        return max(0.0, float(left.min()))

    def begin_step(self) -> Array:
        """Return the time used so far, for ``end_step``."""
        self.agree()
        used = self.used
        if self._first_step is None:
            self._first_step = used
        return used

    def end_step(self, began: Array) -> None:
        """Measure a step that began at the time ``began``."""
        self.agree()
        self._steps.append(self.used - began)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time in this context, which all processes enter together."""
        self.agree()
        before = self.used
        yield
        self.agree()
        self._started = self._started + self.used - before

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Measure the validation in this context."""
        began = self.used
        yield
        self.agree()
        self._validation = self.used - began

    def fits_step(self) -> bool:
        """Whether one more step, and the validation after it, are expected to end in time.

        Nothing is known about the first step, so it fits as long as any time is left.
        """
        needed = self.used + self._step_time() + self._validation_time()
        return bool((needed <= self.limits).all())

    def refuse_if_spent(self) -> None:
        """Refuse limits that were reached before the first step.

        Raises:
            ConfigError: naming the limits and the time that the features took.
        """
        self.agree()
        if not self.fits_step():
            raise ConfigError(
                f"the features took {self.text()}, so no time is left for a step. Give more time, "
                "or make the features cheaper: fewer slices (data.slice_step, data.max_cases), "
                "fewer versions of each (cache.variants) or a smaller model.image_size"
            )

    def text(self) -> str:
        """Return in words how much of each limit is used."""
        return " and ".join(
            f"{used:.1f} of {limit:g} {unit} ({key})"
            for used, limit, unit, key in zip(self.used, self.limits, UNITS, KEYS, strict=True)
            if math.isfinite(limit)
        )

    def measured(self) -> dict[str, float]:
        """Return the seconds used by clock, for ``metrics.jsonl`` and ``summary.json``."""
        seconds, cpu_seconds = self.used.tolist()
        return {"used_seconds": round(seconds, 3), "used_cpu_seconds": round(cpu_seconds, 3)}

    def summary(self) -> dict[str, float | None] | None:
        """Return the limits and the seconds used, for ``summary.json``; None without limits."""
        if not self.is_limited:
            return None
        limits = [limit if math.isfinite(limit) else None for limit in self.limits.tolist()]
        return {"max_seconds": limits[0], "max_cpu_seconds": limits[1], **self.measured()}

    def state(self) -> dict[str, list[float]]:
        """Return what a checkpoint keeps: the times used, before the first step and expected."""
        first = self.used if self._first_step is None else self._first_step
        return {
            "used": self.used.tolist(),
            "first_step": first.tolist(),
            "step": self._step_time().tolist(),
            "validation": [] if self._validation is None else self._validation.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` returned; the time since this object was made counts too."""
        self._before, self._first_step = np.array(state["used"]), np.array(state["first_step"])
        self._steps.append(np.array(state["step"]))
        self._validation = np.array(state["validation"]) if state["validation"] else None

    def _step_time(self) -> Array:
        if not self._steps:
            return np.zeros(2)
        mean: Array = np.mean(self._steps, axis=0)
        return mean

    def _validation_time(self) -> Array:
        if self._validation is not None:
            return self._validation
        # Forward and backward of a training slice take longer than the forward pass of a scored
        # one, so the guess is on the safe side.
        guess: Array = self.validation_steps * self._step_time()
        return guess
