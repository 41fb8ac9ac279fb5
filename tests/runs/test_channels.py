"""Several channels from the command line: trained, scored again, predicted, refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samadapt.adapters.record import read_record
from samadapt.commands import check, evaluate, predict, show
from samadapt.commands.export import run as export
from samadapt.config.compose import compose
from samadapt.errors import AdapterError, ConfigError
from samadapt.runs.finetune import finetune

NAMES = ("flair", "t1", "t1ce", "t2")


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    root = tmp_path / "brats"
    for case in range(4):
        folder = root / f"c{case}"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(case)
        labels = np.zeros((20, 24, 3), np.uint8)
        labels[5 + case : 12 + case, 6:15, 1:] = 1
        for name in NAMES:
            values = (rng.integers(1, 60, labels.shape) + 120 * labels).astype(np.int16)
            nib.save(nib.Nifti1Image(values, np.eye(4)), folder / f"c{case}_{name}.nii.gz")
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / f"c{case}_seg.nii.gz")
    return root


def data(root: Path, channels: str) -> list[str]:
    return [
        "data=nifti",
        f"data.root={root}",
        "data.image=*/*_{channel}.nii.gz",
        "data.label=*/*_seg.nii.gz",
        f"data.channel=[{channels}]",
        "data.intensity=mri",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "count"), [("flair,t1", 2), (",".join(NAMES), 4)])
def test_several_channels_train_evaluate_and_predict(
    tmp_path: Path, brats: Path, recipe: Path, channels: str, count: int
) -> None:
    arguments = data(brats, channels)
    if count > 3:
        with pytest.raises(ConfigError, match=r"1 to 3 channels; got 4.*model\.input_channels=n"):
            finetune(compose(str(recipe), [*arguments, "model=tiny", "prompts=semantic"]))
        arguments.append(f"model.input_channels={count}")
    sheet = show.run(
        [f"recipe={recipe}", *arguments, "images=2", f"output={tmp_path / 'sheet.png'}"]
    )
    assert len(sheet["images"]) == 2
    more = ["model=tiny", "prompts=semantic", "train.augment=[flip,intensity,bias_field]"]
    run = finetune(compose(str(recipe), [*arguments, *more]))
    adapter = run.run_dir / "adapter"
    record = read_record(adapter)
    assert record.input_channels == (count if count > 3 else 3)
    assert len(record.intensity["inputs"]) == count
    assert record.data_options["channel"] == channels.split(",")
    scored = evaluate.run(
        [
            f"adapter={adapter}",
            f"output.dir={tmp_path / 'e'}",
            *arguments[1:4],
            "precision=fp32",
            "device=cpu",
        ]
    )
    summary = json.loads((run.run_dir / "eval" / "summary.json").read_text(encoding="utf-8"))
    for state in ("zero_shot", "adapted"):
        assert scored["summary"][state]["dice"] == summary[state]["dice"]
    turned = f"data.channel=[{','.join(reversed(channels.split(',')))}]"
    more = [f"output.dir={tmp_path / 'e'}", "precision=fp32", "device=cpu"]
    other = evaluate.run([f"adapter={adapter}", *arguments[1:4], turned, *more])
    assert any("other channels" in note for note in other["summary"]["notes"])
    target = tmp_path / "out.nii.gz"
    predict.run([f"adapter={adapter}", f"input={brats / 'c0'}", f"output={target}", "device=cpu"])
    assert nib.load(target).shape == (20, 24, 3)
    if count > 3:
        with pytest.raises(AdapterError, match=r"to=sam.*trained projection"):
            export([f"adapter={adapter}", "to=sam", f"output={tmp_path / 'sam'}"])
        with pytest.raises(ConfigError, match=r"prompts=matrix.*sees 4"):
            evaluate.run([f"adapter={adapter}", f"data.root={brats}", "prompts=matrix"])


def test_the_projection_needs_as_many_channels(brats: Path, recipe: Path) -> None:
    arguments = [*data(brats, "flair,t1"), "model=tiny", "model.input_channels=4"]
    with pytest.raises(
        ConfigError, match=r"the same number of channels in data\.channel, which names 2"
    ):
        finetune(compose(str(recipe), arguments))
    with pytest.raises(ConfigError, match=r"model\.input_channels.*from 4 to"):
        compose(str(recipe), ["model.input_channels=3"])


def test_check_reads_the_channels(brats: Path) -> None:
    result = check.run(data(brats, "flair,t1"))
    assert (result["errors"], result["cases"]) == (0, 4)
