"""Measure how far a configuration, an image and an adapter travel through the code.

    python -m benchmarks.code_way [CHECKOUT] [--list]

Long ways are hard to follow: a reader who wants to know what ``train.lr`` does must visit every
function that the configuration passes through. The script runs one tiny finetune and one prediction
with its adapter, through the command line, and notes every call in the package by which one of
four things travels. CHECKOUT is the root of another version, which is measured by the same rule; by
default it is this one. ``--list`` prints every call of the ways as well.

**A call counts** if one of its arguments (``self`` included) or its result is the thing or holds
it. A value holds the thing if the thing is one of its attributes, or an item of a list, tuple,
dict or set. One level is looked at, not the attributes of attributes. The four things are:

configuration
    An instance of ``Config`` or of one of its groups that the configuration itself declares, such
    as ``Train``. Of the job, only the finetune is traced.
method
    The group ``peft``. It is an object that layers far below the configuration call, with options
    and code, so it has a way of its own. Only the finetune is traced, and the configuration is not
    counted as a value that holds the method.
image
    An array or a tensor with a channel axis of three beside two spatial axes, which have the size
    of the picture in the file, of the picture when it is scaled to the model, or of the model's
    square. No mask, logit or feature of the job has such a shape. The way ends where the encoder
    turns the image into tokens, and at overlays.
adapter
    The description of what is trained (``Injection``), the content of ``samadapt.json``
    (``AdapterRecord``), a mapping of the trained tensors by name, and the path of the adapter
    directory or of a file in it. The way leads from the injection through training to the file, and
    from the file to the masks of the prediction.

**The figures** of a way do not depend on the number of steps and images, because a call from one
function to another counts once, however often it happens. The caller is the nearest calling
function of the package, so a detour through a library adds nothing. Nested functions and lambdas
are functions of their own; a comprehension belongs to the function around it.

functions
    Functions that the thing passes through.
files
    Files with these functions.
calls
    Different pairs of a caller and a function that the thing passes through.
into another file
    Calls whose caller is in another file.
into a higher layer
    Calls whose caller is in a lower layer, by the order ``LAYERS`` in the version's own
    ``tests/test_structure.py``.
comes back
    How often the way comes back to a file that it had left. The calls are put in the order in which
    they first happen, and the files of their functions in a row; a change to a file that was there
    before counts.

It is a script and not a test because it has to run on other versions of the package;
``tests/benchmarks/test_code_way.py`` holds the figures with it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import sys
import tempfile
import threading
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

HEIGHT, WIDTH, CASES = 37, 53, 6
"""Size and number of the pictures. The size is unusual, so that images are known by their shape."""

SIDE = 64
"""Side of the square of the model ``tiny``."""

SIZES = {(HEIGHT, WIDTH), (round(HEIGHT * SIDE / WIDTH), SIDE), (SIDE, SIDE)}

COMPREHENSION = re.compile(r"(\.<locals>\.<(listcomp|dictcomp|setcomp|genexpr)>)+$")
"""The end of the name of a comprehension, which has a frame of its own before Python 3.12."""

PACKAGE, CONFIGURATION = "samadapt", "samadapt.config"
"""The package, and where the classes of the configuration are."""

Function = tuple[str, str]
"""A file below the package and a qualified name."""

Is = Callable[[Any], bool]


@dataclass
class Way:
    """The calls by which one thing travels.

    Attributes:
        is_thing: tells the thing from other values.
        unopened: classes that are not looked into.
        calls: pairs of caller and function in the order in which they first happen. The caller is
            None for a call from outside of the package.
    """

    is_thing: Is
    unopened: tuple[type, ...] = ()
    calls: dict[tuple[Function | None, Function], None] = field(default_factory=dict)

    def carries(self, value: Any) -> bool:
        """Whether a value is the thing or holds it."""
        if self.is_thing(value):
            return True
        return not isinstance(value, self.unopened) and any(map(self.is_thing, held(value)))

    def functions(self) -> list[Function]:
        """Return the functions in the order of the way."""
        return list(dict.fromkeys(function for _, function in self.calls))

    def figures(self, rank: Callable[[Function], int]) -> dict[str, int]:
        """Return the figures of the way; ``rank`` gives the layer of a function."""
        files = [file for _, (file, _) in self.calls]
        changes = sum(one != other for one, other in pairwise(files))
        pairs = [(caller, function) for caller, function in self.calls if caller is not None]
        return {
            "functions": len(self.functions()),
            "files": len(set(files)),
            "calls": len(self.calls),
            "into another file": sum(caller[0] != called[0] for caller, called in pairs),
            "into a higher layer": sum(rank(caller) < rank(called) for caller, called in pairs),
            # Every file but the first is entered once for the first time.
            "comes back": changes - max(len(set(files)) - 1, 0),
        }


def held(value: Any) -> Iterable[Any]:
    """Return the items of a container or the attributes of an object of the package."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if type(value).__module__.startswith(PACKAGE):
        return list(getattr(value, "__dict__", {}).values())
    return ()


