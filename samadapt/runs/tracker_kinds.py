"""What each experiment tracker needs beside accelerate's common calls, a class each.

accelerate's ``tracking.py`` starts a tracker, gives it the hyperparameters and the numbers of each
step, and ends it. A class here says how it is started so that its files lie in the run directory
and a resumed run goes on in the same place, and how it takes a picture.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from samadapt.system.arrays import Array

PROJECT = "samadapt"
"""The project, or experiment, that groups the runs; the variables of a tracker may name another."""


@dataclass(frozen=True)
class FollowedRun:
    """What a tracker is told when it starts.

    Attributes:
        name: name of the run, that of its directory.
        folder: where the tracker may write files, in the run directory.
        is_private: whether nothing may name a file, as with ``privacy=true``.
        first_step: the first step that will be logged.
        earlier: what ``TrackerKind.identity`` returned when the run was started, if this process
            resumes it; else None.
    """

    name: str
    folder: Path
    is_private: bool
    first_step: int
    earlier: str | None


class TrackerKind:
    """One of accelerate's trackers, in one run.

    Attributes:
        package: what pip installs; samadapt has an extra of this name.
        rewinds: whether it forgets the steps from ``FollowedRun.first_step`` on, so that a resumed
            run writes them again. Of all others a step is written once.
        keeps_privacy: whether it records nothing of the process, such as the command line, or can
            be told not to.
    """

    package: ClassVar[str]
    rewinds: ClassVar[bool] = False
    keeps_privacy: ClassVar[bool] = False

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Return the arguments of accelerate's class; the environment is prepared for it."""
        raise NotImplementedError

    def identity(self, tracker: Any) -> str:
        """Return what names the run that was started, for a process that resumes it."""
        raise NotImplementedError

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a PNG file.

        Args:
            tracker: accelerate's tracker, started.
            name: name of the picture, such as ``overlays/best``.
            path: the file.
            step: the last step of the training.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Undo what ``arguments`` changed outside the run; called after the end."""


class TensorBoardKind(TrackerKind):
    """Event files in ``RUN_DIR/trackers/tensorboard``; numbers are rounded to 32 bits."""

    package = "tensorboard"
    rewinds = True  # a start at step n hides the steps from n on
    keeps_privacy = True

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Start at the first step, which hides later ones of a process that was killed."""
        purge = {} if run.earlier is None else {"purge_step": run.first_step}
        return {"run_name": "tensorboard", "logging_dir": str(run.folder), **purge}

    def identity(self, tracker: Any) -> str:
        """Return anything: the folder names the run."""
        return "tensorboard"

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a batch of one picture."""
        tracker.log_images({name: read_picture(path)[None]}, step=step, dataformats="NHWC")


class WandbKind(TrackerKind):
    """Weights & Biases, on its server or with ``WANDB_MODE=offline`` in ``RUN_DIR/trackers``."""

    package = "wandb"
    keeps_privacy = True

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Name the run, and go on with the earlier one."""
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        again = {} if run.earlier is None else {"id": run.earlier, "resume": "allow"}
        # The metadata hold the command line, which names the folder of the data.
        hidden = {"x_disable_meta": True, "disable_git": True} if run.is_private else {}
        settings = wandb.Settings(save_code=False, console="off", **hidden)
        options = {"name": run.name, "dir": str(run.folder), "settings": settings}
        return {"run_name": project, **options, **again}

    def identity(self, tracker: Any) -> str:
        """Return the id of the run."""
        return str(tracker.tracker.id)

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a list of one picture."""
        tracker.log_images({name: [read_picture(path)]}, step=step)


class MlflowKind(TrackerKind):
    """MLflow, on the server of ``MLFLOW_TRACKING_URI`` or in ``RUN_DIR/trackers/mlflow``."""

    package = "mlflow"
    keeps_privacy = True
    is_local = False

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Use a database in the run directory if no server is named."""
        import mlflow

        own: dict[str, Any] = {}
        self.is_local = not mlflow.is_tracking_uri_set()
        if self.is_local:
            folder = run.folder.resolve() / "mlflow"
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            own["logging_dir"] = (folder / "artifacts").as_uri()
        return {
            "experiment_name": PROJECT,
            "run_name": run.name,
            "run_id": run.earlier,
            **own,
        }

    def identity(self, tracker: Any) -> str:
        """Return the id of the run."""
        return str(tracker.tracker.info.run_id)

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Keep the file as an artifact."""
        tracker.log_artifact(str(path), str(Path(name).parent))

    def release(self) -> None:
        """Let the next run of this process have a database of its own."""
        import mlflow

        if self.is_local:
            mlflow.set_tracking_uri(None)


class TrackioKind(TrackerKind):
    """trackio, in the folder of ``TRACKIO_DIR`` or on the Space of ``TRACKIO_SPACE_ID``."""

    package = "trackio"
    keeps_privacy = True

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Name the run, which also finds it again."""
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        resume = "never" if run.earlier is None else "allow"
        name = run.earlier or run.name
        return {"run_name": project, "name": name, "resume": resume, "embed": False}

    def identity(self, tracker: Any) -> str:
        """Return the name of the run."""
        return str(tracker.tracker.name)

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        import trackio

        tracker.log({name: trackio.Image(read_picture(path))}, step=step)


