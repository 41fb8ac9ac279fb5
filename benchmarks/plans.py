"""What ``samadapt plan`` predicts against what the run then needs: memory, disk and time.

    python benchmarks/plans.py DATA_ROOT [--only NAME ...] [--output FILE] [--threads N]

``DATA_ROOT`` has the folders of the data sets: ``msd_hippocampus``, ``ct_sample``,
``kvasir_polyps``. For every case the plan is made in one process, with a cache of its own, and the
run follows in another, whose largest resident memory the system reports. Runs are shortened in
steps and cases, which the plan is told as well. A row is written after each case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUTPUT = ROOT / "benchmarks" / "results" / "plans.json"
WITHIN = 0.2
"""The aim: memory, disk and seconds are predicted within this share of what is measured."""

SHORT = ("eval.max_cases=6", "eval.overlays=0", "train.validate_every=0")
HIPPOCAMPUS = ("data.root={root}/msd_hippocampus", "data.max_cases=40", "train.steps=30", *SHORT)
PICTURES = ("data.root={root}/kvasir_polyps", *SHORT)
VIT_B = (
    *("recipe=photos", "model.name=vit_b", "model.checkpoint={weights}", "peft.blocks=all"),
    *("data.root={root}/kvasir_polyps", "train.steps=3", "train.validate_every=0"),
    *("eval.max_cases=1", "eval.overlays=0"),
)


CASES: dict[str, tuple[str, ...]] = {
    "medical": ("recipe=medical", "train.steps=40", *SHORT),
    "medical_ct": (
        *("recipe=medical_ct", "data.root={root}/ct_sample", "data.image=ct.nii.gz"),
        *("data.label=labels.nii.gz", "data.classes={{liver: 1, spleen: 2}}", "train.steps=20"),
        *("model.image_size=128", *SHORT),
    ),
    "hippocampus, box": ("recipe=hippocampus", "prompts=box", *HIPPOCAMPUS),
    "hippocampus, point": ("recipe=hippocampus", "prompts=point", *HIPPOCAMPUS),
    "hippocampus, semantic": ("recipe=hippocampus", "prompts=semantic", *HIPPOCAMPUS),
    "hippocampus, interactive": ("recipe=hippocampus", "prompts=interactive", *HIPPOCAMPUS),
    "hippocampus, mixed": ("recipe=hippocampus", "prompts=mixed", *HIPPOCAMPUS),
    "hippocampus_parts": ("recipe=hippocampus_parts", *HIPPOCAMPUS),
    "photos": ("recipe=photos", "train.steps=30", *PICTURES),
    "few_labels": (
        *("recipe=few_labels", "data.name=folder", "train.steps=20"),
        *("train.max_seconds=null", "cache.variants=2", *PICTURES),
    ),
    "vit_b, 256": (*VIT_B, "model.image_size=256"),
    "vit_b, 512": (*VIT_B, "model.image_size=512"),
    "vit_b, 1024": (*VIT_B, "model.image_size=1024", "train.batch_size=1", "eval.batch_size=1"),
}


def weights_of_vit_b(folder: Path) -> Path:
    """Write random weights of ViT-B, whose needs are those of the pretrained ones."""
    import torch

    from samadapt.sam.model import build_sam

    path = folder / "vit_b.pth"
    if not path.is_file():
        torch.manual_seed(0)
        torch.save(build_sam("vit_b").state_dict(), path)
    return path


def command(name: str, arguments: list[str], threads: int, cache: Path) -> tuple[str, int, float]:
    """Run samadapt; return what it prints, its largest resident bytes, and its CPU-seconds."""
    environment = os.environ | {"SAMADAPT_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, "-P", "-m", "samadapt", name, *arguments, "--json"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        process = subprocess.Popen(
            words, stdout=out, env=environment | {"PYTHONPATH": str(ROOT)}, cwd=cache
        )
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{' '.join(words)} ended with {code}")
        out.seek(0)
        return out.read(), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def phases_of(log: Path, seconds: float) -> dict[str, float]:
    """Return the seconds between lines of a log, which names the second of each line.

    Args:
        log: ``log.txt`` of a run.
        seconds: how long the run took.
    """
    marks = {
        "began": r"run directory",
        "start": r"plan:",
        # Features are computed when a step first reads them.
        "features, training and validation": r"step \d+: validation",
    }
    times: dict[str, float] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        found = re.match(r"(\d\d):(\d\d):(\d\d) (.*)", line)
        if found is None:  # a further line of a message
            continue
        hours, minutes, second = map(int, found.groups()[:3])
        name = next((name for name, mark in marks.items() if re.match(mark, found[4])), "")
        times[name] = 3600 * hours + 60 * minutes + second
    times["scores"] = times["began"] + seconds
    times = {name: times[name] for name in (*marks, "scores") if name in times}
    names = list(times)
    return {two: times[two] - times[one] for one, two in itertools.pairwise(names)}


def compare(case: str, root: str, threads: int, weights: Path) -> dict[str, Any]:
    """Plan a case and run it."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [text.format(root=root, weights=weights) for text in CASES[case]]
        arguments = [*texts, f"output.dir={folder}/runs"]
        printed, _, planning = command("plan", arguments, threads, Path(folder))
        plan = json.loads(printed)
        printed, memory, _ = command("finetune", arguments, threads, Path(folder))
        result = json.loads(printed)
        summary = result["summary"]
        features = Path(folder) / "runs" / "features"
        files = [path for path in features.rglob("*") if path.is_file()]
        return {
            "case": case,
            "threads": threads,
            "memory": [plan["memory_bytes"], memory],
            "by_phase": plan["memory_by_phase"],
            "disk": [plan["feature_bytes"], sum(path.stat().st_size for path in files)],
            "seconds": [sum(plan["seconds"].values()), summary["seconds"]],
            "seconds_by_phase": plan["seconds"],
            "measured_by_phase": phases_of(Path(result["run_dir"]) / "log.txt", summary["seconds"]),
            "plan_cpu_seconds": planning,
            "busy": plan["busy"],
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        (
            "| run | memory, predicted | measured | features, predicted | measured "
            "| seconds, predicted | measured |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        (memory, held), (disk, kept), (seconds, taken) = (
            row[key] for key in ("memory", "disk", "seconds")
        )
        marks = [
            "" if abs(predicted - found) <= WITHIN * found else " (!)"
            for predicted, found in ((memory, held), (disk, kept), (seconds, taken))
        ]
        lines.append(
            f"| {row['case']} | {memory / 1e9:.2f} GB{marks[0]} | {held / 1e9:.2f} GB "
            f"| {disk / 1e9:.2f} GB{marks[1]} | {kept / 1e9:.2f} GB "
            f"| {seconds:.0f}{marks[2]} | {taken:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compare the cases, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    output: Path = given.output
    rows = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        for case in given.only:
            row = compare(case, given.root, given.threads, weights_of_vit_b(Path(folder)))
            known = (case, given.threads)
            rows = [old for old in rows if (old["case"], old["threads"]) != known] + [row]
            rows.sort(key=lambda one: list(CASES).index(one["case"]))
            output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            print(table([row]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
