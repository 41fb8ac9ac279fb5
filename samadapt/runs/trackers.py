"""Experiment trackers: each follows the metrics.jsonl of a run and sends its lines on.

``metrics.jsonl`` is written by the training alone, and no step waits for a tracker: each reads the
file in a thread of its own, as ``tail -f`` does. A tracker that fails or hangs costs one warning.
``RUN_DIR/trackers/NAME.json`` says what a tracker has got. From there a resumed run goes on, in the
same run of the tracker.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samadapt.config.schema import Config
from samadapt.errors import ConfigError, MissingExtraError
from samadapt.evaluation.scores import SCORES
from samadapt.runs.run_description import shown_configuration
from samadapt.runs.tracker_kinds import KINDS, FollowedRun
from samadapt.system import atomic, processes
from samadapt.system.launchers import as_only_process

FOLDER = "trackers"
"""Folder in the run directory: what trackers write, and what each of them has got."""

POLL_SECONDS = 0.5
"""Time between two looks at metrics.jsonl."""

GRACE_SECONDS, STOPPED_SECONDS = 60.0, 5.0
"""How long a run waits at its end for trackers that have not sent everything; shorter after a
signal or an error, when the process should end soon."""

Numbers = dict[str, float]


@dataclass(frozen=True)
class Closing:
    """What a tracker gets after the last line of metrics.jsonl.

    Attributes:
        step: the last step of the training.
        scores: the final scores by name.
        pictures: PNG files by name.
    """

    step: int
    scores: Numbers
    pictures: Mapping[str, Path]


@dataclass
class Received:
    """What a tracker has got of a run, kept in ``RUN_DIR/trackers/NAME.json``.

    Attributes:
        identity: names the run in the tracker; None before its start.
        steps: the last step of each kind of line.
        scored: the step whose final scores it has; None: it has none.
    """

    identity: str | None = None
    steps: dict[str, int] = field(default_factory=dict)
    scored: int | None = None

    @classmethod
    def read(cls, path: Path) -> Received:
        """Return the content of the file; nothing was received if there is none."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            steps = {str(kind): int(step) for kind, step in found["steps"].items()}
            scored = found["scored"]
            return cls(str(found["identity"]), steps, None if scored is None else int(scored))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the file."""
        atomic.write_text(path, json.dumps(vars(self)) + "\n")


def check_trackers(config: Config) -> None:
    """Refuse trackers that are not installed, or that record what ``privacy`` hides.

    Raises:
        MissingExtraError: naming the command that installs the package.
        ConfigError: a tracker records the command line of the process.
    """
    if not config.output.trackers:
        return
    from accelerate.tracking import get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    for name in config.output.trackers:
        kind = KINDS[name]
        if name not in available:
            raise MissingExtraError(kind.package, name)
        if config.privacy and not kind.keeps_privacy:
            others = ", ".join(other for other, one in KINDS.items() if one.keeps_privacy)
            raise ConfigError(
                f"output.trackers: {name} records the command line of the process, which names "
                f"files, so it does not go with privacy=true. Use {others}"
            )


@contextmanager
def tracked(config: Config, run_dir: Path) -> Iterator[Tracking]:
    """Follow a run with the trackers of its configuration while the block runs.

    Args:
        config: the configuration of the run.
        run_dir: its directory.
    """
    tracking = Tracking(config, run_dir)
    with _kept_apart() if config.output.trackers else nullcontext():
        try:
            yield tracking
        except BaseException:
            tracking.close(STOPPED_SECONDS)
            raise
        tracking.close(GRACE_SECONDS)


@contextmanager
def _kept_apart() -> Iterator[None]:
    """Keep stdout for the results of the run, and let no tracker ask on the terminal for a key."""
    stdin = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as nothing, redirect_stdout(sys.stderr):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin


class Tracking:
    """The trackers that follow a run; without any, the calls do nothing."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        """Hold what the trackers are told; none is started."""
        self.config, self.run_dir = config, run_dir
        self.followers: list[Follower] = []

    def start(self, say: Callable[[str], None]) -> None:
        """Start to follow metrics.jsonl, from which a resumed run has removed what it runs again.

        Args:
            say: shows a message to the user.
        """
        hyperparameters = flat_configuration(self.config)
        self.followers = [
            Follower(name, self.run_dir, hyperparameters, self.config.privacy, say)
            for name in (self.config.output.trackers if processes.is_first() else ())
        ]
        for follower in self.followers:
            follower.thread.start()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand over the final scores and the overlays; they are sent after the last line.

        Args:
            summary: the content of ``eval/summary.json``.
        """
        overlays = sorted((self.run_dir / "overlays").glob("*.png"))
        # best_CASE.png; the case stays out of the name, so that runs have the same pictures.
        pictures = {f"overlays/{path.name.partition('_')[0]}": path for path in overlays}
        closing = Closing(summary["last_step"] or 0, final_scores(summary), pictures)
        for follower in self.followers:
            follower.closing = closing

    def close(self, seconds: float) -> None:
        """Wait until the trackers have got everything, for ``seconds`` at most in all."""
        ends = time.monotonic() + seconds
        for follower in self.followers:
            follower.end.set()
        for follower in self.followers:
            follower.thread.join(max(0.0, ends - time.monotonic()))
            if follower.thread.is_alive():
                follower.say(
                    f"warning: output.trackers: {follower.name} has not taken everything after "
                    f"{seconds:.0f} s and is left behind; metrics.jsonl is complete"
                )


