"""Every store passes the same list; files are right or absent, whoever writes or dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from samadapt.errors import RunError
from samadapt.training import feature_stores
from samadapt.training.feature_stores import DiskStore, MemoryStore, settle

ENTRY = torch.arange(4096, dtype=torch.float32).view(1, 16, 256)


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "features")


def python(code, *arguments):
    """Start another process that runs ``code``."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        encoding="utf-8",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_is_what_is_got(store, dtype):
    features = ENTRY.to(dtype)
    assert store.get("a") is None
    store.put("a", features)
    store.put("b", features.transpose(1, 2))  # not contiguous
    for _ in range(2):
        assert store.get("a").dtype == dtype
        assert torch.equal(store.get("a"), features)
        assert torch.equal(store.get("b"), features.transpose(1, 2))
    assert store.use(["c", "b", "a"]) == {"a", "b"}
    store.put("a", features + 1)
    assert torch.equal(store.get("a"), features + 1)


def test_a_later_run_finds_what_an_earlier_one_put(tmp_path):
    DiskStore(tmp_path).put("a", ENTRY)
    assert torch.equal(DiskStore(tmp_path).get("a"), ENTRY)


def damages(whole):
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    return {
        "truncated": whole[:-40],
        "flipped": bytes(flipped),
        "zeroed": whole[:200] + bytes(len(whole) - 200),
        "empty": b"",
        "text": b"no safetensors at all, but long enough to hold a header",
    }


@pytest.mark.parametrize("damage", ["truncated", "flipped", "zeroed", "empty", "text"])
def test_a_damaged_file_counts_as_absent(tmp_path, damage):
    DiskStore(tmp_path).put("a", ENTRY)
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damages(whole)[damage])
    later = DiskStore(tmp_path)
    assert later.get("a") is None
    later.put("a", ENTRY)
    assert torch.equal(later.get("a"), ENTRY)
    assert path.read_bytes() == whole


def test_an_entry_under_the_name_of_another_counts_as_absent(tmp_path):
    DiskStore(tmp_path).put("a", ENTRY)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert DiskStore(tmp_path).get("b") is None


def test_the_checksum_is_compared_once_a_run(tmp_path, monkeypatch):
    DiskStore(tmp_path).put("a", ENTRY)
    compared = []
    right = feature_stores._checksum
    monkeypatch.setattr(
        feature_stores,
        "_checksum",
        lambda key, features: compared.append(key) or right(key, features),
    )
    later = DiskStore(tmp_path)
    for _ in range(3):
        assert later.get("a") is not None
    assert compared == ["a"]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from samadapt.training.feature_stores import DiskStore
    store = DiskStore(Path(sys.argv[1]))
    store.put("whole", torch.ones(1, 4))
    Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
    store.put("half", torch.ones(1, 4))
"""


def test_a_killed_writer_leaves_nothing_that_is_used_or_kept(tmp_path):
    """The process dies after the bytes are written and before the file has its name."""
    process = python(KILLED, tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert {path.suffix for path in tmp_path.iterdir()} >= {".part", ".live", ".safetensors"}
    store = DiskStore(tmp_path)
    assert store.use(["whole", "half"]) == {"whole"}
    assert store.get("half") is None
    assert torch.equal(store.get("whole"), torch.ones(1, 4))
    assert not list(tmp_path.glob("*.part"))
    assert len(list(tmp_path.glob("*.live"))) == 1


def test_the_parts_of_a_live_writer_stay(tmp_path):
    writer = DiskStore(tmp_path)
    part = tmp_path / f"key.{writer._name}.part"
    part.write_bytes(b"half")
    DiskStore(tmp_path)
    assert part.exists()
    del writer
    DiskStore(tmp_path)
    assert not part.exists()
    assert not list(tmp_path.glob("*.live"))


BUSY = """
    import sys
    from pathlib import Path
    import torch
    from samadapt.training.feature_stores import DiskStore
    torch.set_num_threads(1)
    store = DiskStore(Path(sys.argv[1]))
    wrong = 0
    for turn in range(60):
        key = str(turn % 7)
        right = torch.full((1, 50_000), float(key))
        found = store.get(key)
        wrong += found is not None and not torch.equal(found, right)
        store.put(key, right)
        DiskStore(Path(sys.argv[1])).use([key])
        wrong += not torch.equal(store.get(key), right)
    print(wrong)
