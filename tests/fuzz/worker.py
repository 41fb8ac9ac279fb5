"""Give one parser damaged files until its time is up; ``test_fuzz.py`` runs this as a script.

``python worker.py PARSER SECONDS SEED FOLDER`` writes the number of each file to standard output
before it is parsed, so that the test notices a hang. The last line is JSON: the number of files,
the failures, and the peak of memory in bytes. A failure is any exception except a
``SamadaptError``, or too much memory or time; its file is kept in FOLDER. The same seed gives the
same files in the same order.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

MOST_FAILURES = 5
MOST_MEMORY, MOST_SECONDS = 1 << 30, 10.0
ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000)
ODD_NUMBERS += (0xFFFFFFFF, 0xFFFFFFFE, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
ODD_WORDS = ("-1", "0", "1e400", "NaN", "null", "[]", "{}", '""', "true", "1" * 5000, "1.5", "-0")
ODD_WORDS += (
    "Infinity",
    "\ud7ff",
    "../../x",
    "[[[[[[[[",
    "4294967296",
    "\u0000",
    "1e-320",
    "a:b",
    "%n",
)


def load_parsers() -> Any:
    """Return the module ``parsers.py`` beside this file."""
    spec = spec_from_file_location("samadapt_fuzz_parsers", Path(__file__).with_name("parsers.py"))
    if spec is None or spec.loader is None:
        raise RuntimeError("parsers.py is missing")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def mutate(content: bytes, others: list[bytes], rng: Any, is_text: bool) -> bytes:
    """Damage a file in one to four ways."""
    for _ in range(int(rng.integers(1, 5))):
        if is_text and rng.random() < 0.6:
            content = _another_word(content, rng)
        else:
            content = _other_bytes(content, others, rng)
    return content


def _another_word(content: bytes, rng: Any) -> bytes:
    """Replace a number, a string or a punctuation mark by an odd word."""
    import re

    found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]*"|\w+|[\[\]{}:,=]', content))
    if not found:
        return content
    place = found[int(rng.integers(len(found)))]
    word = ODD_WORDS[int(rng.integers(len(ODD_WORDS)))].encode("utf-8", "surrogatepass")
    kind = int(rng.integers(4))
    if kind == 0:
        word = place[0] * int(rng.integers(2, 6))
    elif kind == 1:
        word = b""
    elif kind == 2:
        word = found[int(rng.integers(len(found)))][0]
    return content[: place.start()] + word + content[place.end() :]


def _other_bytes(content: bytes, others: list[bytes], rng: Any) -> bytes:
    """Flip, overwrite, cut, repeat, insert or splice bytes, more often at the beginning."""
    size = max(len(content), 1)
    at = int(size * rng.random() ** float(rng.choice([1.0, 3.0])))
    kind, changed = int(rng.integers(9)), bytearray(content)
    if kind in (0, 1) and content:
        for _ in range(int(rng.integers(1, 9))):
            changed[min(at, size - 1)] ^= 1 << int(rng.integers(8))
            at = int(rng.integers(size))
    elif kind in (2, 3):
        width = int(rng.choice([1, 2, 4, 8]))
        number = ODD_NUMBERS[int(rng.integers(len(ODD_NUMBERS)))] & ((1 << 8 * width) - 1)
        changed[at : at + width] = number.to_bytes(width, "little" if rng.random() < 0.7 else "big")
    elif kind == 4:
        del changed[at:]
    elif kind == 5:
        del changed[at : at + int(rng.integers(1, 65))]
    elif kind == 6:
        piece = changed[at : at + int(rng.integers(1, 257))]
        changed[at:at] = piece * int(rng.integers(1, 4))
    elif kind == 7:
        changed[at:at] = rng.integers(0, 256, int(rng.integers(1, 33)), dtype=np.uint8).tobytes()
    else:
        other = others[int(rng.integers(len(others)))]
        changed = changed[:at] + other[at:]
    return bytes(changed)


def main(name: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run the parser on damaged files and return counts and failures."""
    from samadapt.errors import SamadaptError

    warnings.simplefilter("ignore")
    parser = load_parsers().PARSERS[name](folder / "work")
    seeds = parser.seeds()
    contents = list(seeds.values())
    names = list(seeds)
    failures: list[dict[str, Any]] = []
    seen: set[str] = set()
    count, refused = 0, 0
    say(0)
    whole = 0
    for file in names:
        try:
            parser.parse(file, seeds[file])
            whole += 1
        except SamadaptError:
            continue
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and len(failures) < MOST_FAILURES:
        count += 1
        rng = np.random.default_rng([seed, count])
        file = names[int(rng.integers(len(names)))]
        content = parser.damage(seeds[file], contents, rng, mutate)
        (folder / "last").write_bytes(content)
        say(count)
        before, began = peak(), time.monotonic()
        try:
            parser.parse(file, content)
        except SamadaptError:
            refused += 1
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} {where.filename}:{where.lineno}"
            if key not in seen:
                seen.add(key)
                (folder / f"failure_{count}_{file}").write_bytes(content)
                text = "".join(traceback.format_exception(error))[-3000:]
                failures.append({"number": count, "file": file, "error": text})
        if peak() > max(MOST_MEMORY, before) or time.monotonic() - began > MOST_SECONDS:
            (folder / f"failure_{count}_{file}").write_bytes(content)
            text = f"{peak() >> 20} MiB, {time.monotonic() - began:.1f} s"
            failures.append({"number": count, "file": file, "error": text})
    return {
        "files": count,
        "whole": whole,
        "corpus": len(names),
        "refused": refused,
        "failures": failures,
        "peak": peak(),
    }


def say(number: int) -> None:
    """Write the number of the next file."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def peak() -> int:
    """Return the peak of this process's memory in bytes; 0 on systems without /proc.

    VmHWM is used because a process inherits ru_maxrss from the process that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    result = main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    sys.stdout.write(json.dumps(result) + "\n")
