"""OpenMP's settings: ours before torch is loaded, the user's always."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samadapt.system.machine import Processors
from samadapt.system.openmp import COUNTING, SPIN_COUNT, WAITING, choose

QUIET = Processors(cores=8, allowed=8, quota=None)
SMALL = Processors(cores=8, allowed=8, quota=1.5)


def run(code: str, **variables: str) -> str:
    """Run code in a new process without OpenMP's variables but these; what OpenMP says as well."""
    kept = {k: v for k, v in os.environ.items() if k not in (*WAITING, *COUNTING)}
    shown = {**kept, "OMP_DISPLAY_ENV": "verbose", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=shown,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return done.stdout + done.stderr


def test_our_spin_count_is_set_if_the_user_chose_nothing() -> None:
    environ: dict[str, str] = {}
    settings = choose(environ, QUIET, False)
    assert environ == settings.ours == {"GOMP_SPINCOUNT": SPIN_COUNT}
    assert settings.describe_waiting().endswith("(GOMP_SPINCOUNT=3000)")
    assert settings.describe_threads(8) == "8 threads: torch's default for 8 processors"


@pytest.mark.parametrize("name", WAITING)
def test_how_to_wait_is_the_users_choice(name: str) -> None:
    environ = {name: "7"}
    settings = choose(environ, QUIET, False)
    assert environ == {name: "7"}
    assert f"{name}=7" in settings.describe_waiting()


@pytest.mark.parametrize("name", COUNTING)
def test_the_number_of_threads_is_the_users_choice(name: str) -> None:
    environ = {name: "5"}
    settings = choose(environ, SMALL, False)
    assert environ == {name: "5", "GOMP_SPINCOUNT": SPIN_COUNT}
    assert settings.describe_threads(5) == f"5 threads: {name}=5 is set"


def test_a_quota_limits_the_threads() -> None:
    environ: dict[str, str] = {}
    settings = choose(environ, SMALL, False)
    assert environ["OMP_NUM_THREADS"] == "2"
    assert "the container grants the time of 1.5 processors" in settings.describe_threads(2)


def test_affinity_is_left_to_openmp() -> None:
    environ: dict[str, str] = {}
    settings = choose(environ, Processors(8, 3, None), False)
    assert "OMP_NUM_THREADS" not in environ
    assert "may run on 3 of 8 processors" in settings.describe_threads(3)


def test_nothing_is_chosen_if_torch_was_loaded_first() -> None:
    environ: dict[str, str] = {}
    settings = choose(environ, SMALL, True)
    assert not environ
    assert not settings.ours
    assert "torch was loaded" in settings.describe_waiting()


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_torch_and_the_compiled_attention_have_it() -> None:
    """One OpenMP in the process, which says what it read."""
    code = """
import samadapt, torch
from samadapt.sam.attention.kernels import find_kernels
find_kernels()
torch.ones(10**6).add_(1)
lines = open("/proc/self/maps").read().splitlines()
print("libraries", len({line.split()[-1] for line in lines if "omp.so" in line}))
"""
    told = run(code)
    assert "GOMP_SPINCOUNT = '3000'" in told
    assert "libraries 1" in told


def test_the_users_choice_reaches_the_process() -> None:
    code = "import samadapt, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run(code, GOMP_SPINCOUNT="77").strip() == "77"
    assert run(code, OMP_WAIT_POLICY="active").strip() == "None"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
@pytest.mark.slow
def test_importing_samadapt_after_torch_sets_no_variable() -> None:
    code = "import torch, os, samadapt; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run(code).splitlines()[0] == "None"


def test_a_child_of_ours_inherits_it(tmp_path: Path) -> None:
    code = (
        "import samadapt, subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'import os; print(os.environ[\"GOMP_SPINCOUNT\"])'])"
    )
    assert "3000" in run(code)
