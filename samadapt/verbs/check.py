"""``samadapt check``: every problem of a data set, by file; changes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.config import Data
from samadapt.overrides import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Reads every file of a data set and reports each problem with its file and what to do about it.
Changes nothing. Exits with 2 if there is an error, with 0 otherwise.
"""


@dataclass(frozen=True)
class CheckArguments:
    """The keys of ``samadapt check``."""

    data: Data = field(default_factory=Data)


SCHEMA = CheckArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the findings, and ``exit_code`` 2 if one of them is an error.

    Raises:
        ConfigError: naming everything wrong with the arguments.
        DataError: where there is no data set to read.
    """
    data = parse(CheckArguments, arguments).data
    from samadapt.data.check import check_dataset

    findings = check_dataset(
        data.name,
        data.root,
        axis=data.axis,
        channel=data.channel,
        image=data.image,
        label=data.label,
        classes=data.classes,
        max_cases=data.max_cases,
    )
    errors = sum(finding.severity == "error" for finding in findings)
    return {
        "data": data.name,
        "root": data.root,
        "errors": errors,
        "warnings": len(findings) - errors,
        "findings": [asdict(finding) for finding in findings],
        "exit_code": 2 if errors else 0,
    }


def render(result: dict[str, Any]) -> str:
    """Return the findings as a table, and their count."""
    where = f"{result['data']} {result['root'] or ''}".rstrip()
    count = f"{where}: {result['errors']} errors, {result['warnings']} warnings"
    if not result["findings"]:
        return count
    keys = ["severity", "file", "message", "fix", "code"]
    rows = [[str(finding[key]) for key in keys] for finding in result["findings"]]
    return f"{console.table(keys, rows)}\n\n{count}"