class Follower:
    """Sends the lines of a metrics.jsonl to one tracker; every failure ends it with a warning."""

    def __init__(
        self,
        name: str,
        run_dir: Path,
        hyperparameters: Mapping[str, Any],
        is_private: bool,
        say: Callable[[str], None],
    ) -> None:
        """Read what the tracker has got from an earlier process; nothing is started yet.

        Args:
            name: name of the tracker.
            run_dir: the directory of the run.
            hyperparameters: the configuration, flat.
            is_private: whether nothing may name a file.
            say: shows a message to the user.
        """
        self.name = name
        # A daemon, so that a tracker that hangs keeps no process alive.
        self.thread = threading.Thread(target=self._follow_or_warn, name=name, daemon=True)
        self.kind, self.say = KINDS[name](), say
        self.hyperparameters, self.is_private = hyperparameters, is_private
        self.run_dir, self.record = run_dir, run_dir / FOLDER / f"{name}.json"
        self.received = Received.read(self.record)
        self.end = threading.Event()
        self.closing: Closing | None = None
        self.tail = Tail(run_dir / "metrics.jsonl")
        # Lines from before a resume are there already; those that the tracker lacks are sent.
        self.pending = self.tail.new_lines()
        if self.kind.rewinds:
            self._forget_from(self._last_complete_step())

    def _follow_or_warn(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # also what a library raises to end the program
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            self.say(
                f"warning: output.trackers: {self.name} failed and gets nothing more of this run: "
                f"{type(error).__name__}: {reason}. metrics.jsonl is complete"
            )

    def _follow(self) -> None:
        # The tracker starts with the first new line: before, the run may still be refused.
        new: list[dict[str, Any]] = []
        is_last = False
        while not new and not is_last:
            # Asked before the file is read, so that no line is written in between.
            is_last = self.end.wait(POLL_SECONDS)
            new = self.tail.new_lines()
        if not new and self.closing is None:
            return
        tracker = self._opened()
        self._send(tracker, [*self.pending, *new])
        while not is_last:
            is_last = self.end.wait(POLL_SECONDS)
            self._send(tracker, self.tail.new_lines())
        if self.closing is not None and self.received.scored != self.closing.step:
            self._send_closing(tracker, self.closing)
        tracker.finish()
        self.kind.release()

    def _opened(self) -> Any:
        """Start accelerate's tracker, and give it the configuration if it is a new run."""
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if not PartialState._shared_state:  # accelerate's log messages ask for it
            with as_only_process():
                PartialState(cpu=True)
        folder = self.run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        is_part = (self.run_dir.parent / "config.yaml").is_file()
        name = f"{self.run_dir.parent.name}-{self.run_dir.name}" if is_part else self.run_dir.name
        first_step = min(self.received.steps.values(), default=0) + 1
        run = FollowedRun(name, folder, self.is_private, first_step, self.received.identity)
        tracker = LOGGER_TYPE_TO_CLASS[self.name](**self.kind.arguments(run))
        # This process alone writes the run. Without the attribute accelerate asks for its rank in
        # every call, which sets up a state that the training may set up otherwise.
        tracker.main_process_only = False
        tracker.start()
        if self.received.identity is None:
            tracker.store_init_configuration(dict(self.hyperparameters))
        self.received.identity = self.kind.identity(tracker)
        self.received.write(self.record)
        return tracker

    def _send(self, tracker: Any, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send the lines that the tracker has not got."""
        sent = False
        for line in lines:
            kind, step = str(line["kind"]), int(line["step"])
            if step <= self.received.steps.get(kind, 0):
                continue
            tracker.log(flat_line(line), step=step)
            self.received.steps[kind] = step
            sent = True
        if sent:
            self.received.write(self.record)

    def _send_closing(self, tracker: Any, closing: Closing) -> None:
        tracker.log(closing.scores, step=closing.step)
        for name, path in closing.pictures.items():
            self.kind.log_picture(tracker, name, path, closing.step)
        self.received.scored = closing.step
        self.received.write(self.record)

    def _last_complete_step(self) -> int:
        """Return the last step that the file holds and the tracker has, of every kind of line."""
        held = max((int(line["step"]) for line in self.pending), default=0)
        return min([held, *self.received.steps.values()])

    def _forget_from(self, step: int) -> None:
        """Let the steps after ``step`` be sent again, since the tracker will forget them."""
        self.received.steps = {kind: min(last, step) for kind, last in self.received.steps.items()}


class Tail:
    """Reads the new lines of a file of JSON lines that another thread appends to."""

    def __init__(self, path: Path) -> None:
        """Start at the first line; the file need not exist."""
        self.path, self.offset = path, 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the complete lines that were appended since the last call."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def flat_line(line: Mapping[str, Any]) -> Numbers:
    """Return the numbers of a line of metrics.jsonl, named as in ``train/loss``.

    What is null there, because it was not finite, has no number.
    """
    values = {key: value for key, value in line.items() if key not in ("kind", "step")}
    return flat_numbers(values, str(line["kind"]))


def flat_numbers(values: Mapping[str, Any], prefix: str) -> Numbers:
    """Return the finite numbers of nested values by their path, as in ``prefix/key/key``."""
    numbers: Numbers = {}
    for key, value in values.items():
        # Trackers take these characters in names; others may stand in the name of a class.
        name = f"{prefix}/{re.sub(r'[^A-Za-z0-9_. -]', '_', str(key))}"
        if isinstance(value, Mapping):
            numbers |= flat_numbers(value, name)
        elif isinstance(value, int | float) and math.isfinite(value):
            numbers[name] = value
    return numbers


def final_scores(summary: Mapping[str, Any]) -> Numbers:
    """Return the scores of a summary, named as in ``scores/adapted/dice``.

    Args:
        summary: the content of ``eval/summary.json``.
    """
    kinds = summary.get("by_prompt", {})
    nested: dict[str, Any] = {
        **_by_state(summary),
        "by_prompt": {kind: _by_state(scores) for kind, scores in kinds.items()},
        **{key: summary[key] for key in ("best_validation_dice", "best_step", "seconds")},
    }
    return flat_numbers(nested, "scores")


def _by_state(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the means and the scores of each class by state."""
    found = {}
    for state in ("zero_shot", "adapted"):
        if means := scores[state]:
            classes = means["per_class"].items()
            found[state] = _numbers(means) | {name: _numbers(entry) for name, entry in classes}
    return found


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in SCORES if name in entry}


def flat_configuration(config: Config) -> dict[str, bool | int | float | str]:
    """Return the configuration by dotted key; with ``privacy`` it names no file.

    Trackers take no lists and no null, so a list is text and a key that is null is left out.
    """
    flat: dict[str, bool | int | float | str] = {}
    for group, values in shown_configuration(config).items():
        named = values if isinstance(values, Mapping) else {"": values}
        for key, value in named.items():
            if value is not None:
                plain = value if isinstance(value, bool | int | float | str) else json.dumps(value)
                flat[f"{group}.{key}" if key else group] = plain
    return flat