class Tracer:
    """Notes the calls of a program, for ``sys.setprofile``."""

    def __init__(self, package: Path, ways: Iterable[Way]) -> None:
        """Trace the functions of a package."""
        self.prefix, self.ways = f"{package}{os.sep}", list(ways)
        self.places: dict[CodeType, Function | None] = {}

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """Note a call by its arguments, and a return by its result."""
        if event not in ("call", "return"):
            return
        function = self.place(frame.f_code)
        if function is None:
            return
        values = [value] if event == "return" else list(arguments(frame))
        ways = [way for way in self.ways if any(map(way.carries, values))]
        if ways:
            call = (self.caller(frame), function)
            for way in ways:
                way.calls.setdefault(call)

    def place(self, code: CodeType) -> Function | None:
        """Return where a function of the package is; None for others and for module bodies."""
        if code not in self.places:
            inside = code.co_filename.startswith(self.prefix) and code.co_name != "<module>"
            file = code.co_filename.removeprefix(self.prefix)
            name = COMPREHENSION.sub("", code.co_qualname)
            self.places[code] = (file, name) if inside else None
        return self.places[code]

    def caller(self, frame: FrameType) -> Function | None:
        """Return the nearest calling function of the package."""
        own, above = self.place(frame.f_code), frame.f_back
        while above is not None:
            function = self.place(above.f_code)
            # The frame of a comprehension is not called by its function, but a part of it.
            if function is not None and not (function == own and "<" in frame.f_code.co_name):
                return function
            above = above.f_back
        return None


def arguments(frame: FrameType) -> Iterator[Any]:
    """Yield the arguments of a call that has just begun."""
    code = frame.f_code
    stars = bool(code.co_flags & 4) + bool(code.co_flags & 8)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + stars]
    values = frame.f_locals
    yield from (values.get(name) for name in names)


def configuration_classes() -> tuple[type, ...]:
    """Return ``Config`` and the classes of the groups that are declared beside it."""
    try:
        from samadapt.config.schema import Config
    except ImportError:  # versions before the rooms
        from samadapt.config import Config

    kinds = typing.get_type_hints(Config).values()
    groups = [kind for kind in kinds if getattr(kind, "__module__", "").startswith(CONFIGURATION)]
    return (Config, *(kind for kind in groups if isinstance(kind, type)))


def is_image(value: Any) -> bool:
    """Whether a value is an image in the frame of the file or of the model."""
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tuple) or not hasattr(value, "dtype") or len(shape) < 3:
        return False
    return (shape[-1] == 3 and shape[-3:-1] in SIZES) or (shape[-3] == 3 and shape[-2:] in SIZES)


def is_adapter(value: Any) -> bool:
    """Whether a value describes the trained weights, holds them, or is where they are saved."""
    if isinstance(value, Path):
        return "adapter" in (value.name, value.parent.name)
    if isinstance(value, dict):
        return any("lora" in str(key) and hasattr(item, "dtype") for key, item in value.items())
    kind = type(value)
    return kind.__module__.startswith(PACKAGE) and kind.__name__ in ("Injection", "AdapterRecord")


def layers(checkout: Path) -> Callable[[Function], int]:
    """Return what gives the layer of a function in the order of a version's own structure test."""
    tree = ast.parse((checkout / "tests" / "test_structure.py").read_text(encoding="utf-8"))
    (order,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    ranks = {name: rank for rank, layer in enumerate(order) for name in layer}
    return lambda function: ranks[Path(function[0]).parts[0].removesuffix(".py")]


def write_pictures(folder: Path) -> None:
    """Write pictures and masks, one object each."""
    import numpy as np
    from PIL import Image

    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:25, 10:40] = 1
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(CASES):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"p{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"p{number}.png")


def run_job(folder: Path, configuration: Tracer, others: Tracer) -> None:
    """Train an adapter and predict with it, through the command line.

    Raises:
        RuntimeError: a command fails.
    """
    from samadapt.cli import main

    pictures = folder / "pictures"
    write_pictures(pictures)
    finetune = (
        f"finetune recipe=medical model=tiny data=folder data.root={pictures} data.intensity=rgb "
        f"output.dir={folder / 'runs'} train.steps=2 train.batch_size=2 train.validate_every=1 "
        "peft.blocks=last:1 precision=fp32 device=cpu"
    )

    def both(*event: Any) -> None:
        configuration(*event)
        others(*event)

    def run(command: str, tracer: Callable[..., None]) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            threading.setprofile(tracer)  # files are read in a thread of their own
            sys.setprofile(tracer)
            try:
                code = main(command.split())
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
        if code:
            raise RuntimeError(f"samadapt {command}\n{said.getvalue()}")

    run(finetune, both)
    (adapter,) = folder.glob("runs/*/*/adapter")
    image, masks = pictures / "images" / "p0.png", folder / "masks.png"
    run(
        f"predict adapter={adapter} input={image} output={masks} device=cpu",
        others,
    )


def measure(checkout: Path) -> dict[str, Way]:
    """Return the ways of the three things in a version of the package.

    The version is imported into this process, so one process measures one version.
    """
    sys.path.insert(0, str(checkout))
    import torch

    torch.set_num_threads(1)
    from samadapt.methods.base import Method

    classes = configuration_classes()
    ways = {
        "configuration": Way(lambda value: isinstance(value, classes)),
        "method": Way(lambda value: isinstance(value, Method), unopened=classes),
        "image": Way(is_image),
        "adapter": Way(is_adapter),
    }
    package = checkout / "samadapt"
    of_training = Tracer(package, [ways["configuration"], ways["method"]])
    of_both = Tracer(package, [ways["image"], ways["adapter"]])
    with tempfile.TemporaryDirectory() as folder:
        run_job(Path(folder), of_training, of_both)
    return ways


def main() -> None:
    """Measure a version and print a table."""
    parser = argparse.ArgumentParser(description="how far three things travel through the code")
    parser.add_argument("checkout", nargs="?", default=Path(__file__).parents[1], type=Path)
    parser.add_argument("--list", action="store_true", help="print the functions as well")
    given = parser.parse_args()
    checkout = given.checkout.resolve()
    rank = layers(checkout)
    for name, way in measure(checkout).items():
        figures = ", ".join(f"{key} {value}" for key, value in way.figures(rank).items())
        print(f"{name}: {figures}")
        for caller, (file, function) in way.calls if given.list else ():
            print(f"    {file} {function} <- {' '.join(caller or ('outside',))}")


if __name__ == "__main__":
    main()
