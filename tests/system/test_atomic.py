"""Files and folders are whole or absent, with the permissions of the umask."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samadapt.errors import UserError
from samadapt.system import atomic


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=oct)
def umask(request: Any) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.json"
    assert atomic.write_text(path, "old\n") == path
    atomic.write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert names(path.parent) == ["x.json"]


def test_text_with_bytes_of_another_encoding(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "x.csv", "caf\udce9.png\n")
    assert (tmp_path / "x.csv").read_text(encoding="utf-8") == "caf\\udce9.png\n"


def test_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".png", "é" * 125 + ".png", "🧠" * 62 + ".png"):
        atomic.write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_temporary_name_keeps_the_ending_and_is_hidden(tmp_path: Path) -> None:
    with atomic.file(tmp_path / "mask.nii.gz") as part:
        assert part.name.endswith(".nii.gz")
        assert part.name.startswith(".")
        part.write_bytes(b"1")
    assert names(tmp_path) == ["mask.nii.gz"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = atomic.write_text(tmp_path / "x.txt", "old")
    with pytest.raises(type(error)), atomic.file(path) as part:  # noqa: PT012
        part.write_text("half", encoding="utf-8")
        raise error
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x.txt"]


def test_an_error_of_the_block_is_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.file(tmp_path / "x"):
        (tmp_path / "source").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_umask(tmp_path: Path, umask: int) -> None:
    atomic.write_text(tmp_path / "text", "1")
    for habit in (0o600, 0o666, 0o644):
        with atomic.file(tmp_path / f"file_{habit:o}") as part:
            part.unlink()
            part.touch()
            part.chmod(habit)
    with atomic.folder(tmp_path / "made" / "folder") as part:
        (part / "inner").mkdir(mode=0o700)
        (part / "inner" / "file").touch()
        (part / "inner" / "file").chmod(0o600)
    for path in tmp_path.rglob("*"):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_folder_replaces(tmp_path: Path) -> None:
    for text in ("1", "2"):
        with atomic.folder(tmp_path / "a") as part:
            (part / text).write_text(text, encoding="utf-8")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["2"]


def test_an_error_keeps_the_old_folder(tmp_path: Path) -> None:
    with atomic.folder(tmp_path / "a") as part:
        (part / "old").write_text("1", encoding="utf-8")
    with pytest.raises(ValueError, match="x"), atomic.folder(tmp_path / "a") as part:  # noqa: PT012
        (part / "new").write_text("1", encoding="utf-8")
        raise ValueError("x")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


def test_a_rename_that_fails_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    with atomic.folder(target) as part:
        (part / "old").write_text("1", encoding="utf-8")
    replace, calls = os.replace, []

    def failing(source: Path, to: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error", str(source))
        replace(source, to)

    monkeypatch.setattr(os, "replace", failing)
    expected = r"a: cannot be written: Input/output error"
    with pytest.raises(atomic.WriteError, match=expected), atomic.folder(target) as part:
        (part / "new").write_text("1", encoding="utf-8")
    assert len(calls) == 3
    assert names(tmp_path) == ["a"]
    assert names(target) == ["old"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(atomic.WriteError, match="cannot be written") as caught:
        atomic.write_text(tmp_path / "file" / "x.json", "1")
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, OSError)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, *, numbered: bool) -> None:
    """Make every flush and every probe meet a full disk; C libraries give no number."""
    real = Path.open

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def fileno(self) -> int:
            return int(self.stream.fileno())

        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = real(path, mode, *args, **kwargs)
        wanted = "w" in mode and (numbered or path.name.endswith("probe"))
        return Full(stream) if wanted else stream

    monkeypatch.setattr(Path, "open", opened)


def test_full_disk_names_folder_needed_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = atomic.write_text(tmp_path / "x.json", "old")
    fill_the_disk(monkeypatch, numbered=True)
    with pytest.raises(atomic.DiskFullError) as caught:
        atomic.write_bytes(path, bytes(12345))
    monkeypatch.undo()
    error = caught.value
    assert (error.folder, error.needed) == (tmp_path, 12345)
    assert error.free > 0
    assert str(error).startswith(f"{tmp_path}: the disk is full: x.json needs 12345 bytes")
    assert f"{error.free} bytes" in str(error)
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x.json"]
    assert not isinstance(error, UserError)


def test_full_disk_of_a_library_without_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, numbered=False)
    expected = "needs more than 3 bytes"
    with pytest.raises(atomic.DiskFullError, match=expected), atomic.file(tmp_path / "x") as part:  # noqa: PT012
        part.write_text("abc", encoding="utf-8")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0")
    assert names(tmp_path) == []


def test_other_errors_of_a_library_stay(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), atomic.file(tmp_path / "x"):
        raise RuntimeError("shapes")
    assert names(tmp_path) == []


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{atomic.PREFIX}1234-step_000001").mkdir()
    (tmp_path / f"{atomic.PREFIX}1234-LATEST").touch()
    (tmp_path / "kept").touch()
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["kept"]


def test_leftovers_of_other_targets_stay(tmp_path: Path) -> None:
    for left in ("1234-a.png_mask.png", "1234-b.png"):
        (tmp_path / f"{atomic.PREFIX}{left}").touch()
    atomic.remove_leftovers(tmp_path, ["a.png"])
    assert names(tmp_path) == [f"{atomic.PREFIX}1234-b.png"]
