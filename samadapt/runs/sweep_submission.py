"""Submit a sweep as an array of jobs: ``samadapt sweep ... launcher=submitit launcher.jobs=8``.

The mistakes that can be found here are found here, and the directory of the sweep is made. The jobs
resume it side by side, as any number of processes can; the one that ends last scores the winner.
The first job chooses device, precision and threads, which the machine that submits cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samadapt import console
from samadapt.config.launcher import JobLauncher
from samadapt.config.sweep_arguments import SweepArguments
from samadapt.errors import ConfigError
from samadapt.reports.sweep import plan_text
from samadapt.runs.context import open_data
from samadapt.runs.run_directory import removed_if_refused
from samadapt.runs.submission import JOBS, SubmittedRun, check_launcher, submit
from samadapt.runs.sweep import check_same_data, describe_plan, make_directory
from samadapt.runs.sweep_search import TrialMaker, make_search
from samadapt.runs.sweep_study import import_optuna
from samadapt.sam.weights.loading import weights_file


def submit_sweep(
    arguments: SweepArguments, launcher: JobLauncher, overrides: Sequence[str] = ()
) -> SubmittedRun:
    """Submit the trials that are missing to several jobs.

    Args:
        arguments: the keys of the sweep.
        launcher: how many jobs there are, and what each asks for.
        overrides: with ``resume``, the keys that differ from those of the sweep's directory.

    Raises:
        UserError: for a mistake in configuration, data or weights, or when the cluster refuses the
            jobs; nothing is queued, and a new directory is removed again.
        MissingExtraError: submitit or optuna is not installed.
    """
    check_launcher(launcher)
    import_optuna()
    count = launcher.nodes * launcher.tasks()
    if count > 1:
        raise ConfigError(
            f"launcher={launcher.name}: each job would start {count} processes, and a sweep runs "
            "as one; give launcher.tasks_per_node=1 and more launcher.jobs"
        )
    resumed = None if arguments.resume is None else Path(arguments.resume)
    dataset = open_data(arguments, scratch=arguments.output.dir)
    if resumed is not None and not any(key.startswith("data.") for key in arguments.space):
        check_same_data(dataset, resumed, hides_names=arguments.privacy)
    device, precision = arguments.device, arguments.precision
    search = make_search(TrialMaker(arguments, device, precision, dataset.longest_side()))
    if arguments.baseline.name is None:
        weights_file(arguments.model.name, arguments.model.checkpoint)
    console.log(plan_text(describe_plan(arguments, search, None, dataset)))
    directory = resumed or make_directory(arguments, None)
    with removed_if_refused(directory, keep=resumed is not None):
        command = ("sweep", f"resume={directory}", *overrides)
        commands = [command] * min(launcher.jobs, search.total)
        return SubmittedRun(directory, submit(commands, launcher, directory / JOBS))
