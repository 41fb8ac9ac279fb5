"""Checkpoints that declare more than they hold, or name files elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from samadapt.errors import WeightsError
from samadapt.sam.weights.checkpoints import read_checkpoint, read_tensors

READ = """
import sys
from pathlib import Path
from samadapt.errors import WeightsError
from samadapt.sam.weights.checkpoints import read_checkpoint
try:
    read_checkpoint(Path(sys.argv[1]))
except WeightsError:
    told = "WeightsError"
# VmHWM and not ru_maxrss, which a process inherits from the one that started it.
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.is_file() else []
peak = sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(told, peak)
"""


def test_a_compressed_torch_file(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / "b.pth").stat().st_size < 20_000
    with pytest.raises(WeightsError, match="compressed"):
        read_tensors(tmp_path / "b.pth")


TENSORS: dict[str, Any] = {
    "repeated": lambda: torch.zeros(1).expand(1 << 40),
    "sparse": lambda: torch.eye(4).to_sparse(),
    "meta": lambda: torch.empty(4, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_no_arrays(tmp_path: Path, kind: str) -> None:
    torch.save({"image_encoder.blocks.0.a": TENSORS[kind]()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth"):
        read_checkpoint(tmp_path / "a.pth")


def test_many_names_of_the_same_numbers(tmp_path: Path) -> None:
    shared = torch.zeros(1000)
    torch.save({f"a{index}": shared for index in range(100)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="share their numbers"):
        read_tensors(tmp_path / "a.pth")
    torch.save({"a": shared, "b": shared, "c": shared[:10]}, tmp_path / "a.pth")
    assert set(read_tensors(tmp_path / "a.pth")) == {"a", "b", "c"}


@pytest.mark.parametrize("name", ["../secret", "/secret", "a/b", "a\\b", "", 3, None, ["a"]])
def test_an_index_that_names_files_elsewhere(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"image_encoder.a": torch.zeros(2)}, tmp_path / "secret")
    named = str(tmp_path / "secret") if name == "/secret" else name
    index = {"weight_map": {"image_encoder.a": named}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"index\.json: expected names of files beside it"):
        read_tensors(folder)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"weight_map": [1]}', "[" * 100_000])
def test_a_broken_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"index\.json"):
        read_tensors(tmp_path)


def test_what_a_file_begins_with_is_not_quoted(tmp_path: Path) -> None:
    for content in (
        b"SECRET token",
        b"PK\x03\x04SECRET",
        b"\x80\x02SECRET.",
        b"x" * 8 + b"{SECRET",
    ):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            read_tensors(tmp_path / "a.pth")
        assert "SECRET" not in str(caught.value)


@pytest.mark.slow
def test_a_torch_file_that_declares_gigabytes(tmp_path: Path) -> None:
    """Some MB of file would take 1.5 GB of memory: refused in less than 1 GiB."""
    torch.save({"image_encoder.blocks.0.a": torch.zeros(1)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for name in source.namelist():
            with target.open(name, "w", force_zip64=True) as file:
                file.write(source.read(name))
                for _ in range(96 if name.endswith("data/0") else 0):
                    file.write(bytes(1 << 24))
    told = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "b.pth")],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert told.stdout.startswith("WeightsError")
    if sys.platform == "linux":
        assert int(told.stdout.split()[1]) < 1 << 20
