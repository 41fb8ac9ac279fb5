"""The data engine on hippocampus volumes, with the ground truth in the person's place.

    python benchmarks/engine.py DATA_ROOT [--seeds 3] [--minutes 40] [--output FILE]

For each seed, six volumes are held out. Round by round, three more volumes get their true masks
(both parts as one): in the arm ``engine`` those that ``samadapt engine rank`` puts first, in the
arm ``random`` those that are drawn. The first round, on three drawn volumes, is the same in both
arms. Every round trains the same steps and starts from the adapter of the last one, which then
proposes masks for the next three. What is measured is the Dice of the held-out volumes by round,
the Dice of the proposals with the truth, and the share of them that needed correction (Dice below
0.9, or objects added or removed). The stages run through the command line, as a user types them.
Results are written after every arm; ``--minutes`` stops before the next seed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402

from samadapt.cli import main as samadapt  # noqa: E402
from samadapt.data.formats.base import ReaderOptions  # noqa: E402
from samadapt.engine.workspace import create_workspace  # noqa: E402

POOL, HELD_OUT, A_ROUND, ROUNDS = 16, 6, 3, 3
KEYS = (
    "recipe=hippocampus_parts",
    "head.depth=1",
    "train.max_seconds=null",
    "train.steps=40",
    "train.ema=0.9",
    "eval.overlays=0",
    "data.intensity=mri",
    "device=cpu",
)
OUTPUT = ROOT / "benchmarks" / "results" / "engine.json"


def engine(*arguments: str) -> None:
    """Run a stage of the engine, and stop if it fails."""
    if code := samadapt(["engine", *arguments]):
        sys.exit(code)


def index_of(work: Path) -> dict[str, Any]:
    """Return the index of a workspace."""
    content: dict[str, Any] = json.loads((work / "index.json").read_text(encoding="utf-8"))
    return content


def correct(names: list[str], data: Path, work: Path, *keys: str) -> None:
    """Put the true masks in the place of the proposals, and accept them."""
    (work / "correct").mkdir(exist_ok=True)
    for name in names:
        truth = nib.load(data / "labelsTr" / f"{name}.nii.gz")
        merged = (np.asarray(truth.dataobj) > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(merged, truth.affine), work / "correct" / f"{name}.nii.gz")
    engine("accept", f"workspace={work}", f"names=[{','.join(names)}]", *keys)


def run_seed(seed: int, data: Path, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Run the rounds of both arms, which share the first one; yield the rows of each arm."""
    rng = random.Random(seed)
    names = sorted(path.name.split(".")[0] for path in (data / "labelsTr").glob("hippo*.nii.gz"))
    drawn = rng.sample(names, HELD_OUT + POOL)
    held_out, pool = drawn[:HELD_OUT], drawn[HELD_OUT:]
    images, start = folder / "images", folder / "start"
    images.mkdir(parents=True)
    for name in drawn:
        shutil.copyfile(data / "imagesTr" / f"{name}.nii.gz", images / f"{name}.nii.gz")
    # The first masks are drawn by hand: there is no model yet that could propose any.
    create_workspace(start, images, ["hippocampus"], ReaderOptions(), objects=False)
    correct(held_out, data, start, "held_out=true")
    first = run_round(start, data, seed, pool[:A_ROUND])
    for arm in ("engine", "random"):
        work, rows, left = folder / arm, [first], pool[A_ROUND:]
        shutil.copytree(start, work, symlinks=True)
        for _ in range(1, ROUNDS):
            if arm == "engine":
                engine("rank", f"workspace={work}", "device=cpu")
                left = [one["image"] for one in index_of(work)["ranking"]]
            chosen, left = left[:A_ROUND], left[A_ROUND:]
            engine("propose", f"workspace={work}", f"names=[{','.join(chosen)}]", "device=cpu")
            rows.append(run_round(work, data, seed, chosen))
        yield [{"arm": arm, **row} for row in rows]


def run_round(work: Path, data: Path, seed: int, chosen: list[str]) -> dict[str, Any]:
    """Correct the masks of some volumes, train on all that are accepted, and return a row."""
    correct(chosen, data, work)
    accepted = {one["image"]: one for one in index_of(work)["accepted"]}
    changes = [c for name in chosen if (c := accepted[name]["changes"]) is not None]
    engine("retrain", f"workspace={work}", *KEYS, f"seed={seed}")
    done = index_of(work)["rounds"][-1]
    return {
        "seed": seed,
        "round": done["number"],
        "masks": len(done["masks"]),
        "volumes": chosen,
        "dice": done["after"]["dice"],
        "proposal_dice": [change["dice"] for change in changes],
        "needed": [change["needed"] for change in changes],
        "pixels": [change["pixels"] for change in changes],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over the seeds as Markdown, a line for each round and arm."""
    lines = [
        "| round | masks | chosen by | held-out Dice | Dice of proposals | needed correction |",
        "|---|---|---|---|---|---|",
    ]
    for number in range(1, ROUNDS + 1):
        for arm in ("engine", "random"):
            own = [row for row in rows if (row["arm"], row["round"]) == (arm, number)]
            if not own:
                continue
            dice = [row["dice"] for row in own]
            proposals = [value for row in own for value in row["proposal_dice"]]
            needed = [value for row in own for value in row["needed"]]
            spread = f"{np.mean(dice):.3f} ({min(dice):.3f} to {max(dice):.3f})"
            shown = f"{np.mean(proposals):.3f}" if proposals else "-"
            share = f"{sum(needed)} of {len(needed)}" if needed else "drawn by hand"
            masks = own[0]["masks"]
            lines.append(f"| {number} | {masks} | {arm} | {spread} | {shown} | {share} |")
    return "\n".join(lines)


def main() -> None:
    """Run both arms for each seed, and write what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    started, cpu, rows = time.time(), time.process_time(), []
    for seed in range(asked.seeds):
        if time.time() - started > asked.minutes * 60:
            break
        with tempfile.TemporaryDirectory() as folder:
            for arm in run_seed(seed, asked.data.resolve(), Path(folder)):
                rows += arm
                content = {
                    "keys": KEYS,
                    "pool": POOL,
                    "held_out": HELD_OUT,
                    "cpu_seconds": round(time.process_time() - cpu, 1),
                    "rows": rows,
                }
                asked.output.parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps(content, indent=1) + "\n"
                asked.output.write_text(text, encoding="utf-8")
                print(table(rows), flush=True)


if __name__ == "__main__":
    main()
