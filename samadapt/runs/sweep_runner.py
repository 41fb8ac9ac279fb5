"""Run the trials of a sweep: each is a `samadapt finetune` of its own, in a process of its own.

Several run at the same time and share the cores of the machine. While they train, their validation
scores are read from ``metrics.jsonl``, and trials that are worse than half of the others stop.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.schema import Config
from samadapt.errors import ConfigError, RunError, SamadaptError
from samadapt.runs.environment import write_json
from samadapt.runs.part_runs import SUMMARY, prepare_part, read_summary
from samadapt.runs.run_directory import has_trained_weights
from samadapt.runs.sweep_search import Search
from samadapt.runs.sweep_study import Claim, SweepStudy
from samadapt.system.interrupt import StopRequest
from samadapt.system.machine import find_processors
from samadapt.training.precision import choose_device, choose_precision

POLL_SECONDS = 0.2
OUTPUT_NAME = "console.txt"
"""What the process of a trial writes to its terminal."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """What is the same for all trials, on every machine that runs some of them.

    Attributes:
        device: where they compute.
        precision: their arithmetic, as plain values.
        threads: threads of each.
    """

    device: str
    precision: dict[str, Any]
    threads: int

    @classmethod
    def of(cls, config: Config, threads: int | None, workers: int) -> Machine:
        """Return device and precision that a configuration means here, and the threads of a trial.

        Raises:
            ConfigError: as ``choose_device`` and ``choose_precision``.
        """
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
        share = max(1, find_processors().usable // workers)
        return cls(str(device), asdict(precision), share if threads is None else threads)

    @property
    def text(self) -> str:
        """Describe it in a few words."""
        plural = "s" if self.threads > 1 else ""
        return f"{self.device}, {self.precision['name']}, {self.threads} thread{plural} each"


class InterruptedSweepError(SamadaptError):
    """A signal stopped the sweep, and what its trials did is saved."""

    def __init__(self, directory: Path, number: int) -> None:
        """Say how to go on; the exit code is 128 plus the number of the signal."""
        self.exit_code = 128 + number  # type: ignore[misc]  # of this error, not of its class
        super().__init__(f"stopped, all saved; go on with: samadapt sweep resume={directory}")


@dataclass
class Child:
    """A training in a process of its own.

    Attributes:
        run_dir: its run directory.
        process: the process; None if the training was finished before.
        claim: the trial that it is; None for the winner's seeds.
        steps: number of its steps.
        pruned: whether it was stopped, or would have been, because others were better.
        told: whether it has been asked to stop.
    """

    run_dir: Path
    process: subprocess.Popen[bytes] | None
    claim: Claim | None = None
    steps: float = math.inf
    pruned: bool = False
    told: bool = False

    @property
    def code(self) -> int | None:
        """Exit code of the process; None while it runs."""
        return 0 if self.process is None else self.process.poll()


@dataclass
class Runner:
    """Runs trainings, some at the same time.

    Attributes:
        directory: that of the sweep.
        machine: what is the same for all of them.
        workers: how many run at the same time.
        children: those that run now.
    """

    directory: Path
    machine: Machine
    workers: int
    children: list[Child] = field(default_factory=list)

    def run_trials(self, study: SweepStudy, search: Search) -> None:
        """Run trials until none is left to take.

        Raises:
            ConfigError: the first trial was refused; the others would be as well.
            RunError: trials were killed.
            InterruptedSweepError: after a signal, when the trials have saved their states.
        """
        lost: set[int] = set()
        with StopRequest() as stop:
            try:
                while True:
                    while not stop.requested and len(self.children) < self.workers:
                        claim = study.claim(search.propose, lost)
                        if claim is None:
                            break
                        self._begin(claim, search)
                    if stop.requested:
                        self._stop(stop)
                    if not self.children and not _waits(study, lost):
                        break
                    time.sleep(POLL_SECONDS)
                    for child in list(self.children):
                        self._look_after(child, study, lost)
            finally:
                self._kill()
        if lost:
            listed = ", ".join(str(study.run_dir(number)) for number in sorted(lost))
            raise RunError(
                f"killed before the end: {listed}; {OUTPUT_NAME} there may say why. Go on with: "
                f"samadapt sweep resume={self.directory}"
            )

    def run_all(self, jobs: Sequence[tuple[Config, Path]], say: Callable[[Path], str]) -> None:
        """Run trainings to their end.

        Args:
            jobs: configuration and run directory of each.
            say: returns what to tell the user when one begins.

        Raises:
            RunError: one failed.
            InterruptedSweepError: after a signal, when they have saved their states.
        """
        waiting = list(jobs)
        with StopRequest() as stop:
            try:
                while waiting or self.children:
                    while waiting and not stop.requested and len(self.children) < self.workers:
                        config, run_dir = waiting.pop(0)
                        console.log(f"samadapt: {say(run_dir)}")
                        self.children.append(self._child(config, run_dir))
                    if stop.requested:
                        self._stop(stop)
                    for child in [one for one in self.children if one.code is not None]:
                        self.children.remove(child)
                        if child.code:
                            raise RunError(f"{child.run_dir}: {_last_words(child)}")
                    time.sleep(POLL_SECONDS)
            finally:
                self._kill()

    def _begin(self, claim: Claim, search: Search) -> None:
        _, config = search.maker.make(claim.values)
        shown = " ".join(f"{key}={text}" for key, text in claim.values.items())
        console.log(f"samadapt: trial {claim.number} of {search.total} begins: {shown}")
        self.children.append(self._child(config, claim.run_dir, claim))

    def _child(self, config: Config, run_dir: Path, claim: Claim | None = None) -> Child:
        """Start a training, or go on with a stopped one."""
        steps = config.train.steps or math.inf
        if is_trained(run_dir, scored=config.eval.max_cases != 0):
            return Child(run_dir, None, claim, steps)
        prepare_part(config, run_dir)
        if not (run_dir / "env.json").is_file():
            # A run takes the arithmetic that is recorded there, and measures nothing anew.
            write_json(run_dir / "env.json", {"precision": self.machine.precision})
        # -P: a folder of the user may have the name of a package.
        command = [sys.executable, "-P", "-m", "samadapt", "finetune", f"resume={run_dir}"]
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = dict.fromkeys(THREADS, str(self.machine.threads))
        with (run_dir / OUTPUT_NAME).open("ab") as stream, _warnings_held_back():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
                # Ctrl-C of a terminal reaches this process alone, which passes one signal on.
                process_group=0,
            )
        return Child(run_dir, process, claim, steps)

    def _look_after(self, child: Child, study: SweepStudy, lost: set[int]) -> None:
        """Report the new scores of a trial; stop it if others are better; note how it ended."""
        code, claim = child.code, child.claim
        if claim is None:
            return
        scores = validations(child.run_dir)
        for step, dice in scores:
            # Nothing is saved by stopping after the last step.
            if child.pruned or step in claim.reported or step >= child.steps:
                continue
            claim.reported.add(step)
            claim.trial.report(dice, step)
            # The scores decide and not the time at which they are read, so that a sweep can be
            # repeated: a trial that ended in the meantime counts as stopped as well.
            child.pruned = claim.trial.should_prune()
        if code is None:
            if child.pruned and not child.told and child.process is not None:
                child.told = True  # a second signal would stop it before it has saved
                child.process.terminate()
            return
        self.children.remove(child)
        if child.pruned:
            study.finish(claim, None, pruned=True)
            step = max(claim.reported)
            console.log(
                f"samadapt: trial {claim.number}: stopped at step {step}, others are better"
            )
        elif code == 0:
            self._finished(claim, study, [dice for _, dice in scores])
        elif code < 0 or code >= 128:
            lost.add(claim.number)
            claim.lock.release()
            console.log(f"samadapt: trial {claim.number}: killed (exit code {code})")
        else:
            self._failed(child, claim, study, code)

    def _finished(self, claim: Claim, study: SweepStudy, scores: Sequence[float]) -> None:
        finite = [dice for dice in scores if math.isfinite(dice)]
        if not finite:
            error = "the validation Dice is undefined: no validation case holds an object"
            study.finish(claim, None, pruned=False, error=error)
            console.log(f"samadapt: trial {claim.number}: {error}")
            return
        study.finish(claim, max(finite), pruned=False)
        done = [trial for trial in study.trials() if trial.value is not None]
        best = max(done, key=lambda trial: (trial.value or 0.0, -trial.number))
        console.log(
            f"samadapt: trial {claim.number}: validation Dice {max(finite):.4f} (best so far "
            f"{best.value:.4f}, trial {best.number})"
        )

    def _failed(self, child: Child, claim: Claim, study: SweepStudy, code: int) -> None:
        """Note a trial that failed.

        Raises:
            ConfigError: it was refused for a mistake, and no trial has succeeded so far.
        """
        error = _last_words(child)
        study.finish(claim, None, pruned=False, error=error)
        if code == 2 and not any(trial.value is not None for trial in study.trials()):
            raise ConfigError(f"trial {claim.number}: {error}")
        console.log(f"samadapt: trial {claim.number} failed: {error}")

    def _stop(self, stop: StopRequest) -> None:
        """Pass a signal on, wait until the trainings have saved their states, and end.

        Raises:
            InterruptedSweepError: always.
        """
        console.log("samadapt: stopping; the trainings finish their steps and save")
        for child in self.children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child in self.children:
            if child.process is not None:
                child.process.wait()
        raise InterruptedSweepError(self.directory, stop.number)

    def _kill(self) -> None:
        """End what still runs, after an error."""
        for child in self.children:
            if child.process is not None and child.process.poll() is None:
                child.process.kill()
                child.process.wait()
            if child.claim is not None:
                child.claim.lock.release()
        self.children.clear()


@contextmanager
def _warnings_held_back() -> Iterator[None]:
    """Start programs that never hear the signals with which clusters warn, while the block runs.

    SLURM signals all processes of a job. This one passes the warning on, and a training that got it
    twice would stop at once instead of saving.
    """
    names = [name for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
    if not names or threading.current_thread() is not threading.main_thread():
        yield
        return
    # A program inherits which signals are blocked; what arrives here meanwhile is heard afterwards.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {getattr(signal, name) for name in names})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _waits(study: SweepStudy, lost: set[int]) -> bool:
    """Return whether a training of a dead process still runs, which this process must wait for."""
    return any(
        study.is_left_running(trial.number)
        for trial in study.trials()
        if not trial.state.is_finished() and trial.number not in lost
    )


def is_trained(run_dir: Path, *, scored: bool) -> bool:
    """Return whether a training has ended, with its scores if there are to be some."""
    if not (has_trained_weights(run_dir) and (run_dir / SUMMARY).is_file()):
        return False
    summary: Mapping[str, Any] = read_summary(run_dir)
    return not scored or summary["adapted"] is not None


def validations(run_dir: Path) -> list[tuple[int, float]]:
    """Return step and Dice of each validation of a run so far; NaN where it is undefined."""
    path, found = run_dir / "metrics.jsonl", {}
    if not path.is_file():
        return []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # it is being written
            continue
        if line.get("kind") == "validate":
            dice = line["dice"]
            found[int(line["step"])] = math.nan if dice is None else float(dice)
    return sorted(found.items())


def _last_words(child: Child) -> str:
    """Return the message with which a training ended."""
    path = child.run_dir / OUTPUT_NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    marks = [number for number, line in enumerate(lines) if line.startswith("samadapt: ")]
    words = "\n".join(lines[marks[-1] :]) if marks else "\n".join(lines[-3:])
    return words.removeprefix("samadapt: ").removeprefix("error: ") or "it wrote nothing"
