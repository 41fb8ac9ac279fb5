"""The jobs of a cluster that a command has submitted, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def jobs_text(result: Mapping[str, Any], place: str, again: str) -> str:
    """Return where jobs write, which of them failed, and how to go on.

    Args:
        result: of the command: ``"jobs"``, and ``"failed"`` with the numbers of some of them.
        place: where the results are, in words.
        again: how to go on after a failure.
    """
    lines = [f"job {job['job']}: {job['log']}" for job in result["jobs"]]
    lines.append(place)
    if failed := result.get("failed"):
        lines.append(f"failed: {', '.join(failed)}; the logs say why. Go on with: {again}")
    return "\n".join(lines)
