"""What a finished run needed, kept to predict at its start what the next one of its kind needs.

A kind is what ``plan.py`` keeps a rehearsal for, with the same batches.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from samadapt.runs.plan import kept_in
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from samadapt.config.schema import Config
    from samadapt.training.progress import Clock


@dataclass(frozen=True)
class MeasuredRun:
    """What a run needed.

    Attributes:
        memory_bytes: largest resident memory of the process.
        start_seconds: what was no part of a phase, such as opening the data and the model.
        unit_seconds: seconds of an image, a step or a slice, by phase of the progress display.
    """

    memory_bytes: int
    start_seconds: float
    unit_seconds: dict[str, float]

    def seconds(self, units: Mapping[str, int]) -> dict[str, float]:
        """Return the seconds of each phase of a run with so many units in each.

        Phases that were never measured, such as features that had all been there, are left out.
        """
        phases = {
            phase: count * self.unit_seconds[phase]
            for phase, count in units.items()
            if count and phase in self.unit_seconds
        }
        return {"start": self.start_seconds, **phases}


def keep_run(config: Config, clock: Clock, summary: Mapping[str, Any]) -> None:
    """Keep what a run needed; a folder that cannot be written is no error.

    Args:
        config: its configuration.
        clock: that of its progress display.
        summary: the content of ``eval/summary.json``.
    """
    before = find_run(config)
    speeds = {**(before.unit_seconds if before else {}), **clock.unit_seconds()}
    start = max(0.0, summary["seconds"] - clock.measured_seconds())
    found = MeasuredRun(summary["peak_memory_bytes"], start, speeds)
    with suppress(OSError):
        atomic.write_text(_file(config), json.dumps(asdict(found)) + "\n")


def find_run(config: Config) -> MeasuredRun | None:
    """Return what the last finished run of a kind needed; None: there is none."""
    try:
        values = json.loads(_file(config).read_text(encoding="utf-8"))
        speeds = {str(name): float(value) for name, value in values["unit_seconds"].items()}
        return MeasuredRun(int(values["memory_bytes"]), float(values["start_seconds"]), speeds)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # or it is from another version


def _file(config: Config) -> Path:
    batches = [config.train.slices, config.train.accumulate, config.eval.batch_size]
    return kept_in(config, batches)
