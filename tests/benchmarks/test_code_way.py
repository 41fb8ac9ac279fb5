"""How far things travel through the code: the measure, and the limit of the configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.code_way import HEIGHT, SIDE, WIDTH, Tracer, Way, is_adapter, is_image

ROOT = Path(__file__).parents[2]

# Version 142987e, from before the rooms, had functions 49, calls 63, into another file 30, into a
# higher layer 5, comes back 21. The first three limits are half of that. The last two are what is
# reached: a room has a file for each idea, so more of the calls are into another file.
LIMITS = {
    "functions": 24,
    "calls": 31,
    "into a higher layer": 2,
    "into another file": 18,
    "comes back": 11,
}

MODULES = {
    "low.py": "def take(thing):\n    return None\n\ndef ignore(other):\n    return None\n",
    "high.py": "def start(low, thing):\n    for _ in range(3):\n        low.take(thing)\n"
    "    low.ignore(1)\n    held = [low.take([one]) for one in [thing]]\n"
    "    return finish(low, [thing])\n\ndef finish(low, things):\n    low.take(things)\n",
}


def test_figures_count_each_call_once(tmp_path: Path) -> None:
    namespaces = {}
    for name, text in MODULES.items():
        namespaces[name] = type(name, (), {})
        space: dict[str, object] = {}
        exec(compile(text, str(tmp_path / name), "exec"), space)
        for key, value in space.items():
            if callable(value):
                setattr(namespaces[name], key, staticmethod(value))
    way = Way(lambda value: value == "thing")
    sys.setprofile(Tracer(tmp_path, [way]))
    namespaces["high.py"].start(namespaces["low.py"], "thing")
    sys.setprofile(None)
    start, finish, take = ("high.py", "start"), ("high.py", "finish"), ("low.py", "take")
    assert list(way.calls) == [(None, start), (start, take), (start, finish), (finish, take)]
    assert way.figures(lambda function: int(function[0] == "low.py")) == {
        "functions": 3,
        "files": 2,
        "calls": 4,
        "into another file": 2,
        "into a higher layer": 2,
        "comes back": 2,  # from take to finish, and then to take again
    }


def test_an_image_is_known_by_its_shape() -> None:
    assert is_image(np.zeros((HEIGHT, WIDTH, 3)))
    assert is_image(np.zeros((2, 3, SIDE, SIDE)))
    assert not is_image(np.zeros((HEIGHT, WIDTH)))
    assert not is_image(np.zeros((2, 1, SIDE, SIDE)))
    assert not is_image(np.ndarray)


def test_an_adapter_is_known_by_its_path_and_its_tensors() -> None:
    assert is_adapter(Path("runs/one/adapter/samadapt.json"))
    assert is_adapter({"blocks.0.lora_a": np.zeros(1)})
    assert not is_adapter({"lora": "a method"})
    assert not is_adapter("adapter")


@pytest.mark.slow
def test_the_way_of_the_configuration_stays_short() -> None:
    command = [sys.executable, "-m", "benchmarks.code_way"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    (line,) = re.findall(r"^configuration: (.+)$", done.stdout, flags=re.MULTILINE)
    found = {name: int(count) for name, _, count in (f.rpartition(" ") for f in line.split(", "))}
    over = {name: found[name] for name, limit in LIMITS.items() if found[name] > limit}
    assert not over, f"over {LIMITS}; python -m benchmarks.code_way --list shows the calls"
