"""Run a module, or git, in a process of its own and read what it prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run_module(
    module: str,
    *arguments: str,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    given: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments`` to its end, whatever its exit code is.

    Args:
        module: dotted name of the module.
        arguments: arguments of its command line.
        folder: its working folder.
        environment: its environment variables; None: those of this process.
        given: text for its standard input.

    Returns:
        The exit code, and what was written to stdout and stderr.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )


def ask(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    given: str = "",
) -> Any:
    """Run a module as ``run_module`` does, and return the JSON that it prints last.

    Raises:
        RuntimeError: the process fails; the message ends with what it wrote to stderr.
    """
    done = run_module(module, *arguments, environment=environment, given=given)
    if done.returncode:
        command = " ".join([module, *arguments])
        raise RuntimeError(f"python -m {command} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def git(*arguments: str) -> str | None:
    """Return what git says about this checkout; None if it fails or there is no git."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    return done.stdout.strip() if done.returncode == 0 else None
