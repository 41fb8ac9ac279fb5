"""Run a module of this folder in a process of its own and read what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def ask(module: str, *arguments: str, given: str = "") -> dict[str, Any]:
    """Run ``python -m module arguments`` and return the JSON that it prints last.

    Args:
        module: dotted name of the module.
        arguments: arguments of its command line.
        given: text for its standard input.

    Raises:
        RuntimeError: the process fails; the message ends with what it wrote to stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
