"""How far things travel through the code: the measure, and the limits of three things."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.code_way import HEIGHT, SIDE, WIDTH, Tracer, Way, is_adapter, is_image

ROOT = Path(__file__).parents[2]

# Each limit is what is reached. Version 142987e, from before the rooms, had, in this order:
# configuration 49, 63, 5, 30, 21; image 75, 107, 3, 64, 47; adapter 95, 131, 5, 77, 67. A room has
# a file for each idea, so more of the calls are into another file. Most functions on the ways of
# image and adapter do a step of their own, so a longer way is a step more, which is fine if the
# step is new: then raise the limit.
LIMITS = {
    # Trackers, the plan of a run, the order of its features, the last run of its kind, jobs of a
    # cluster and torch.compile read it, each in a place of its own. train.batch_size=auto is
    # settled in a step of its own, and five places read the number that it settled.
    "configuration": {
        "functions": 56,
        "calls": 75,
        "into a higher layer": 1,
        "into another file": 40,
        "comes back": 29,
    },
    "image": {
        "functions": 82,
        "calls": 110,
        "into a higher layer": 2,
        "into another file": 64,
        "comes back": 45,
    },
    # With what a folder of predictions remembers to go on after it was stopped, and its parts.
    # Forty of the functions write the model card, whose code depends on the kind of adapter, and
    # which says whether a memory was trained.
    "adapter": {
        "functions": 155,
        "calls": 226,
        "into a higher layer": 1,
        "into another file": 122,
        "comes back": 105,
    },
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
def test_the_ways_stay_short() -> None:
    command = [sys.executable, "-m", "benchmarks.code_way"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    over = []
    for thing, limits in LIMITS.items():
        (line,) = re.findall(rf"^{thing}: (.+)$", done.stdout, flags=re.MULTILINE)
        figures = {name: int(count) for name, count in re.findall(r"([a-z][a-z ]*?) (\d+)", line)}
        over += [
            f"{thing}: {name} {figures[name]}, the limit is {limit}"
            for name, limit in limits.items()
            if figures[name] > limit
        ]
    assert not over, "python -m benchmarks.code_way --list shows the calls"
