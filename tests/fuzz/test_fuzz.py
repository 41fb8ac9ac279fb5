"""Every parser reads a damaged file or refuses it by name, within 10 seconds and 1 GiB of memory.

``SAMADAPT_FUZZ_SECONDS=60 pytest -m slow tests/fuzz`` searches longer, and ``SAMADAPT_FUZZ_SEED=N``
tries other damages. A failure names the file that caused it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytest.importorskip("resource")
HERE = Path(__file__).parent
SECONDS = float(os.environ.get("SAMADAPT_FUZZ_SECONDS", "7"))
SEED = int(os.environ.get("SAMADAPT_FUZZ_SEED", "0"))
HANG_S = 10.0
START_S = 120.0
"""Seconds until the first file: imports take long on a busy machine."""
GB = 1 << 30


def _names() -> list[str]:
    spec = spec_from_file_location("samadapt_fuzz_names", HERE / "parsers.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return sorted(module.PARSERS)


def _close(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _run_worker(name: str, folder: Path) -> str:
    """Run the worker and return its last line; fail if a file takes too long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [str(HERE / "worker.py"), name, str(SECONDS), str(SEED), str(folder)]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        encoding="utf-8",
    )
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    told: list[str] = []

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def listen_to_errors() -> None:
        assert process.stderr is not None
        told.extend(process.stderr)

    threads = [threading.Thread(target=f, daemon=True) for f in (listen, listen_to_errors)]
    for thread in threads:
        thread.start()
    last, patience = "", START_S
    try:
        while True:
            line = lines.get(timeout=patience)
            if line is None:
                break
            last, patience = line, max(HANG_S, START_S if line == "0\n" else 0.0)
    except queue.Empty:
        pytest.fail(f"{name}: file {last.strip()} took over {patience:g} s: {folder / 'last'}")
    finally:
        process.kill()
        process.wait()
        for thread in threads:
            thread.join(10)
        _close(process)
    assert last.startswith("{"), f"died at file {last}: {folder / 'last'}\n{''.join(told)[-3000:]}"
    return last


@pytest.mark.slow
@pytest.mark.parametrize("name", _names())
def test_damaged_files(name: str, tmp_path: Path) -> None:
    found = json.loads(_run_worker(name, tmp_path))
    said = f"{name}: {found['files']} files, {found['refused']} refused, {found['peak'] >> 20} MiB"
    sys.stdout.write(said + "\n")
    shown = "\n".join(f"file {f['number']} ({f['file']}): {f['error']}" for f in found["failures"])
    assert not found["failures"], f"{tmp_path}\n{shown}"
    assert found["peak"] < GB
    assert found["files"] > 20
    assert found["whole"] >= max(1, found["corpus"] // 2), "the corpus itself is refused"
