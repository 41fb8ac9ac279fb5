"""The parts of a run, wired as ``finetune`` wires them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from samadapt.config.schema import Config
from samadapt.runs.context import RunContext, open_run
from samadapt.runs.feature_planner import FeaturePlanner
from samadapt.runs.run_slices import divide_slices
from samadapt.runs.scorer import Scorer, make_scorer
from samadapt.system.interrupt import InterruptedRunError
from samadapt.training import loop


@dataclass
class OpenedRun:
    """A run that is ready to plan its features."""

    context: RunContext
    planner: FeaturePlanner
    scorer: Scorer
    config: Config

    def slices(self):
        return divide_slices(
            self.context,
            validate_cases=self.config.train.validate_cases,
            max_test_cases=self.config.eval.max_cases,
        )

    def plan(self, slices):
        self.planner.plan(
            self.config, train=slices.train, others=[*slices.validation, *slices.test]
        )


@pytest.fixture
def opened_run():
    """``opened_run(config, run_dir)``: data and model are loaded; nothing is computed yet."""

    def make(config, run_dir):
        context = open_run(config, run_dir)
        planner = FeaturePlanner(context)
        return OpenedRun(context, planner, make_scorer(planner, config.eval), config)

    return make


@pytest.fixture
def stopped_after(run, monkeypatch) -> Callable[..., Path]:
    """``stopped_after(step, root, *options)``: directory of a run that a signal stopped there."""

    def start(step: int, root: Path, *options: str) -> Path:
        save = loop.save

        def stopping(training, state, optimizer):
            save(training, state, optimizer)
            if state.step == step:
                raise InterruptedRunError(training.run_dir, state.step)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save", stopping)
            with pytest.raises(InterruptedRunError) as caught:
                run(root, *options)
        return caught.value.run_dir

    return start