class SwanLabKind(TrackerKind):
    """SwanLab, on its server or with ``SWANLAB_MODE=offline`` in ``RUN_DIR/trackers/swanlab``."""

    package = "swanlab"

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Name the run, and go on with the earlier one."""
        project = os.environ.get("SWANLAB_PROJECT", PROJECT)
        again = {} if run.earlier is None else {"id": run.earlier, "resume": "allow"}
        folder = str(run.folder / "swanlab")
        return {"run_name": project, "experiment_name": run.name, "logdir": folder, **again}

    def identity(self, tracker: Any) -> str:
        """Return the id of the run."""
        return str(tracker.tracker.id)

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a list of one picture."""
        tracker.log_images({name: [read_picture(path)]}, step=step)


class DvcLiveKind(TrackerKind):
    """DVCLive, in ``RUN_DIR/trackers/dvclive``."""

    package = "dvclive"
    keeps_privacy = True

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Write files and make no experiment in the git repository of the working folder."""
        own = {"dir": str(run.folder / "dvclive"), "save_dvc_exp": False, "dvcyaml": None}
        return {**own, "resume": run.earlier is not None}

    def identity(self, tracker: Any) -> str:
        """Return anything: the folder names the run."""
        return "dvclive"

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        tracker.tracker.log_image(f"{name}.png", read_picture(path))


class ClearMLKind(TrackerKind):
    """ClearML, on the server of its configuration or with ``CLEARML_OFFLINE_MODE=1``."""

    package = "clearml"

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Start a task that takes only what it is given, or go on with the earlier one."""
        quiet = ("auto_connect_arg_parser", "auto_connect_frameworks", "auto_connect_streams")
        return {
            "run_name": PROJECT,
            "project_name": os.environ.get("CLEARML_PROJECT", PROJECT),
            "task_name": os.environ.get("CLEARML_TASK", run.name),
            "continue_last_task": run.earlier or False,
            **dict.fromkeys(quiet, False),
        }

    def identity(self, tracker: Any) -> str:
        """Return the id of the task."""
        return str(tracker.tracker.id)

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        tracker.log_images({name: read_picture(path)}, step=step)


class CometKind(TrackerKind):
    """Comet, on its server, or offline with ``COMET_START_ONLINE=0``."""

    package = "comet_ml"

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Start an experiment, or go on with the earlier one."""
        project = os.environ.get("COMET_PROJECT_NAME", PROJECT)
        again = {} if run.earlier is None else {"experiment_key": run.earlier}
        return {"run_name": project, **again}

    def identity(self, tracker: Any) -> str:
        """Return the key of the experiment."""
        return str(tracker.tracker.get_key())

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        tracker.tracker.log_image(read_picture(path), name=name, step=step)


class AimKind(TrackerKind):
    """Aim, in ``RUN_DIR/trackers``."""

    package = "aim"

    def arguments(self, run: FollowedRun) -> dict[str, Any]:
        """Start a run that records nothing of the system, or go on with the earlier one."""
        again = {} if run.earlier is None else {"run_hash": run.earlier}
        own = {"run_name": run.name, "logging_dir": str(run.folder), "experiment": PROJECT}
        return {**own, "system_tracking_interval": None, "capture_terminal_logs": False, **again}

    def identity(self, tracker: Any) -> str:
        """Return the hash of the run."""
        return str(tracker.tracker.hash)

    def log_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Log a picture."""
        tracker.log_images({name: read_picture(path)}, step=step)


KINDS: dict[str, type[TrackerKind]] = {
    "tensorboard": TensorBoardKind,
    "wandb": WandbKind,
    "mlflow": MlflowKind,
    "trackio": TrackioKind,
    "swanlab": SwanLabKind,
    "dvclive": DvcLiveKind,
    "clearml": ClearMLKind,
    "comet_ml": CometKind,
    "aim": AimKind,
}
"""Every tracker that accelerate knows, by its name there."""


def read_picture(path: Path) -> Array:
    """Return a picture file as (h, w, 3) bytes."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
