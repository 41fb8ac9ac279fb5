"""Submit the images of a folder as an array of jobs: ``samadapt predict ... launcher=submitit``.

The mistakes that can be found here are found here: the images are listed, the model is loaded and
the options are compared with those of earlier outputs. Each job does a part of the folder that is
not done yet, as anyone can with ``only_part=K parts=N``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from samadapt.config.folder_jobs import FolderJobs
from samadapt.config.launcher import is_of_launcher
from samadapt.errors import ConfigError, UserError
from samadapt.inference.files import PredictionPlan
from samadapt.inference.folder_work import FolderWork, Part
from samadapt.inference.output_settings import settings_file
from samadapt.runs.submission import check_launcher, follow, job_entries, submit

if TYPE_CHECKING:
    from submitit.core.core import Job

Row = dict[str, Any]

OF_SUBMISSION = ("overwrite", "only_part", "parts")
"""Keys that a job does not get as they were typed."""


@dataclass(frozen=True)
class OpenedFolder:
    """The outputs of a folder as they are when its jobs are submitted.

    Attributes:
        done: the rows of the images that are done, by name.
        finish: completes the outputs where nothing is missing; it is given the rows of all images.
    """

    done: Mapping[str, Row]
    finish: Callable[[list[Row]], None]


@dataclass(frozen=True)
class SubmittedFolder:
    """A folder whose jobs are queued.

    Attributes:
        work: the folder.
        parts: the number of parts.
        jobs: the jobs, as submitit knows them: one for each part with something to do.
        rows: the rows of all images if nothing was to be done; else none.
    """

    work: FolderWork
    parts: int
    jobs: list[Job[None]]
    rows: list[Row] = field(default_factory=list)

    def result(self, *, wait: bool) -> dict[str, Any]:
        """Return the jobs, and the rows of all images if they are waited for.

        Args:
            wait: wait until the jobs end.
        """
        found: dict[str, Any] = {"jobs": job_entries(self.jobs)}
        if not self.jobs:
            return found | {"files": self.rows, "exit_code": 0}
        if not wait:
            return found
        failed = follow(self.jobs)
        rows = self._rows()
        code = int(bool(failed) or any("error" in row for row in rows))
        return found | {"failed": failed, "files": rows, "exit_code": code}

    def _rows(self) -> list[Row]:
        """Return the rows that the parts have written; an image without one has an error."""
        images = self.work.plan.images
        rows: list[Row] = [{}] * len(images)
        for part in (Part(index, self.parts) for index in range(self.parts)):
            reason = f"{part.name.replace('_', ' ')} did not end; the log of its job may say why"
            missing = [
                {"input": str(one.path), "error": f"{one.path}: {reason}"}
                for one in part.of(images)
            ]
            rows[part.index :: part.count] = self.work.read_rows(part) or missing
        return rows


def submit_folder(
    command: str,
    arguments: Sequence[str],
    plan: PredictionPlan,
    asked: FolderJobs,
    open_folder: Callable[[FolderWork], OpenedFolder],
) -> SubmittedFolder:
    """Submit a job for each part of a folder in which an image is missing.

    Args:
        command: ``predict`` or ``masks``.
        arguments: its arguments, as typed.
        plan: what to read and write.
        asked: how many jobs there are, and what each asks for.
        open_folder: loads the model, compares and records how outputs are made, and returns what
            is done.

    Raises:
        UserError: for a mistake in arguments, files or weights, or when the cluster refuses the
            jobs; nothing is queued.
        MissingExtraError: submitit is not installed.
    """
    launcher = asked.launcher
    check_launcher(launcher)
    if not plan.is_folder:
        raise ConfigError(
            f"launcher={launcher.name}: jobs share the images of a folder, and the input is a "
            "single image; leave the launcher out"
        )
    count = min(launcher.jobs, len(plan.images))
    parts = [Part(index, count) for index in range(count)]
    work = FolderWork(plan, command)
    with _removed_if_refused(work):
        with work:
            opened = open_folder(work)
            names = [planned.image.name for planned in plan.images]
            missing = [part for part in parts if not set(part.of(names)) <= set(opened.done)]
            done = [
                {"input": planned.path, **opened.done.get(planned.image.name, {})}
                for planned in plan.images
            ]
            if not missing:
                opened.finish(done)
                return SubmittedFolder(work, count, [], done)
            for part in (part for part in parts if part not in missing):
                rows = [{k: v for k, v in row.items() if k != "coco"} for row in part.of(done)]
                work.write_rows(part, rows)
        kept = [one for one in arguments if not is_of_launcher(one)]
        kept = [one for one in kept if one.partition("=")[0] not in OF_SUBMISSION]
        commands = [
            (command, *kept, f"only_part={part.index}", f"parts={count}") for part in missing
        ]
        return SubmittedFolder(work, count, submit(commands, launcher, work.jobs))


@contextmanager
def _removed_if_refused(work: FolderWork) -> Iterator[None]:
    """Remove what the submission has made if the block refuses it."""
    target = work.plan.target
    made = [settings_file(work.plan, work.command), work.jobs]
    made = [path for path in (made if work.plan.is_coco else [target, *made]) if not path.exists()]
    try:
        yield
    except UserError:
        for path in made:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise
