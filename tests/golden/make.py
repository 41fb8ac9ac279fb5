"""Make the golden files with the samadapt that is installed: ``python make.py FOLDER``."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

INPUTS = runpy.run_path(str(Path(__file__).with_name("inputs.py")))
KEPT = ("config.yaml", "splits.json", "env.json", "metrics.jsonl", "checkpoints")
CHECKPOINT = "step_000006"


def main(target: Path) -> None:
    """Train each adapter in a scratch folder with relative paths, and keep what is small."""
    import samadapt
    from samadapt.cli import main as command

    scratch = Path(tempfile.mkdtemp())
    os.chdir(scratch)
    INPUTS["write_base"](scratch)
    INPUTS["write_pictures"](scratch)
    Path("golden.yaml").write_text(INPUTS["RECIPE"], encoding="utf-8")
    for name, arguments in INPUTS["ADAPTERS"].items():
        before = set(Path("runs").glob("*/*"))
        assert command(["finetune", "recipe=golden.yaml", *arguments]) == 0
        (run,) = {path for path in Path("runs").glob("*/*") if path.is_dir()} - before
        shutil.copytree(run / "adapter", target / name)
        segmenter = samadapt.load_adapter(
            run / "adapter", checkpoint=INPUTS["BASE"], device="cpu", precision="fp32"
        )
        labels = segmenter.segment(INPUTS["image"](), **INPUTS["PROMPTS"][name])
        assert 0 < (labels > 0).mean() < 1, (labels > 0).mean()
        np.save(target / f"{name}.npy", labels)
        if name == "lora_box":
            keep_stopped_run(run, target / "stopped_run")
    shutil.rmtree(scratch)


def keep_stopped_run(run: Path, target: Path) -> None:
    """Copy a run as it was after its first checkpoint."""
    target.mkdir()
    for name in KEPT:
        copy = shutil.copytree if (run / name).is_dir() else shutil.copy
        copy(run / name, target / name)
    for path in (target / "checkpoints").glob("step_*"):
        if path.name != CHECKPOINT:
            shutil.rmtree(path)
    (target / "checkpoints" / "LATEST").write_text(CHECKPOINT + "\n", encoding="utf-8")
    steps = int(CHECKPOINT.removeprefix("step_"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= steps]
    (target / "metrics.jsonl").write_text("".join(kept), encoding="utf-8")
    (target.parent / "finished_run.jsonl").write_text("".join(lines), encoding="utf-8")
    environment = json.loads((target / "env.json").read_text(encoding="utf-8"))
    environment["platform"] = "not recorded here"
    (target / "env.json").write_text(json.dumps(environment, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
