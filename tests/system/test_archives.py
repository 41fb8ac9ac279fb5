"""Safe extraction of archives, and clear errors for broken ones."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from pathlib import Path

import pytest
from archive_files import member, write_tar

from samadapt.errors import DownloadError
from samadapt.system.archives import extract_archive


@pytest.mark.parametrize(
    "harmful",
    [
        member("../evil"),
        member("good/../../evil"),
        member("/tmp/evil"),  # refused, never written
        member("..\\evil"),
        member("C:/evil"),
        member("good/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("good/link", tarfile.LNKTYPE, "../evil"),
        member("good/pipe", tarfile.FIFOTYPE),
        member("good/device", tarfile.CHRTYPE),
    ],
    ids=lambda harmful: f"{harmful.name}-{harmful.type.decode()}",
)
def test_malicious_members_are_refused(tmp_path: Path, harmful: tarfile.TarInfo) -> None:
    archive = write_tar(tmp_path / "a.tar", [member("good/a.txt"), harmful], "w")
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
    assert (tmp_path / "out" / "Task" / "a.txt").read_text(encoding="utf-8") == "hello"
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
    content = write_tar(tmp_path / "a.tar", [member("a")], "w").read_bytes()
    (tmp_path / "b.tar").write_bytes(b"x" * cut + content[:10])
    with pytest.raises(DownloadError, match=r"b\.tar: the archive is broken"):
        extract_archive(tmp_path / "b.tar", tmp_path / "out")


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


def test_a_folder_that_cannot_be_written_is_no_broken_archive(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [member("set/a.txt")])
    (tmp_path / "out").write_text("a file in the way", encoding="utf-8")
    with pytest.raises(DownloadError, match=r"a\.tar: cannot be unpacked into .*out"):
        extract_archive(archive, tmp_path / "out")
