"""The folders at the root must not become importable packages; the wheel carries them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from samadapt.config.compose import recipes

ROOT = Path(__file__).parents[1]


def test_no_package_at_the_root() -> None:
    for folder in ("datasets", "recipes", "benchmarks"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_root_is_not_on_the_path_of_an_installed_samadapt(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as u, samadapt.cli;"
        "print([p for p in sys.path]);"
        "spec = u.find_spec('datasets');"
        "print('hidden' if spec is not None and spec.origin is None else 'free')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],  # -I: neither PYTHONPATH nor the current directory
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, f"samadapt is not installed: pip install -e .\n{done.stderr}"
    path, verdict = done.stdout.strip().splitlines()
    assert verdict == "free"
    assert repr(str(ROOT)) not in path


@pytest.mark.slow
def test_wheel_carries_recipes_and_cards(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools would leave its build folder at the root
    for folder in ("samadapt", "recipes", "datasets"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for recipe in recipes():
        assert f"samadapt/_recipes/{recipe}.yaml" in names
    for card in (ROOT / "datasets").glob("*.yaml"):
        assert f"samadapt/_datasets/{card.name}" in names
    assert "samadapt/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"samadapt"}
