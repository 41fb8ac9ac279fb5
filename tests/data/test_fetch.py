"""Data sets of cards: one download into the cache folder, from a server on this machine."""

from __future__ import annotations

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from archive_files import member, write_tar

from samadapt.data import open_dataset
from samadapt.data.cards import Card, Download
from samadapt.data.fetch import fetch_dataset
from samadapt.errors import DownloadError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "server"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", folder
        served.shutdown()
        thread.join()


def test_fetch(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = server
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    members = [member("Task/", tarfile.DIRTYPE), member("Task/sub/a.txt")]
    content = write_tar(folder / "Task.tar.gz", members).read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    seen: list[tuple[int, int | None]] = []
    source = Download(f"{url}/Task.tar.gz", "Task", md5=md5)
    for _ in range(2):  # the second call finds the folder
        found = fetch_dataset("task", source, lambda done, total: seen.append((done, total)))
        assert (found / "sub" / "a.txt").read_bytes() == b"hello"
    assert seen == [(len(content), len(content))]
    assert [path.name for path in (tmp_path / "cache" / "datasets").iterdir()] == ["Task"]


def test_an_archive_without_the_folder(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    content = write_tar(folder / "T.tar", [member("other/a")], "w").read_bytes()
    source = Download(f"{url}/T.tar", "Task", sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(DownloadError, match="'Task'"):
        fetch_dataset("task", source)


def test_a_failed_download_names_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr("samadapt.system.download.time.sleep", lambda _: None)
    for bad in ("http://127.0.0.1:1/a.tar", "nonsense"):
        with pytest.raises(DownloadError, match=r"'task' could not be fetched.*data\.root"):
            fetch_dataset("task", Download(bad, "Task", md5="00"))


def test_a_wrong_checksum_leaves_nothing(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    (folder / "a.tar").write_bytes(b"other")
    for checksum in ({"sha256": "00"}, {"md5": "00"}):
        (kind,) = checksum
        with pytest.raises(DownloadError, match=rf"a\.tar.*expected {kind}:00, got {kind}:"):
            fetch_dataset("task", Download(f"{url}/a.tar", "Task", **checksum))
    assert {path.suffix for path in (tmp_path / "cache" / "datasets").iterdir()} == {".lock"}


def test_an_answer_of_more_than_the_card_states(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("samadapt.data.fetch.SLACK_BYTES", 0)
    (folder / "a.tar").write_bytes(bytes(3000))
    with pytest.raises(DownloadError, match="expected at most 2,000 bytes"):
        fetch_dataset("task", Download(f"{url}/a.tar", "Task", md5="00", megabytes=0.001))


def test_a_card_fetches_only_without_a_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_msd: object
) -> None:
    source = Download("http://127.0.0.1:1/Task.tar", "Task", md5="00")
    card = Card("made", "t", "s", "l", "nifti", {"one": (1,), "two": (2,)}, "mri", download=source)
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("samadapt.system.download.time.sleep", lambda _: None)
    monkeypatch.setattr("samadapt.data.opening.list_cards", lambda: ["made"])
    monkeypatch.setattr("samadapt.data.opening.load_card", lambda _: card)
    with pytest.raises(DownloadError, match=r"data\.root"):
        open_dataset("made")
    root = make_msd(3)  # type: ignore[operator]
    assert open_dataset("made", root).classes == ["one", "two"]
    root.rename(tmp_path / "Task")
    assert open_dataset("made", tmp_path).train == ["case_01", "case_02"]
