"""The folders of data that the pages name, and runs that their commands start from.

The root of the repository must stay off the path, so the folder of these tests is made a package
by hand: ``docs_tests``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import pytest

_spec = ModuleSpec("docs_tests", None, is_package=True)
_spec.submodule_search_locations = [str(Path(__file__).parent)]
sys.modules["docs_tests"] = module_from_spec(_spec)

from docs_tests.blocks import DOCS, blocks_of  # noqa: E402

SHIM = """\
#!{python}
import sys

sys.path.insert(0, {folder!r})
from blocks import run_samadapt

sys.exit(run_samadapt(sys.argv[1:]))
"""
CUSTOMIZE = """\
import sys

sys.path.insert(0, {folder!r})
from blocks import make_short

make_short()
"""
RUNS = (
    ["recipe=photos", "data.root=photos", "data.classes={gold: 1, silver: 2}"],
    ["recipe=medical_ct", "data.root=ct"],
)
"""Trainings whose adapters the how-to guides use."""


@pytest.fixture(scope="session")
def short_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `samadapt` and Python train a small model for two steps."""
    folder = tmp_path_factory.mktemp("short")
    shim = folder / "samadapt"
    tests = str(Path(__file__).parent)
    shim.write_text(SHIM.format(python=sys.executable, folder=tests), encoding="utf-8")
    shim.chmod(0o755)
    (folder / "sitecustomize.py").write_text(CUSTOMIZE.format(folder=tests), encoding="utf-8")
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "MPLBACKEND": "Agg"}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, short_environment: dict[str, str]) -> Path:
    """A folder with the tutorials' data and a short run on each."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("ct", "photographs", "own-program"):
        first = next(b for b in blocks_of(DOCS / "tutorials" / f"{name}.md"))
        data = first.text.partition("config = ")[0]  # what follows trains on them
        subprocess.run([sys.executable, "-c", data], cwd=folder, check=True)
    (folder / "discs").rename(folder / "leaves")
    for arguments in RUNS:
        call = ["samadapt", "finetune", *arguments]
        subprocess.run(call, cwd=folder, env=short_environment, check=True, capture_output=True)
    return folder
