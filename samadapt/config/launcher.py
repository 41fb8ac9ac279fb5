"""The keys of the group ``launcher``: run a command as jobs of a cluster instead of here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings
from samadapt.errors import ConfigError
from samadapt.system.settings import List, Settings, Whole


@dataclass(frozen=True)
class JobLauncher(Settings):
    """Whether the command runs here or as jobs of a cluster, and what each job asks for."""

    section: ClassVar[str] = "launcher"

    name: Literal["submitit"] | None = Field(
        default=None,
        description="submitit: submit jobs to SLURM and return; null: run here",
    )
    executor: Literal["slurm", "local"] = Field(
        default="slurm",
        description="local: the jobs are processes of this machine, to try the same command "
        "without a cluster",
    )
    partition: str | None = Field(
        default=None, description="partition of SLURM; null: the cluster's default"
    )
    account: str | None = Field(
        default=None, description="account that pays; null: the cluster's default"
    )
    qos: str | None = Field(
        default=None, description="quality of service; null: the cluster's default"
    )
    jobs: Whole = Field(
        default=1,
        ge=1,
        description="for predict and masks of a folder, and for sweep: number of jobs that share "
        "the work; finetune has one for each fold",
    )
    nodes: Whole = Field(default=1, ge=1, description="machines of a job")
    gpus_per_node: Whole = Field(default=0, ge=0, description="GPUs of a job on each machine")
    tasks_per_node: Whole | None = Field(
        default=None,
        ge=1,
        description="processes of a job on each machine, which share the run; null: one for each "
        "GPU, or one",
    )
    cpus_per_task: Whole | None = Field(
        default=None, ge=1, description="cores of each process; null: the cluster's default"
    )
    memory_gb: float | None = Field(
        default=None, gt=0, description="GB of memory on each machine; null: the cluster's default"
    )
    minutes: Whole = Field(
        default=240,
        ge=1,
        description="time limit of a job; a run that needs longer is saved, queued again and goes "
        "on",
    )
    warning_seconds: Whole = Field(
        default=120,
        ge=1,
        description="how long before its end a job is told to save; longer than a few steps of the "
        "training",
    )
    requeues: Whole = Field(
        default=100, ge=0, description="how often a job may run out of time before it fails"
    )
    at_once: Whole = Field(
        default=256, ge=1, description="largest number of jobs of an array that run at once"
    )
    setup: List[str] = Field(
        default_factory=list,
        description="shell commands before the job starts, such as ['module load cuda']",
    )
    sbatch: dict[str, str | Whole] = Field(
        default_factory=dict,
        description="other options of sbatch, such as {constraint: a100, gres: 'gpu:2'}",
    )
    wait: bool = Field(
        default=False, description="wait until the jobs end, and show their messages and results"
    )

    def __post_init__(self) -> None:
        """Refuse keys that do not fit together.

        Raises:
            ConfigError: naming the keys.
        """
        if self.jobs > 1 and self.name is None:
            raise ConfigError(
                f"launcher.jobs={self.jobs}: nothing is submitted without launcher=submitit"
            )
        if self.warning_seconds >= 60 * self.minutes:
            raise ConfigError(
                f"launcher.warning_seconds={self.warning_seconds} must be less than the time limit "
                f"of the job, launcher.minutes={self.minutes}"
            )
        if self.executor == "local" and self.nodes > 1:
            raise ConfigError(
                f"launcher.executor=local runs on this machine alone; got "
                f"launcher.nodes={self.nodes}"
            )

    def tasks(self) -> int:
        """Return the number of processes of a job on each machine."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


@dataclass(frozen=True)
class LauncherKeys(Settings):
    """The keys of a command that say where it runs, and nothing else."""

    launcher: JobLauncher = field(default_factory=JobLauncher)


def split_launcher(arguments: Sequence[str]) -> tuple[JobLauncher, list[str]]:
    """Return where a command line says that it runs, and its other arguments.

    Raises:
        ConfigError: a key of the launcher is wrong.
    """
    own = [argument for argument in arguments if is_of_launcher(argument)]
    others = [argument for argument in arguments if not is_of_launcher(argument)]
    return parse_settings(LauncherKeys, own).launcher, others


def is_of_launcher(argument: str) -> bool:
    """Return whether an argument is a key of the group ``launcher``."""
    return argument.partition("=")[0].partition(".")[0] == "launcher"
