"""Archives: checksum, safe extraction and clear failures, against a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from samadapt.data import download, open_dataset
from samadapt.data.cards import Card, Download
from samadapt.data.download import download_file, extract_archive, fetch_dataset
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


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = link
    return member


def _tar(path: Path, members: list[tarfile.TarInfo], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            content = b"hello" if member.isfile() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_fetch(server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, folder = server
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    members = [_member("Task/", tarfile.DIRTYPE), _member("Task/sub/a.txt")]
    content = _tar(folder / "Task.tar.gz", members).read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    seen: list[tuple[int, int | None]] = []
    source = Download(f"{url}/Task.tar.gz", "Task", md5=md5)
    for _ in range(2):  # the second call finds the folder
        found = fetch_dataset("task", source, lambda done, total: seen.append((done, total)))
        assert (found / "sub" / "a.txt").read_bytes() == b"hello"
    assert seen == [(len(content), len(content))]
    assert sorted(path.name for path in (tmp_path / "cache" / "datasets").iterdir()) == ["Task"]


def test_a_wrong_checksum_leaves_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = server
    (folder / "a.tar").write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"a\.tar.*expected sha256 00.*got"):
        download_file(f"{url}/a.tar", tmp_path / "a.tar", sha256="00")
    with pytest.raises(DownloadError, match=r"expected md5"):
        download_file(f"{url}/a.tar", tmp_path / "a.tar", md5="00")
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


def test_no_such_file_or_server(server: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = server
    for bad in (f"{url}/none.tar", "http://127.0.0.1:1/a.tar", "nonsense"):
        with pytest.raises(DownloadError, match=r"download failed.*data\.root"):
            download_file(bad, tmp_path / "a.tar", md5="00")


def test_an_archive_without_the_folder(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    content = _tar(folder / "T.tar", [_member("other/a")], "w").read_bytes()
    source = Download(f"{url}/T.tar", "Task", sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(DownloadError, match="'Task'"):
        fetch_dataset("task", source)


@pytest.mark.parametrize(
    "member",
    [
        _member("../evil"),
        _member("good/../../evil"),
        _member("/tmp/evil"),  # refused, never written
        _member("..\\evil"),
        _member("C:/evil"),
        _member("good/link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("good/link", tarfile.LNKTYPE, "../evil"),
        _member("good/pipe", tarfile.FIFOTYPE),
        _member("good/device", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.type.decode()}",
)
def test_malicious_members_are_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = _tar(tmp_path / "a.tar", [_member("good/a.txt"), member], "w")
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"a\.tar: member .* refused"):
        extract_archive(archive, target)
    assert list(target.iterdir()) == []  # checked before the first is written
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "deep", "target"]


def test_zip_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("Task/a.txt", "hello")
    extract_archive(tmp_path / "good.zip", tmp_path / "out")
    assert (tmp_path / "out" / "Task" / "a.txt").read_text() == "hello"
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil", "x")
    with pytest.raises(DownloadError, match="outside"):
        extract_archive(tmp_path / "evil.zip", tmp_path / "out")
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="link"):
        extract_archive(tmp_path / "link.zip", tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 30, 700])
def test_broken_archives(tmp_path: Path, cut: int) -> None:
    content = _tar(tmp_path / "a.tar", [_member("a")], "w").read_bytes()
    (tmp_path / "b.tar").write_bytes(b"x" * cut + content[:10])
    with pytest.raises(DownloadError, match=r"b\.tar: the archive is broken"):
        extract_archive(tmp_path / "b.tar", tmp_path / "out")


def test_a_card_fetches_only_without_a_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_msd: object
) -> None:
    source = Download("http://127.0.0.1:1/Task.tar", "Task", md5="00")
    card = Card("made", "t", "s", "l", "nifti", {"one": (1,), "two": (2,)}, "mri", download=source)
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("samadapt.data.opening.list_cards", lambda: ["made"])
    monkeypatch.setattr("samadapt.data.opening.load_card", lambda _: card)
    with pytest.raises(DownloadError, match=r"data\.root"):
        open_dataset("made")
    root = make_msd(3)  # type: ignore[operator]
    assert open_dataset("made", root).classes == ["one", "two"]
    root.rename(tmp_path / "Task")
    assert open_dataset("made", tmp_path).train == ["case_01", "case_02"]
    assert download.datasets_cache() == tmp_path / "cache" / "datasets"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / f"a.{kind}", tmp_path / "zeros"
    content.write_bytes(bytes(400 << 20))
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write(content, "set/zeros")
    else:
        mode = {"tar.gz": "w:gz", "tar.xz": "w:xz"}[kind]
        level = {"compresslevel": 1} if kind == "tar.gz" else {"preset": 0}
        with tarfile.open(path, mode, **level) as archive:  # type: ignore[call-overload]
            archive.add(content, "set/zeros")
    with pytest.raises(DownloadError, match="at most"):
        extract_archive(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    extract_archive(path, tmp_path / "out", 400 << 20)
    assert (tmp_path / "out" / "set" / "zeros").stat().st_size == 400 << 20


def test_a_tar_header_that_asks_for_memory(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 6 << 30
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(long_name.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(1 << 20))
    with pytest.raises(DownloadError, match="a header is too long"):
        extract_archive(tmp_path / "a.tar.gz", tmp_path / "out")


def test_an_answer_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        headers: ClassVar[dict[str, str]] = {}

        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, count: int) -> bytes:
            return bytes(count)

    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: Endless())
    with pytest.raises(DownloadError, match="sends more than"):
        download_file("http://x/a", tmp_path / "a", most=10 << 20)
    assert list(tmp_path.iterdir()) == []
