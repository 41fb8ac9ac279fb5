"""The data engine on hippocampus volumes, with the ground truth in the person's place.

    python benchmarks/engine.py DATA_ROOT [--seeds 3] [--minutes 40] [--output FILE]

For each seed, eight volumes are held out. Round by round, four more volumes get their true masks
(both parts as one): in the arm ``engine`` those that ``samadapt engine rank`` puts first, in the
arm ``random`` those that are drawn. The first four are drawn, and are the same in both arms. Every
round trains the same steps and starts from the adapter of the last one, which then proposes masks
for the next four. What is measured is the Dice of the held-out volumes by round, the Dice of the
proposals with the truth, and the share of them that needed correction (Dice below 0.9, or objects
added or removed). The stages run through the command line, as a user types them. Results are
written after every round; ``--minutes`` stops before the next arm.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402

from samadapt.cli import main as samadapt  # noqa: E402
from samadapt.data.formats.base import ReaderOptions  # noqa: E402
from samadapt.engine.workspace import create_workspace  # noqa: E402

POOL, HELD_OUT, A_ROUND, ROUNDS = 24, 8, 4, 3
KEYS = (
    "recipe=hippocampus_parts",
    "head.depth=1",
    "train.max_seconds=null",
    "train.steps=60",
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


def run_arm(arm: str, seed: int, data: Path, folder: Path) -> list[dict[str, Any]]:
    """Run the rounds of an arm, and return a row for each."""
    rng = random.Random(seed)
    names = sorted(path.name.split(".")[0] for path in (data / "labelsTr").glob("hippo*.nii.gz"))
    drawn = rng.sample(names, HELD_OUT + POOL)
    held_out, pool = drawn[:HELD_OUT], drawn[HELD_OUT:]
    images, work = folder / "images", folder / "work"
    images.mkdir(parents=True)
    for name in drawn:
        shutil.copyfile(data / "imagesTr" / f"{name}.nii.gz", images / f"{name}.nii.gz")
    # The first masks are drawn by hand: there is no model yet that could propose any.
    create_workspace(work, images, ["hippocampus"], ReaderOptions(), objects=False)
    correct(held_out, data, work, "held_out=true")
    chosen, rows = pool[:A_ROUND], []
    for number in range(1, ROUNDS + 1):
        correct(chosen, data, work)
        accepted = {one["image"]: one for one in index_of(work)["accepted"]}
        changes = [c for name in chosen if (c := accepted[name]["changes"]) is not None]
        engine("retrain", f"workspace={work}", *KEYS, f"seed={seed}")
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "round": number,
                "masks": number * A_ROUND,
                "volumes": chosen,
                "dice": index_of(work)["rounds"][-1]["after"]["dice"],
                "proposal_dice": [change["dice"] for change in changes],
                "needed": [change["needed"] for change in changes],
                "pixels": [change["pixels"] for change in changes],
            }
        )
        if number == ROUNDS:
            break
        left = [name for name in pool if name not in accepted]
        if arm == "engine":
            engine("rank", f"workspace={work}", "tta=flip", "device=cpu")
            ranked = [one["image"] for one in index_of(work)["ranking"]]
            chosen = [name for name in ranked if name in left][:A_ROUND]
        else:
            chosen = left[:A_ROUND]
        engine("propose", f"workspace={work}", f"names=[{','.join(chosen)}]", "device=cpu")
    return rows


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
        for arm in ("engine", "random"):
            if time.time() - started > asked.minutes * 60:
                break
            with tempfile.TemporaryDirectory() as folder:
                rows += run_arm(arm, seed, asked.data.resolve(), Path(folder))
            content = {
                "keys": KEYS,
                "pool": POOL,
                "held_out": HELD_OUT,
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "rows": rows,
            }
            asked.output.parent.mkdir(parents=True, exist_ok=True)
            asked.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
