"""Submit commands as jobs of a cluster, and a run: ``samadapt finetune ... launcher=submitit``.

The mistakes that can be found here are found here, before anything waits in a queue: the run
directory is made, the data set is opened and the weights are fetched. The jobs only resume the run
directory.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.config.launcher import JobLauncher
from samadapt.config.schema import Config
from samadapt.data.pseudonyms import open_key, write_key
from samadapt.errors import ConfigError, MissingExtraError
from samadapt.runs.batch_size import with_batch_size
from samadapt.runs.cluster_job import CommandJob
from samadapt.runs.context import open_data
from samadapt.runs.cross_validation import fold_config, open_cross_validation
from samadapt.runs.initial_adapter import with_initial_digest
from samadapt.runs.part_runs import is_finished
from samadapt.runs.run_directory import locked, open_run_dir, removed_if_refused
from samadapt.sam.weights.loading import weights_file
from samadapt.system.launchers import find_place

if TYPE_CHECKING:
    from submitit.core.core import Job, PicklingExecutor

JOBS = "jobs"
"""The folder of a run directory with submitit's files and the logs of the jobs."""

LOOK_EVERY = 1.0
"""Seconds between two looks at the jobs that are waited for."""


@dataclass(frozen=True)
class SubmittedRun:
    """A run whose jobs are queued.

    Attributes:
        run_dir: the run directory.
        jobs: the jobs, as submitit knows them.
    """

    run_dir: Path
    jobs: list[Job[None]]


def job_entries(jobs: Sequence[Job[None]]) -> list[dict[str, str]]:
    """Return the number of each job and the file that receives its messages."""
    return [{"job": job.job_id, "log": str(job.paths.stdout)} for job in jobs]


def submit_finetune(
    config: Config, launcher: JobLauncher, overrides: Sequence[str] = ()
) -> SubmittedRun:
    """Submit a training, or every missing fold of a cross-validation as a job of its own.

    Args:
        config: the configuration of the run.
        launcher: what each job asks for.
        overrides: with ``resume``, the keys that differ from those of the run directory.

    Raises:
        UserError: for a mistake in configuration, data or weights, or when the cluster refuses the
            jobs; nothing is queued, and a new run directory is removed again.
        MissingExtraError: submitit is not installed.
    """
    check_launcher(launcher)
    if launcher.jobs > 1:
        raise ConfigError(
            f"launcher.jobs={launcher.jobs} is for predict, masks and sweep; a training is one "
            "job, and folds=5 makes one for each fold"
        )
    if config.memory is not None and config.resume is None:
        raise ConfigError(
            f"memory={config.memory} is chosen on the machine that computes; take the keys that "
            "`samadapt plan` with the same arguments names there, and leave memory out"
        )
    if config.init is not None:
        config = with_initial_digest(config)
    config = with_batch_size(config)
    folds: list[Path] = []
    if config.folds is None:
        run_dir = open_run_dir(config)
    else:
        run_dir, folds = open_cross_validation(config)
    with removed_if_refused(run_dir, keep=config.resume is not None):
        with locked(run_dir):  # refuse a run that is at work
            if config.folds is not None and config.privacy:
                write_key(run_dir, open_key(run_dir), ())  # one key for all folds
            check_inputs(fold_config(config, 0, config.folds) if config.folds else config)
        command = ("finetune", f"resume={run_dir}", *overrides)
        missing = [fold for fold, folder in enumerate(folds) if not is_finished(folder)]
        commands = [(*command, f"only_fold={fold}") for fold in missing] or [command]
        return SubmittedRun(run_dir, submit(commands, launcher, run_dir / JOBS))


def check_inputs(config: Config) -> None:
    """Open the data set and find or fetch the weights, as the job will do.

    Raises:
        UserError: for what is wrong with them.
    """
    open_data(config, scratch=config.output.dir)
    if config.baseline.name is None:
        weights_file(config.model.name, config.model.checkpoint)


