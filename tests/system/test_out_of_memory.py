"""Out of memory is one message, whichever library says it."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from samadapt import cli
from samadapt.errors import ConfigError
from samadapt.system.out_of_memory import explain, is_out_of_memory


def raised(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def chained(cause):
    error = RuntimeError("Error instantiating 'samadapt'")
    error.__cause__ = cause
    return error


REAL = [
    (lambda: torch.empty(2**60, dtype=torch.uint8), "1073741824.00 GiB"),
    (lambda: np.empty(2**58, np.float64), "2.00 EiB"),
    (lambda: bytearray(2**62), ""),
]
SAID = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0"),
        "20.00 MiB",
    ),
    (
        RuntimeError(
            "[enforce fail] . DefaultCPUAllocator: not enough memory: "
            "you tried to allocate 4294967296 bytes."
        ),
        "4.00 GiB (4294967296 bytes)",
    ),
    (
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 1.00 GB). Tried to allocate 256 "
            "bytes on private pool."
        ),
        "256 bytes",
    ),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), ""),
    (
        RuntimeError("unable to mmap 375042383 bytes from file </x.pth>: Cannot allocate memory"),
        "0.35",
    ),
    (RuntimeError("std::bad_alloc"), ""),
    (MemoryError(), ""),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    (
        ImportError(
            "libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory"
        ),
        "",
    ),
    (ImportError("libx.so: failed to map segment from shared object"), ""),
    (
        chained(MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)")),
        "7.45",
    ),
]


@pytest.mark.parametrize(("error", "asked"), [(raised(f), asked) for f, asked in REAL] + SAID)
def test_every_kind_is_recognised(error, asked):
    assert is_out_of_memory(error)
    message = explain(error, "finetune")
    assert message.startswith("out of memory: the ")
    assert asked in message
    assert "train.batch_size=1" in message
    on_gpu = any(word in str(error) for word in ("CUDA", "MPS"))
    assert ("of the GPU" in message) is on_gpu
    assert ("GiB are available" in message) is not on_gpu


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
        ImportError("No module named 'x'"),
        OSError(errno.ENOENT, "No such file"),
        KeyError("out of memory"),
    ],
)
def test_other_errors_are_not_explained(error):
    assert explain(error) is None


@pytest.mark.parametrize("error", [MemoryError(), ImportError("a.so: Cannot allocate memory")])
def test_the_command_line_says_it_once(monkeypatch, capsys, error):
    def fail(arguments):
        raise error

    monkeypatch.setattr("samadapt.commands.finetune.run", fail)
    assert cli.main(["finetune", "recipe=medical"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("samadapt: error: out of memory: the main memory ran out")
    assert "peft.blocks=last:2" in said
    assert "please report it" not in said
    assert "Traceback" not in said


def test_an_error_of_the_user_stays(monkeypatch, capsys):
    def fail(arguments):
        try:
            raise MemoryError
        except MemoryError as error:
            raise ConfigError("file.nii: declares too much") from error

    monkeypatch.setattr("samadapt.commands.finetune.run", fail)
    assert cli.main(["finetune", "recipe=medical"]) == 2
    assert "file.nii: declares too much" in capsys.readouterr().err


def test_a_full_disk_is_explained_by_the_command_line(monkeypatch, capsys, tmp_path):
    def fail(arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x.bin"))

    monkeypatch.setattr("samadapt.commands.finetune.run", fail)
    assert cli.main(["finetune", "recipe=medical"]) == 1
    said = capsys.readouterr().err
    assert f"error: {tmp_path}: the disk is full: x.bin cannot be written; " in said
    assert "bytes" in said
    assert "please report it" not in said


def test_a_file_for_which_memory_lacks_is_not_called_broken(tmp_path, monkeypatch):
    from PIL import Image

    from samadapt.data.formats.base import ReaderOptions
    from samadapt.data.formats.folder import FolderReader

    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / part / "a.png")

    def fail(self, case):
        raise MemoryError("Unable to allocate 7.45 GiB for an array")

    monkeypatch.setattr(FolderReader, "examine", fail)
    scan = FolderReader(ReaderOptions(root=tmp_path)).scan()
    (finding,) = scan.findings
    assert "out of memory: the main memory ran out when 7.45 GiB more were asked" in str(finding)
    assert "another program" not in str(finding)