"""


@pytest.mark.slow
def test_two_processes_writing_the_same_entries_both_end_right(tmp_path):
    processes = [python(BUSY, tmp_path) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["0", "0"]
    assert [process.returncode for process in processes] == [0, 0]
    assert DiskStore(tmp_path).use(map(str, range(8))) == set(map(str, range(7)))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_one_error_that_names_the_folder(tmp_path, monkeypatch, number):
    store = DiskStore(tmp_path / "features")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=rf"features: .*{os.strerror(number)}; .*cache\.dir"):
        store.put("a", ENTRY)
    monkeypatch.undo()
    assert not list((tmp_path / "features").glob("*.part"))
    assert store.get("a") is None
    store.put("a", ENTRY)
    assert torch.equal(store.get("a"), ENTRY)


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"file/features: features cannot be written here: Not"):
        DiskStore(tmp_path / "file" / "features")


def aged(store, key, seconds):
    """Put an entry that was last used before any run that lives now."""
    store.put(key, ENTRY)
    path = store.folder / f"{key}.safetensors"
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
    return path.stat().st_size


def test_the_longest_unused_entries_make_room_and_those_of_live_runs_never(tmp_path):
    store = DiskStore(tmp_path)
    size = aged(store, "old", 3000)
    aged(store, "older", 4000)
    aged(store, "used", 5000)
    assert store.use(["used"]) == {"used"}
    every = {"old", "older", "used"}
    assert store.make_room(size, 1.0, 4 * size) == (0, 0)
    assert store.use([]) == set()
    assert store.make_room(3 * size, 1.0, 3 * size) == (0, size)  # nothing is lost in vain
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == every
    assert store.make_room(size, 1.0, 3 * size) == (1, 0)
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"old", "used"}


def test_an_entry_that_a_run_lost_is_absent_and_can_be_put_again(tmp_path):
    store = DiskStore(tmp_path)
    store.put("a", ENTRY)
    held = store.get("a")
    (tmp_path / "a.safetensors").unlink()
    assert torch.equal(held, ENTRY)
    assert store.get("a") is None
    assert store.use(["a"]) == set()


def test_where_features_go(tmp_path, monkeypatch):
    store, inf = DiskStore(tmp_path), float("inf")
    assert settle(store, "auto", 10**6, 10**6, inf) == (store, f"on disk, {tmp_path}")
    assert settle(MemoryStore(), "memory", 10**15, 10**15, inf)[1] == "in memory"
    for where in ("auto", "disk"):  # all is there: no room is needed
        assert settle(store, where, 0, 10**15, 1.0)[0] is store
    found, text = settle(store, "auto", 10**6, 10**6, 1.0)
    assert isinstance(found, MemoryStore)
    assert text == f"in memory: {tmp_path} lacks 0.00 GB"
    for where, advice in (
        ("auto", "cache.where=disk, name"),
        ("disk", "part of them; name another disk"),
    ):
        with pytest.raises(RunError, match=rf"need 1000000\.00 GB more.*{advice}.*cache\.dir"):
            settle(store, where, 10**15, 10**15, inf)
    aged(store, "old", 3000)
    limit = 2000 + (tmp_path / "old.safetensors").stat().st_size / 2
    assert "1 unused entries of other runs were removed" in settle(store, "disk", 2000, 9, limit)[1]
    free = feature_stores.shutil.disk_usage(tmp_path).free
    assert isinstance(settle(store, "auto", int(0.8 * free), 10**6, inf)[0], MemoryStore)
    assert settle(store, "disk", int(0.8 * free), 10**6, inf)[0] is store
    monkeypatch.setattr(feature_stores, "MEMORY_SHARE", 0)
    with pytest.raises(RunError):
        settle(store, "auto", int(0.8 * free), 10**6, inf)