def check_launcher(launcher: JobLauncher) -> None:
    """Check that jobs can be submitted here.

    Raises:
        MissingExtraError: submitit is not installed.
        ConfigError: SLURM is not here, or this is one of several processes.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise MissingExtraError("submitit", "slurm") from None
    if (size := find_place().size) > 1:
        raise ConfigError(
            f"launcher={launcher.name} starts the processes of the run itself, and this is one of "
            f"{size}; run the command once, with launcher.tasks_per_node and launcher.nodes"
        )
    lacking = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if launcher.executor == "slurm" and lacking:
        raise ConfigError(
            f"launcher.executor=slurm: the program {lacking[0]} is not here; submit on a machine "
            "of the cluster, or use launcher.executor=local, which starts the jobs on this machine"
        )


def submit(
    commands: Sequence[tuple[str, ...]], launcher: JobLauncher, folder: Path
) -> list[Job[None]]:
    """Submit a job for each command; several are an array.

    Args:
        commands: command lines of samadapt, without its name.
        launcher: what each job asks for.
        folder: receives submitit's files and the logs.

    Raises:
        ConfigError: the cluster refuses the jobs.
    """
    try:
        executor = _executor(launcher, folder)
        jobs: list[Job[None]] = executor.submit_array([CommandJob(one) for one in commands])
    except (RuntimeError, ValueError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0])
        raise ConfigError(f"launcher={launcher.name}: the jobs are refused: {reason}") from error
    return jobs


def _executor(launcher: JobLauncher, folder: Path) -> PicklingExecutor:
    """Return submitit's executor with the resources of a job."""
    from submitit import LocalExecutor, SlurmExecutor

    shared: dict[str, Any] = {
        "nodes": launcher.nodes,
        "signal_delay_s": launcher.warning_seconds,
        "stderr_to_stdout": True,  # one log for each process
        "setup": list(launcher.setup),
    }
    if launcher.executor == "local":
        local = LocalExecutor(folder, max_num_timeout=launcher.requeues)
        local.update_parameters(
            timeout_min=launcher.minutes,
            tasks_per_node=launcher.tasks(),
            gpus_per_node=launcher.gpus_per_node,
            **shared,
        )
        return local
    memory, cpus = launcher.memory_gb, launcher.cpus_per_task
    slurm = SlurmExecutor(folder, max_num_timeout=launcher.requeues)
    slurm.update_parameters(
        job_name="samadapt",
        time=launcher.minutes,
        ntasks_per_node=launcher.tasks(),
        gpus_per_node=launcher.gpus_per_node or None,
        cpus_per_task=cpus,
        # Since SLURM 22.05 srun no longer takes the cores of a task from sbatch.
        srun_args=[f"--cpus-per-task={cpus}"] if cpus else None,
        mem=None if memory is None else f"{round(memory * 1024)}MB",
        partition=launcher.partition,
        account=launcher.account,
        qos=launcher.qos,
        array_parallelism=launcher.at_once,
        additional_parameters=dict(launcher.sbatch),
        **shared,
    )
    return slurm


def follow(jobs: Sequence[Job[None]]) -> list[str]:
    """Wait until the jobs end; show the messages of a single one, and how many of several ended.

    Returns:
        The numbers of the jobs that failed.
    """
    shown, ended = 0, 0
    while True:
        done = [job.done() for job in jobs]
        if len(jobs) == 1:
            shown = _show(jobs[0].paths.stdout, shown)
        elif sum(done) > ended:
            ended = sum(done)
            console.log(f"{ended} of {len(jobs)} jobs ended")
        if all(done):
            return [job.job_id for job in jobs if job.exception() is not None]
        time.sleep(LOOK_EVERY)


def _show(log: Path, shown: int) -> int:
    """Show the lines that a log has gained, and return how many bytes of it are shown."""
    try:
        with log.open("rb") as file:
            file.seek(shown)
            whole = file.read().rpartition(b"\n")[0]
    except OSError:  # the job has not started
        return shown
    if not whole:
        return shown
    console.log(whole.decode("utf-8", "replace"))
    return shown + len(whole) + 1
