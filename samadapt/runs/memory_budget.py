"""``memory=8GB``: choose how a run computes, so that it stays within a number of bytes.

What is computed stays the same: slices that train together still train together. A step is cut
into smaller micro-batches, blocks are computed again instead of stored, and features go to the
disk. Each way is rehearsed in a process of its own (``samadapt plan``), which is ended as soon as
it holds more than the budget. So the choice never needs more memory than it promises.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import yaml

from samadapt import console
from samadapt.config.compose import to_dict
from samadapt.errors import ConfigError, RunError
from samadapt.runs.context import stack_of
from samadapt.runs.plan import Rehearsal, memory_by_phase
from samadapt.system.launchers import as_only_process
from samadapt.system.machine import parse_bytes

if TYPE_CHECKING:
    from samadapt.config.schema import Config

USED = 0.89
"""Share of the budget that a plan may use; predictions were up to 11 % too low."""

POLL_S = 0.02
"""How often the memory of a rehearsal is compared with the budget."""


def within_memory(config: Config) -> Config:
    """Return a configuration that fits into ``config.memory``, and say what was chosen.

    Args:
        config: the configuration of a run; without ``memory``, or if it resumes a run, which has
            chosen already, it is returned as it is.

    Raises:
        ConfigError: nothing fits; the message says how much the smallest way needs.
        RunError: a rehearsal failed for another reason.
    """
    if config.memory is None:
        return config
    asked = replace(config, memory=None)
    if config.resume is not None:
        return asked
    limit = parse_bytes(config.memory)
    for way in ways(asked):
        if (found := _fitting(way, limit)) is not None:
            chosen, needed = found
            changed = ", ".join(changes(asked, chosen)) or "nothing has to change"
            console.log(f"memory={config.memory}: {changed}; {needed / 1e9:.2f} GB at most")
            return chosen
    smallest = _with_batch(list(ways(asked))[-1], _smallest_batch(asked))
    measured = rehearse_apart(smallest, psutil.virtual_memory().available)
    least = "more than is free on this machine"
    if measured is not None:
        needed = max(memory_by_phase(smallest, measured).values())
        least = f"{math.ceil(needed / USED / 1e8) / 10:.1f} GB"  # never less than is enough
    raise ConfigError(
        f"memory={config.memory}: nothing fits; the least that is possible is {least}, with "
        f"{', '.join(changes(asked, smallest)) or 'the keys as they are'}. Give that much, or need "
        "less: a smaller model.image_size or model, fewer trained blocks (peft.blocks), or fewer "
        "prompts.max_objects"
    )


def ways(config: Config) -> Iterator[Config]:
    """Yield ways to compute the same run, from the fastest to the one with the least memory."""
    yield config
    cache = config.cache
    if cache.where == "memory":
        cache = replace(cache, where="disk")
    config = replace(config, cache=cache, eval=replace(config.eval, batch_size=1))
    yield config
    if not config.train.recompute and config.baseline.name is None:
        config = replace(config, train=replace(config.train, recompute=True))
        yield config
    if config.precision == "auto":
        yield replace(config, precision="bf16")


def batches(config: Config) -> list[int]:
    """Return the micro-batches that give the same step, from the largest to the smallest."""
    train, stack = config.train, _smallest_batch(config)
    step = train.slices * train.accumulate
    sizes = range(train.slices, 0, -1)
    return [size for size in sizes if step % size == 0 and size % stack == 0]


def changes(before: Config, after: Config) -> list[str]:
    """Return the keys that differ, as they are typed."""
    found = []
    for group in ("train", "eval", "cache"):
        old, new = to_dict(getattr(before, group)), to_dict(getattr(after, group))
        found += [f"{group}.{key}={_word(new[key])}" for key in new if new[key] != old[key]]
    if before.precision != after.precision:
        found.append(f"precision={after.precision}")
    return found


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _smallest_batch(config: Config) -> int:
    """Return the fewest slices of a micro-batch: those that the encoder sees together."""
    stack = stack_of(config)
    # What "auto" means follows from the data, so the batch then stays as it is.
    return config.train.slices if stack == "auto" else stack


def _with_batch(config: Config, size: int) -> Config:
    """Return the configuration with another micro-batch and the same step."""
    train = config.train
    step = train.slices * train.accumulate
    return replace(config, train=replace(train, batch_size=size, accumulate=step // size))


def _fitting(config: Config, limit: int) -> tuple[Config, int] | None:
    """Return a way with the largest micro-batch that fits and its memory; None: none fits."""
    smallest = _smallest_batch(config)
    for largest in dict.fromkeys((config.train.slices, smallest)):
        measured = rehearse_apart(_with_batch(config, largest), limit)
        if measured is None:
            continue
        for size in batches(config):
            own = _with_batch(config, size)
            needed = max(memory_by_phase(own, measured).values())
            if size <= largest and needed <= USED * limit:
                return own, needed
    return None


def rehearse_apart(config: Config, limit: int) -> Rehearsal | None:
    """Rehearse a run in another process; None if the process needs more than ``limit`` bytes.

    Raises:
        ConfigError: for a mistake that the run would refuse.
        RunError: the rehearsal failed for another reason.
    """
    with tempfile.TemporaryDirectory(prefix="samadapt-plan-") as folder:
        recipe, out, said = (Path(folder) / name for name in ("run.yaml", "out", "said"))
        recipe.write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "samadapt",
            "plan",
            "--json",
            f"recipe={recipe}",
            "quick=true",
        ]
        with out.open("wb") as stdout, said.open("wb") as stderr, as_only_process():
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        try:
            if not _stays_below(process, limit):
                return None
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode:
            message = said.read_text(encoding="utf-8", errors="replace").strip()
            message = message.rpartition("samadapt: error: ")[2] or message
            kind = ConfigError if process.returncode == 2 else RunError
            raise kind(message or f"the rehearsal of the run ended with {process.returncode}")
        measured = json.loads(out.read_text(encoding="utf-8"))["measured"]
        return Rehearsal.from_dict(measured)


def _stays_below(process: subprocess.Popen[bytes], limit: int) -> bool:
    """Wait for a process; return False as soon as it holds more bytes than ``limit``."""
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):  # it may have ended meanwhile
            if watched.memory_info().rss > limit:
                return False
        time.sleep(POLL_S)
    return True
