"""Trials are claimed once, by any number of processes, and again if their process died."""

from __future__ import annotations

import builtins
import subprocess
import sys
import textwrap

import pytest

from samadapt.errors import MissingExtraError
from samadapt.runs.run_directory import locked
from samadapt.runs.sweep_study import Proposal, SweepStudy, import_optuna

optuna = pytest.importorskip("optuna")
TrialState = optuna.trial.TrialState


def proposer(count):
    """Propose trials n=0, 1, ..., count - 1."""

    def propose(trials):
        n = len(trials)
        given = optuna.distributions.IntDistribution(0, count)
        values = {"n": str(n)}
        return None if n >= count else Proposal(values, f"digest {n}", {"n": n}, {"n": given})

    return propose


def test_a_trial_is_claimed_once_and_ends_once(tmp_path):
    study, other = SweepStudy(tmp_path, None), SweepStudy(tmp_path, None)
    first, second = study.claim(proposer(2), set()), other.claim(proposer(2), set())
    assert (first.number, second.number) == (0, 1)
    assert study.claim(proposer(2), set()) is None
    assert first.run_dir == tmp_path / "trials" / "0000"
    study.finish(first, 0.5, pruned=False)
    other.finish(second, None, pruned=False, error="no")
    states = [(trial.state, trial.value) for trial in study.trials()]
    assert states == [(TrialState.COMPLETE, 0.5), (TrialState.FAIL, None)]
    assert study.trials()[1].user_attrs["error"] == "no"
    assert SweepStudy(tmp_path, None).claim(proposer(2), set()) is None


def test_the_trial_of_a_dead_process_is_claimed_again(tmp_path):
    study = SweepStudy(tmp_path, None)
    claim = study.claim(proposer(1), set())
    claim.trial.report(0.25, 3)
    claim.lock.release()  # as the system does when a process dies
    again = SweepStudy(tmp_path, None).claim(proposer(1), set())
    assert (again.number, again.values, again.reported) == (0, {"n": "0"}, {3})
    again.lock.release()
    assert study.claim(proposer(1), {0}) is None  # this process has given it up


def test_a_training_that_outlived_its_process_is_not_started_again(tmp_path):
    study = SweepStudy(tmp_path, None)
    claim = study.claim(proposer(1), set())
    claim.run_dir.mkdir()
    (claim.run_dir / "config.yaml").touch()
    with locked(claim.run_dir):
        assert not study.is_left_running(0)  # its process lives
        claim.lock.release()
        assert study.is_left_running(0)
        assert study.claim(proposer(1), set()) is None
    assert not study.is_left_running(0)
    assert study.claim(proposer(1), set()).number == 0


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from samadapt.runs.sweep_study import SweepStudy
from test_sweep_study import proposer

study = SweepStudy(Path({folder!r}), None)
while (claim := study.claim(proposer(12), set())) is not None:
    sys.stdout.write(f"{{claim.number}}\\n")
    time.sleep(0.02)
    study.finish(claim, 0.1 * claim.number, pruned=False)
"""


@pytest.mark.slow
def test_processes_never_claim_the_same_trial(tmp_path):
    here = __file__.rpartition("test_sweep_study")[0]
    code = textwrap.dedent(WORKER).format(here=here, folder=str(tmp_path))
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)
    ]
    taken = [int(word) for worker in workers for word in worker.communicate()[0].split()]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(taken) == list(range(12))


def test_without_optuna_the_extra_is_named(monkeypatch):
    right = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "optuna":
            raise ImportError(name)
        return right(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"samadapt\[sweep\]"):
        import_optuna()
