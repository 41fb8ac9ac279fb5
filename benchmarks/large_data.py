"""Memory and time of a run by the number of its volumes: both must not grow for an image.

    python benchmarks/large_data.py [--volumes 50 500] [--slices 20] [--output FILE] [key=value ...]

Writes volumes of noise with two ellipsoids into a temporary folder, and trains and scores
LiteMedSAM on them with boxes at 84 pixels: all slices give features, a fifth of the volumes is held
out and scored. Memory is the largest resident memory of the process; the cost of an image is that
of all phases together. The data set is then opened a second time, which its index makes fast.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUTPUT = ROOT / "benchmarks" / "results" / "large_data.json"
SIDE = 64


def write_volumes(folder: Path, count: int, depth: int) -> None:
    """Write ``count`` volumes (64, 64, depth) and their labels as NIfTI."""
    import nibabel

    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    y, x, z = np.ogrid[:SIDE, :SIDE, :depth]
    for number in range(count):
        random = np.random.default_rng(number)
        label = np.zeros((SIDE, SIDE, depth), np.uint8)
        for value in (1, 2):
            at, radius = random.uniform(16, 48, 2), random.uniform(5, 12)
            inside = (y - at[0]) ** 2 + (x - at[1]) ** 2 + ((z - depth / 2) * 1.2) ** 2 < radius**2
            label[inside] = value
        image = random.normal(100, 20, label.shape) + 60.0 * label
        for kind, voxels in (("images", image.astype(np.int16)), ("labels", label)):
            path = folder / kind / f"case_{number:04}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def samadapt(arguments: list[str], folder: Path) -> tuple[dict[str, Any], int, float]:
    """Run a command; return its result, its largest resident bytes and its seconds."""
    environment = os.environ | {"SAMADAPT_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    with (folder / "out.json").open("w+", encoding="utf-8") as out:
        words = [sys.executable, "-P", "-m", "samadapt", *arguments, "--json"]
        process = subprocess.Popen(words, stdout=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{' '.join(words)} ended with {code}")
        out.seek(0)
        return json.load(out), usage.ru_maxrss * 1024, time.perf_counter() - started


def measure(count: int, depth: int, keys: list[str]) -> dict[str, Any]:
    """Train and score on so many volumes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volumes(folder / "data", count, depth)
        arguments = [
            *("recipe=hippocampus", "data=nifti", f"data.root={folder / 'data'}"),
            *("data.image=images/*.nii.gz", "data.label=labels/*.nii.gz"),
            *("data.classes={one: 1, two: 2}", "data.intensity=mri", "model.image_size=84"),
            "prompts=box",
            *("train.steps=60", "train.validate_every=0", "train.validate_cases=2"),
            *("eval.overlays=0", f"output.dir={folder / 'runs'}", *keys),
        ]
        found, memory, seconds = samadapt(["finetune", *arguments], folder)
        run_dir = Path(found["run_dir"])
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
        _, _, again = samadapt(["check", *arguments[1:6]], folder)
        summary = found["summary"]
        return {
            "volumes": count,
            "slices": count * depth,
            "scored_slices": summary["slices"],
            "memory": memory,
            "memory_first_step": steps[0]["memory_bytes"],
            "memory_last_step": steps[-1]["memory_bytes"],
            "step_seconds": float(np.median([line["seconds"] for line in steps])),
            "seconds": seconds,
            "check_seconds": again,
        }


def main() -> None:
    """Measure each number of volumes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, nargs="*", default=[50, 500])
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given, keys = parser.parse_known_args()
    rows = []
    for count in given.volumes:
        rows.append(measure(count, given.slices, keys))
        given.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("| volumes | slices | scored | memory | first step | last step | a step | whole run |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        sizes = [row[f"memory{when}"] / 1e9 for when in ("", "_first_step", "_last_step")]
        print(
            f"| {row['volumes']} | {row['slices']} | {row['scored_slices']} | "
            + " | ".join(f"{size:.2f} GB" for size in sizes)
            + f" | {row['step_seconds']:.2f} s | {row['seconds']:.0f} s |"
        )


if __name__ == "__main__":
    main()
