"""The parts of a run, wired as ``finetune`` wires them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import samadapt
from samadapt.adapters.record import RECORD, digest_of
from samadapt.cli import main
from samadapt.config.schema import Config
from samadapt.errors import AdapterError
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
def base_file(tiny_sam, tmp_path) -> Path:
    """The weights of a random base as a file, which an adapter of it needs to be loaded."""
    path: Path = tmp_path / "base.pth"
    torch.save(tiny_sam.state_dict(), path)
    return path


@pytest.fixture
def refuses_head(base_file) -> Callable[..., None]:
    """``refuses_head(adapter, change, text)``: loading refuses a changed entry of the head."""

    def check(adapter: Path, change: dict[str, object], text: str) -> None:
        path = adapter / RECORD
        values = json.loads(path.read_text(encoding="utf-8"))
        values["head"] |= change
        values["record_sha256"] = digest_of(values)  # signed anew, so that the entry is judged
        path.write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(AdapterError, match=text):
            samadapt.load_adapter(adapter, checkpoint=base_file)

    return check


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


@pytest.fixture
def resumes_bit_equal(run, stopped_after) -> Callable[..., None]:
    """``resumes_bit_equal(root, options, files)``: a stopped run ends as one that was not."""

    def check(root: Path, options: Sequence[str], files: Sequence[str]) -> None:
        expected = run(root, *options)
        stopped = stopped_after(2, root, *options)
        assert main(["finetune", f"resume={stopped}"]) == 0
        for name in files:
            assert (stopped / name).read_bytes() == (expected.run_dir / name).read_bytes()

    return check
