"""What ``samadapt predict`` has written for a folder, so that it goes on after a stop.

``predict_settings.yaml`` in the output folder says how its files were made, and
``predict_rows.jsonl`` has a line for each image that is done: what was found in it, and which files
were read and written. For a COCO file they are ``NAME_settings.yaml`` and ``NAME_rows.jsonl``. An
image is skipped if it has a line, its files are as they were when it was read, and its outputs are
as they were written. Anything else is done anew, also what an earlier version has left. Parts of a
folder have lines of their own until all have ended (``folder_work.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from samadapt.errors import UserError
from samadapt.inference.drawn_files import drawn_files
from samadapt.inference.files import PlannedImage, stem_of
from samadapt.inference.folder_work import FolderWork
from samadapt.inference.journal import Entry, Journal
from samadapt.inference.mask_coco import rows_file
from samadapt.inference.options import PredictionOptions
from samadapt.inference.output_settings import keep_settings
from samadapt.system import processes

Row = dict[str, Any]
"""What ``predict_planned`` returns of an image; see ``Segmenter.predict_file``."""

LONGEST = 200
"""Characters of an option in the record; a longer one is recorded by its hash."""

SLACK_SECONDS = 2.0
"""How much the time of an output may change when its file system stores it or it is copied."""


WriteCoco = Callable[[Sequence[Mapping[str, Any]]], None]
"""Writes the COCO file of what was found in each picture, in order."""


class PredictionStore:
    """The outputs of a folder: which are there already, and what is found in the others.

    All processes of a prediction make this object and finish it together.

    Args:
        work: what to read and write: a folder or a part of it.
        settings: what decides the outputs; see ``settings_of``.
        options: prompts and options, whose files are compared too.
        overwrite: do all images anew.

    Attributes:
        done: the rows of the images that are done, by name.

    Raises:
        DataError: the outputs that are there were made in another way or from other images.
        HeldError: another call is at work on them.
    """

    def __init__(
        self,
        work: FolderWork,
        settings: Mapping[str, Any],
        options: PredictionOptions,
        *,
        overwrite: bool,
    ) -> None:
        plan = work.plan
        rows = rows_file(plan.target) if plan.is_coco else plan.target / "predict_rows.jsonl"
        self._work, self._plan, self._options = work, plan, options
        self._whole = Journal(rows, _is_entry)
        self._journal = work.own_lines(rows, _is_entry)
        self.done: Mapping[str, Row] = processes.by_first(
            lambda: self._open(settings, overwrite=overwrite)
        )

    def inputs(self, planned: PlannedImage) -> str:
        """Return a hash of the names, sizes and times of the files that decide an output.

        Raises:
            PromptError: the file of a mask is missing.
        """
        image = planned.image
        own = [image] if isinstance(image, Path) else list(image.files)
        read = [*own, *drawn_files(self._options, stem_of(planned))]
        stamps = [
            [file.name, file.stat().st_size, file.stat().st_mtime_ns]
            for path in read
            for file in _files(path)
        ]
        return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]

    def add(self, planned: PlannedImage, inputs: str, row: Row) -> None:
        """Record that an image is done.

        Args:
            planned: the image.
            inputs: what ``inputs`` returned before it was read.
            row: what was found in it. The files that it names are written.

        Raises:
            WriteError: the line cannot be written.
        """
        files = {key: path.name for key, path in row.items() if isinstance(path, Path)}
        masks = {name: path.name for name, path in row.get("masks", {}).items()}
        rest = {key: value for key, value in row.items() if key not in files and key != "masks"}
        paths = [self._folder / name for name in (*files.values(), *masks.values())]
        outputs = [
            [path.name, path.stat().st_size, path.stat().st_mtime]
            for path in paths
            # All pictures share a COCO file. Of classes that may overlap, no file holds all.
            if path.is_file() and not (self._plan.is_coco and path == self._plan.target)
        ]
        self._journal.append(
            {
                "image": planned.image.name,
                "inputs": inputs,
                "outputs": outputs,
                "files": files,
                "masks": masks,
                "row": rest,
            }
        )

    def finish(self, rows: Sequence[Row], write_coco: WriteCoco | None) -> None:
        """Collect the lines of all processes, and write the COCO file if there is to be one.

        Of a folder in parts, the part that ends last does so for all.

        Args:
            rows: those of all images of the work. What COCO holds of a picture is in ``"coco"``,
                which is taken out.
            write_coco: writes the COCO file; None: there is none.

        Raises:
            WriteError: a line or the file cannot be written.
        """
        contents = [row.pop("coco") for row in rows if "coco" in row]

        def end() -> None:
            self._journal.collect()
            if write_coco is not None and self._work.part is None:
                write_coco(contents)
            self._work.finish(rows, lambda whole: self._collect(whole, write_coco))

        processes.by_first(end)

    def _collect(self, rows: Sequence[Mapping[str, Any]], write_coco: WriteCoco | None) -> None:
        """Collect what all parts have written; ``rows`` are those of the whole folder."""
        self._take_parts()
        if write_coco is None:
            return
        pairs = zip(self._plan.images, rows, strict=True)
        names = [planned.image.name for planned, row in pairs if "error" not in row]
        wanted = set(names)
        lines = (line for line in self._whole.lines() if line["image"] in wanted)
        found = {line["image"]: line["row"]["coco"] for line in lines if "coco" in line["row"]}
        write_coco([found[name] for name in names if name in found])

    @property
    def _folder(self) -> Path:
        return self._plan.target.parent if self._plan.is_coco else self._plan.target

    def _open(self, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Row]:
        """Record how outputs are made, and return the rows of those that are done."""
        with self._work.begins():
            # Earlier outputs without lines are written over one by one, and not removed first.
            keep_settings(self._work, settings, overwrite=overwrite, make_room=self._forget)
        if self._work.part is None:
            self._take_parts()
        else:
            self._journal.collect()
        planned = {one.image.name: one for one in self._work.own.images}
        # The own lines of a part come last, since they are newer than those of the whole.
        all_lines = (self._whole, *self._work.part_lines(_is_entry), self._journal)
        found = (entry for lines in all_lines for entry in lines.lines())
        known = {entry["image"]: entry for entry in found if entry["image"] in planned}
        return {
            name: self._row(known[name])
            for name, image in planned.items()
            if name in known and self._is_done(image, known[name])
        }

    def _take_parts(self) -> None:
        """Put the lines of all processes and parts into one file."""
        self._whole.collect()
        for part in self._work.part_lines(_is_entry):
            self._whole.take(part)

    def _forget(self) -> None:
        """Remove the lines of what was made in another way."""
        for lines in (self._whole, *self._work.part_lines(_is_entry)):
            lines.remove()

    def _is_done(self, planned: PlannedImage, entry: Entry) -> bool:
        output = planned.output
        if isinstance(output, UserError) or entry["files"].get("output") != output.name:
            return False
        try:
            if self.inputs(planned) != entry["inputs"]:
                return False
        except (UserError, OSError):  # reported where the image is done
            return False
        return all(
            path.is_file()
            and path.stat().st_size == size
            and abs(path.stat().st_mtime - time) <= SLACK_SECONDS
            for path, size, time in (
                (self._folder / name, *rest) for name, *rest in entry["outputs"]
            )
        )

    def _row(self, entry: Entry) -> Row:
        """Return the row of an image that is done, as ``add`` was given it, and ``"skipped"``."""
        paths = {key: self._folder / name for key, name in entry["files"].items()}
        row: Row = paths | entry["row"]
        row["shape"] = tuple(row["shape"])
        if entry["masks"]:
            row["masks"] = {key: self._folder / name for key, name in entry["masks"].items()}
        return row | {"skipped": True}


def recorded_options(options: PredictionOptions) -> dict[str, Any]:
    """Return the options that are not as by default, as the record holds them.

    Args:
        options: prompts and options, as the command line gives them.
    """
    given = {
        item.name: (getattr(options, item.name), item.default) for item in fields(PredictionOptions)
    }
    return {
        name: _recorded(name, value) for name, (value, default) in given.items() if value != default
    }


def _recorded(name: str, value: Any) -> Any:
    if isinstance(value, str) and name in ("masks", "scribbles"):  # files
        return str(Path(value).expanduser().resolve())
    if isinstance(value, bool | int | float | str):
        return value
    text = json.dumps(value)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text if len(text) <= LONGEST else f"sha256 {digest}"


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or the files of the folder of a series."""
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    else:
        yield path


def _is_entry(entry: Any) -> bool:
    kinds = {
        "image": str,
        "inputs": str,
        "outputs": list,
        "files": dict,
        "masks": dict,
        "row": dict,
    }
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), kind) for key, kind in kinds.items()
    )
