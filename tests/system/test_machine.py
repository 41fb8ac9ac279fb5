"""What a process may use: affinity, and the groups of a container in both versions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from samadapt.system import machine
from samadapt.system.machine import (
    Processors,
    find_processors,
    total_memory_bytes,
)

V1 = "9:name=systemd:/x\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n"


def in_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, files: dict[str, str]
) -> None:
    """Pretend that the process is in some groups, whose limits are in ``files``."""
    (tmp_path / "own").write_text(own, encoding="utf-8")
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"cpu.max": "400000 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../..\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "broken\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "20000\n",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "10000\n",
            },
            2,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n"}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
        ("no colon\n", {}, None),
    ],
)
def test_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    own: str,
    files: dict[str, str],
    quota: float | None,
) -> None:
    in_groups(monkeypatch, tmp_path, own, files)
    assert find_processors().quota == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "usable"),
    [(8, None, 8), (8, 1.5, 2), (2, 16, 2), (8, 0.2, 1), (1, None, 1)],
)
def test_what_affinity_and_quota_leave(allowed: int, quota: float | None, usable: int) -> None:
    assert Processors(8, allowed, quota).usable == usable


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert find_processors().allowed == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("own", "files", "limited"),
    [
        ("0::/\n", {"memory.max": "max\n"}, False),
        ("0::/\n", {"memory.max": "536870912\n"}, True),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, False),
        (V1, {"memory/docker/abc/memory.limit_in_bytes": "536870912\n"}, True),
    ],
)
def test_the_memory_of_a_container(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    own: str,
    files: dict[str, str],
    limited: bool,
) -> None:
    in_groups(monkeypatch, tmp_path, own, files)
    assert (total_memory_bytes() == 2**29) is limited
    assert total_memory_bytes() > 1e8


def test_without_affinity_as_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert find_processors().allowed == os.cpu_count()
