"""One adapter for all kinds of prompts against one adapter for each, on hippocampus volumes.

    python benchmarks/mixed_prompts.py DATA_ROOT [--steps 300] [--only KIND ...] [--output FILE]
        [key=value ...]

Trains with each kind of prompt alone, then with shares of all of them (``prompts=mixed``), for the
same number of steps, and writes the Dice of each kind on the held-out volumes and the CPU-seconds
of each training, features and validations included. Further keys go to all runs, for example
``model.image_size=84 data.max_cases=15`` for a short version. Results are written after every run;
``--only`` measures some kinds again and keeps the rows of the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from samadapt.config.compose import compose  # noqa: E402
from samadapt.prompts.shares import DEFAULT_SHARES, MIXED  # noqa: E402
from samadapt.runs.finetune import finetune  # noqa: E402

KINDS = [kind for kind, share in DEFAULT_SHARES.items() if share]
MARGIN, MOST_TIME = 0.01, 2.0
"""The aim: within this Dice of each single-purpose adapter, in this multiple of the longest's
CPU-seconds."""

MIXED_KEYS = "prompts.shares=", "prompts.every_kind="

OUTPUT = ROOT / "benchmarks" / "results" / "mixed_prompts.json"


def train(kind: str, data: str, steps: int, folder: Path, keys: list[str]) -> dict[str, Any]:
    """Train with a kind of prompt, and return its Dice by kind and its CPU-seconds."""
    given = [
        f"data.root={data}",
        f"prompts={kind}",
        "prompts.clicks=3",  # six answers of the decoder: eight clicks take twice the time
        f"train.steps={steps}",
        "train.max_cpu_seconds=1e6",  # so that the time is measured; it ends nothing
        "eval.overlays=0",
        f"output.dir={folder / kind}",  # features of its own, so that every run pays for them
        # Only mixed prompts have shares.
        *(key for key in keys if kind == MIXED or not key.startswith(MIXED_KEYS)),
    ]
    summary = finetune(compose("hippocampus", given)).summary
    scores = summary.get("by_prompt", {kind: summary})
    return {
        "prompts": kind,
        "dice": {name: entry["adapted"]["dice"] for name, entry in scores.items()},
        "zero_shot": {name: entry["zero_shot"]["dice"] for name, entry in scores.items()},
        "cpu_seconds": summary["time"]["used_cpu_seconds"],
        "best_step": summary["best_step"],
        "cases": summary["cases"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Dice of each kind as Markdown, and whether the aim is reached."""
    by_kind = {row["prompts"]: row for row in rows}
    lines = [
        "| prompt | zero-shot | alone | mixed | mixed - alone |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    mixed = by_kind.get(MIXED)
    for kind in KINDS:
        own = by_kind.get(kind)
        if own is None or mixed is None:
            continue
        alone, both = own["dice"][kind], mixed["dice"][kind]
        cells = [own["zero_shot"][kind], alone, both]
        shown = " | ".join(f"{value:.3f}" for value in cells)
        lines.append(f"| {kind} | {shown} | {both - alone:+.3f} |")
    single = [row["cpu_seconds"] for row in rows if row["prompts"] != MIXED]
    if mixed and single:
        ratio = mixed["cpu_seconds"] / max(single)
        lines.append(
            f"\nmixed: {mixed['cpu_seconds']:.0f} CPU-seconds, {ratio:.2f} times those of the "
            f"longest single-purpose run (aim: {MOST_TIME}); aim for Dice: -{MARGIN} or better"
        )
    return "\n".join(lines)


def main() -> None:
    """Train all adapters, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", choices=[*KINDS, MIXED], metavar="KIND")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("keys", nargs="*")
    asked = parser.parse_intermixed_args()
    kinds = [kind for kind in (*KINDS, MIXED) if asked.only is None or kind in asked.only]
    rows: list[dict[str, Any]] = []
    if asked.only is not None and asked.output.is_file():
        rows = json.loads(asked.output.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            row = train(kind, asked.data, asked.steps, Path(folder), asked.keys)
            rows = [other for other in rows if other["prompts"] != kind] + [row]
            asked.output.parent.mkdir(parents=True, exist_ok=True)
            asked.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(f"{kind}: {rows[-1]['dice']}, {rows[-1]['cpu_seconds']:.0f} CPU-seconds")
    print(table(rows))


if __name__ == "__main__":
    main()
