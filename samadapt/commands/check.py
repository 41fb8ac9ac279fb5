"""``samadapt check``: report every problem of a data set by file, and change nothing."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt import console
from samadapt.config.compose import parse_settings
from samadapt.config.schema import Data
from samadapt.errors import ConfigError
from samadapt.system import atomic
from samadapt.system.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Reads every file of a data set and reports each problem with its file and what to do about it. Also
reports how many cases, slices and voxels each class has. It changes nothing. The exit code is 2 if
there is an error, and 0 otherwise. output=report.json writes the whole report. explain=CODE says
what a code means, and explain=all lists all codes.
"""


@dataclass(frozen=True)
class CheckArguments(Settings):
    """The keys of ``samadapt check``."""

    data: Data = field(default_factory=Data)
    output: str | None = Field(
        default=None, description="JSON file of the report; an existing file is replaced"
    )
    explain: str | None = Field(default=None, description="code of a finding to explain, or all")


SCHEMA = CheckArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the findings, and ``exit_code`` 2 if one of them is an error.

    Raises:
        ConfigError: the arguments are wrong. The message lists every problem.
        DataError: there is no data set to read.
    """
    asked = parse_settings(CheckArguments, arguments)
    if asked.explain is not None:
        from samadapt.data.checks.codes import explain_code, page

        return {"text": page() if asked.explain == "all" else explain_code(asked.explain)}
    data = asked.data
    # The path is checked first, so that a wrong one costs no reading of the data.
    output = None if asked.output is None else _report_path(asked.output, data.root)
    from samadapt.data.checks.survey import survey
    from samadapt.system.limits import set_limits

    set_limits(data.max_gb, data.max_seconds)
    found = survey(
        data.name,
        data.root,
        axis=data.axis,
        channel=data.channel,
        image=data.image,
        label=data.label,
        classes=data.classes,
        ignore=data.ignore,
        annotated=data.annotated,
        regions=data.regions,
        max_cases=data.max_cases,
        intensity=data.intensity,
        val_every=data.val_every,
        patient=data.patient,
        tile=data.tile,
        tile_overlap=data.tile_overlap,
        spacing=data.spacing,
        instances=data.instances,
        mask_threshold=data.mask_threshold,
        series=data.series,
        exif=data.exif,
        background=data.background,
    )
    errors = sum(finding.severity == "error" for finding in found.findings)
    report = {
        "data": data.name,
        "root": data.root,
        "errors": errors,
        "warnings": len(found.findings) - errors,
        "cases": found.cases,
        "left_out": found.left_out,
        "patients": found.patients,
        "classes": found.classes,
        "ignored": found.ignored,
        "findings": [asdict(finding) for finding in found.findings],
    }
    if output is not None:
        _write(output, report)
    return {**report, "exit_code": 2 if errors else 0}


def render(result: dict[str, Any]) -> str:
    """Return the findings and the classes as tables, and the number of problems."""
    if "text" in result:
        return str(result["text"])
    where = f"{result['data']} {result['root'] or ''}".rstrip()
    people = f" of {result['patients']} patients" if result["patients"] else ""
    count = f"{where}: {result['errors']} errors, {result['warnings']} warnings; "
    parts = [f"{count}{result['cases']} usable cases{people}"]
    if result["ignored"]:
        voxels, share = result["ignored"]["voxels"], result["ignored"]["share"]
        parts.append(f"{voxels:,} voxels ({share:.2%}) are ignored: no loss and no score")
    if result["classes"]:
        parts.insert(0, console.table(_CLASS_KEYS, [_class_row(row) for row in result["classes"]]))
    if result["findings"]:
        keys = ["severity", "file", "message", "fix", "code"]
        rows = [[str(finding[key]) for key in keys] for finding in result["findings"]]
        parts.insert(0, console.table(keys, rows))
    return "\n\n".join(parts)


_CLASS_KEYS = ["class", "cases", "slices", "voxels", "ml", "intensity", "spacing (mm)"]


def _class_row(row: dict[str, Any]) -> list[str]:
    value, spacing = row["intensity"], row["spacing_mm"]
    bounds = [" x ".join(f"{side:.3g}" for side in spacing[end]) for end in spacing or ()]
    return [
        row["class"],
        str(row["cases"]),
        f"{row['slices']:,}",
        f"{row['voxels']:,}",
        "" if row.get("ml") is None else f"{row['ml']:.3g}",
        "" if value is None else f"{value['mean']:.4g} ± {value['sd']:.3g}",
        # From the smallest spacing to the largest; once if all cases have the same.
        " to ".join(dict.fromkeys(bounds)),
    ]


def _report_path(output: str, root: str | None) -> Path:
    """Return the file of the report; no other file is replaced and no data set is changed."""
    path = Path(output).expanduser()
    if path.suffix.lower() != ".json" or path.is_dir():
        raise ConfigError(f"output: expected a file name ending in .json; got {output!r}")
    if root is not None and path.resolve().is_relative_to(Path(root).expanduser().resolve()):
        raise ConfigError(
            f"output: {path} lies in the data set, which must not change; use another folder"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"output: the folder {path.parent} does not exist; create it first")
    return path


def _write(path: Path, report: dict[str, Any]) -> None:
    import json

    try:
        atomic.write_text(path, json.dumps(report, indent=2) + "\n")
    except atomic.WriteError as error:
        raise ConfigError(f"output: {error}") from error
