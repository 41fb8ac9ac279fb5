"""Wheels: built with and without a C compiler, and used where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEADERS = Path(sysconfig.get_path("include")) / "Python.h"

pytestmark = pytest.mark.slow


def finished(*command: str | Path, **environment: str) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT.anchor,  # not the repository, whose package would be imported
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder: Path, **environment: str) -> Path:
    """Build a wheel of a copy of the repository, by the same call as pip's."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("samadapt", "recipes", "datasets"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = (
        "import os, sys; os.chdir(sys.argv[1]); from setuptools import build_meta; "
        "print(build_meta.build_wheel(sys.argv[2]))"
    )
    finished(sys.executable, "-c", code, source, folder, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def used(wheel: Path, folder: Path, form: str) -> float:
    """Install a wheel without a compiler on the path, segment, and return the mean logit."""
    venv.create(folder, with_pip=False)
    site = Path(
        finished(_python(folder), "-c", "import site; print(site.getsitepackages()[0])").strip()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Its dependencies come from the environment of the tests. A path alone runs none of the .pth
    # files there, so an editable install of samadapt stays unseen.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(others), encoding="utf-8")
    said = finished(
        _python(folder),
        "-P",
        ROOT / ".ci" / "check_wheel.py",
        form,
        PATH=str(folder / "bin"),
        PYTHONPATH="",
    )
    assert f"from {site}" in said
    return float(said.split("logits ")[1])


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


@pytest.mark.skipif(sys.platform != "linux", reason="the compiled attention is for Linux")
@pytest.mark.skipif(
    shutil.which("gcc") is None or not HEADERS.is_file(), reason="no C compiler or no Python.h"
)
def test_wheels_segment_without_a_compiler(tmp_path: Path) -> None:
    whole = built(tmp_path / "compiled", CC="gcc")
    plain = built(tmp_path / "plain", CC="no-such-compiler")
    assert "-cp311-abi3-" in whole.name  # one wheel for all versions of Python
    with zipfile.ZipFile(whole) as archive:
        names = [Path(name).name for name in archive.namelist()]
    assert {"_attention_avx512.abi3.so", "_attention_avx2.abi3.so"} <= set(names)
    with zipfile.ZipFile(plain) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    one = used(whole, tmp_path / "first", "compiled")
    other = used(plain, tmp_path / "second", "pytorch")
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_auditwheel_finds_nothing_to_bundle(tmp_path: Path) -> None:
    """No library has to travel in the wheel: not OpenMP, of which torch brings one."""
    pytest.importorskip("auditwheel")
    if shutil.which("gcc") is None or not HEADERS.is_file():
        pytest.skip("no C compiler or no Python.h")
    wheel = built(tmp_path, CC="gcc")
    said = finished(sys.executable, "-m", "auditwheel", "show", wheel)
    assert "manylinux_2_" in said
    assert "is consistent with" in " ".join(said.split())
    assert "libgomp" not in said
