"""The trials of a sweep, in a journal file that several processes and machines share.

optuna keeps the journal: what each trial is, its validation scores, and how it ended. A process
claims one trial after another. A trial whose process died is claimed again by the next one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from samadapt.errors import MissingExtraError
from samadapt.runs.run_directory import is_locked

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"
CLAIMS = "claims"
"""The folder of the locks of a sweep."""
NAME = "sweep"


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be run.

    Attributes:
        values: its values of the searched keys, and what follows from them, as typed.
        digest: of its whole configuration; trials of the same digest are the same run.
        params: the values that the search chose, for optuna.
        distributions: what they were chosen from.
    """

    values: Mapping[str, str]
    digest: str
    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]


@dataclass
class Claim:
    """A trial that this process runs.

    Attributes:
        number: its number, from 0.
        values: see ``Proposal``.
        run_dir: its run directory.
        trial: optuna's trial, which takes the validation scores.
        lock: held while the process runs the trial; the system frees it if the process dies.
    """

    number: int
    values: Mapping[str, str]
    run_dir: Path
    trial: Trial
    lock: FileLock
    reported: set[int] = field(default_factory=set)


def import_optuna() -> Any:
    """Return the module optuna, which comes with an extra.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class SweepStudy:
    """The journal of a sweep.

    Attributes:
        folder: the folder of the trials, one run directory each.
        study: optuna's view of it.
    """

    def __init__(self, directory: Path, pruner: BasePruner | None) -> None:
        """Open the journal of a sweep, or start it.

        Args:
            directory: the directory of the sweep.
            pruner: decides which trials are stopped early; None: none.
        """
        optuna = import_optuna()
        self.folder = directory / "trials"
        self._claims = directory / CLAIMS
        for folder in (self.folder, self._claims):
            folder.mkdir(exist_ok=True)
        storage = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(
                str(directory / JOURNAL), lock_obj=_file_lock(directory / JOURNAL)
            )
        )
        with alone(self._claims / "next"):
            self.study: Study = optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction="maximize",
                load_if_exists=True,
                # Values are chosen by ``Search`` before a trial begins.
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=pruner or optuna.pruners.NopPruner(),
            )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials in the order of their numbers."""
        found: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return found

    def run_dir(self, number: int) -> Path:
        """Return the run directory of a trial."""
        return self.folder / f"{number:04d}"

    def claim(
        self,
        propose: Callable[[Sequence[FrozenTrial]], Proposal | None],
        given_up: set[int],
    ) -> Claim | None:
        """Take a trial whose process died, or else a new one; None: there is nothing to take.

        Args:
            propose: returns the next trial after those that there are; None: no further one.
            given_up: numbers of trials that failed in this process for a reason that may pass.
        """
        optuna = import_optuna()
        with alone(self._claims / "next"):
            for trial in self.trials():
                left = not trial.state.is_finished() and trial.number not in given_up
                if left and (claim := self._take(trial)) is not None:
                    return claim
            proposal = propose(self.trials())
            if proposal is None:
                return None
            attributes = {"values": dict(proposal.values), "digest": proposal.digest}
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING,
                    params=dict(proposal.params),
                    distributions=dict(proposal.distributions),
                    user_attrs=attributes,
                )
            )
            return self._take(self.trials()[-1])

    def is_left_running(self, number: int) -> bool:
        """Return whether the process of a trial died and its training still runs."""
        return is_locked(self.run_dir(number)) and not self._is_claimed(number)

    def finish(self, claim: Claim, value: float | None, *, pruned: bool, error: str = "") -> None:
        """Record how a trial ended, and let it go.

        Args:
            claim: the trial.
            value: its best validation Dice; None: it failed.
            pruned: whether it was stopped early.
            error: why it failed.
        """
        from optuna.trial import TrialState

        if error:
            claim.trial.set_user_attr("error", error)
        if pruned:
            self.study.tell(claim.number, state=TrialState.PRUNED)
        elif value is None:
            self.study.tell(claim.number, state=TrialState.FAIL)
        else:
            self.study.tell(claim.number, value)
        claim.lock.release()

    def _take(self, trial: FrozenTrial) -> Claim | None:
        """Take a trial, unless another process has it or its training still runs."""
        from optuna.trial import Trial

        lock = self._lock(trial.number)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        run_dir = self.run_dir(trial.number)
        if is_locked(run_dir):
            lock.release()
            return None
        values = trial.user_attrs["values"]
        live = Trial(self.study, trial._trial_id)
        return Claim(trial.number, values, run_dir, live, lock, {*trial.intermediate_values})

    def _is_claimed(self, number: int) -> bool:
        try:
            with self._lock(number).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def _lock(self, number: int) -> FileLock:
        return FileLock(self._claims / f"{number:04d}.lock")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes away while the block runs, with a lock that works between machines.

    Args:
        path: names what is protected; the lock lies beside it.
    """
    lock = _file_lock(path)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _file_lock(path: Path) -> Any:
    """Return optuna's lock, which needs no locks of the file system."""
    from optuna.storages import journal

    path.touch()  # its time of change tells whether a lock is still in use
    # Windows lets only administrators make links.
    kind = journal.JournalFileOpenLock if os.name == "nt" else journal.JournalFileSymlinkLock
    return kind(str(path))
