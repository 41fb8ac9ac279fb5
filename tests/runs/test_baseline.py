"""``baseline=unet``: the same run directory, scores and resume, with a U-Net in SAM's place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.baselines.store import load_unet
from samadapt.cli import main
from samadapt.commands.finetune import render
from samadapt.config.compose import compose
from samadapt.errors import ConfigError
from samadapt.reports.tables import read_per_case
from samadapt.runs.finetune import FinetuneResult, finetune
from samadapt.runs.past_runs import list_runs

SMALL = ("baseline=unet", "baseline.filters=4", "baseline.batch_size=4")
Train = Callable[..., FinetuneResult]


@pytest.fixture
def train(recipe: Path) -> Train:
    def start(root: Path, *overrides: str) -> FinetuneResult:
        return finetune(compose(str(recipe), [f"data.root={root}", *SMALL, *overrides]))

    return start


def shown(result: FinetuneResult) -> str:
    text = render(
        {
            "run_dir": str(result.run_dir),
            "adapter_dir": str(result.adapter_dir),
            "summary": result.summary,
        }
    )
    return " ".join(text.split())


def test_a_run_has_one_row_and_no_adapter(
    make_scans: Callable[..., Path], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(make_scans(5), "data.name=nifti", "eval.overlays=1", "train.augment=[flip]")
    run_dir, summary = result.run_dir, result.summary
    written = ("config.yaml", "env.json", "splits.json", "metrics.jsonl", "progress.png")
    assert all((run_dir / name).is_file() for name in (*written, "report.html"))
    assert not (run_dir / "adapter").exists()
    assert run_dir.name.endswith("-unet")
    assert list((run_dir / "overlays").glob("best_*.png"))
    assert (summary["zero_shot"], summary["paired"]) == (None, None)
    assert summary["baseline"]["title"] == "U-Net from scratch"
    assert summary["baseline"]["image_size"] == 32  # of slices of 20 x 28 pixels
    assert (summary["prompt"], summary["oracle_prompt"]) == ("semantic", False)
    assert summary["trained_parameters"] == summary["total_parameters"]
    assert list(read_per_case(run_dir / "eval")) == ["adapted"]
    table = shown(result)
    assert "U-Net from scratch" in table
    assert "zero-shot" not in table
    # A long path is broken where the terminal ends, so spaces do not count.
    assert f"baseline{run_dir}" in table.replace(" ", "")
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "U-Net from scratch" in page
    assert "zero-shot" not in page.replace("zero_shot", "")
    said = capsys.readouterr().err
    assert "AdamW 0.003, weight decay 0.0001, poly" in said
    assert "4 slices a step" in said
    (row,) = list_runs(run_dir.parent)
    assert (row["method"], row["before"], row["after"]) == (
        "unet",
        None,
        summary["adapted"]["dice"],
    )


@pytest.mark.slow
def test_it_learns(make_scans: Callable[..., Path], train: Train) -> None:
    more = ("train.steps=60", "train.validate_every=20", "baseline.lr=0.02", "baseline.filters=8")
    result = train(make_scans(5), "data.name=nifti", *more)
    assert result.summary["adapted"]["dice"] > 0.9
    model, record = load_unet(result.run_dir / "baseline")
    assert record.classes == ["front", "back"]
    assert model.image_size == 32


def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    make_pictures: Callable[..., Path], train: Train
) -> None:
    result = train(make_pictures(), "train.augment=[rotate,noise]")
    name = result.run_dir / "baseline" / "unet.safetensors"
    weights, scores = name.read_bytes(), (result.run_dir / "eval" / "per_case.csv").read_bytes()
    shutil.rmtree(result.run_dir / "checkpoints" / "step_000004")
    (result.run_dir / "checkpoints" / "LATEST").write_text("step_000002\n", encoding="utf-8")
    assert main(["finetune", f"resume={result.run_dir}"]) == 0
    assert name.read_bytes() == weights
    assert (result.run_dir / "eval" / "per_case.csv").read_bytes() == scores


@pytest.mark.slow
def test_its_weights_follow_from_the_seed(make_pictures: Callable[..., Path], train: Train) -> None:
    root = make_pictures()

    def weights(*overrides: str) -> bytes:
        folder = train(root, "train.steps=1", *overrides).run_dir / "baseline"
        return (folder / "unet.safetensors").read_bytes()

    assert weights() == weights()
    assert weights() != weights("seed=1")


@pytest.mark.slow
def test_folds_are_pooled(
    make_scans: Callable[..., Path], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(make_scans(5), "data.name=nifti", "folds=2")
    assert result.summary["cases"] == 5
    assert result.summary["zero_shot"] is None
    assert result.summary["split"].endswith("scored by the U-Net that did not see it")
    assert "U-Net from scratch" in shown(result)
    assert (result.run_dir / "fold_1" / "baseline" / "unet.json").is_file()
    before = (result.run_dir / "eval" / "per_case.csv").read_bytes()
    assert main(["finetune", f"resume={result.run_dir}"]) == 0  # nothing is left to train
    assert (result.run_dir / "eval" / "per_case.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("data.regions={whole: [1, 2], back: 2}",),
        ("data.tile=16",),
        ("eval.instances=components",),
        ("baseline.encoder=resnet10t",),
        ("baseline.image_size=16",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_unet_trains_on_the_data_that_sam_trains_on(
    make_pictures: Callable[..., Path], train: Train, overrides: tuple[str, ...]
) -> None:
    result = train(make_pictures(8, 2), *overrides)
    assert result.summary["adapted"]["dice"] is not None
    encoder = any("encoder" in one for one in overrides)
    noted = any("not measured with pretrained weights" in note for note in result.summary["notes"])
    assert noted is encoder


def test_boxes_are_not_needed(make_pictures: Callable[..., Path], train: Train) -> None:
    result = train(make_pictures(), "prompts=box", "train.steps=1")
    assert result.summary["prompt"] == "semantic"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("baseline.image_size=40",), r"multiple of 16; got 40; use 32 or 48"),
        (("baseline.encoder=../net",), r"timm has no model '\.\./net'"),
        (("loss=sam",), r"loss=sam does not fit prompts=semantic"),
    ],
)
def test_what_does_not_fit_is_refused(
    make_pictures: Callable[..., Path],
    train: Train,
    overrides: tuple[str, ...],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_pictures(), *overrides)
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_a_run_of_a_unet_cannot_be_resumed_as_one_of_sam(
    make_pictures: Callable[..., Path], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(make_pictures(), "train.steps=1")
    assert main(["finetune", f"resume={result.run_dir}", "baseline=null"]) == 2
    assert "baseline.name=None (was unet)" in capsys.readouterr().err


def test_evaluate_and_export_refuse_a_unet(
    make_pictures: Callable[..., Path], train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(make_pictures(), "train.steps=1").run_dir / "baseline"
    for command in (["evaluate"], ["export", "to=sam", f"output={folder.parent / 'sam'}"]):
        assert main([*command, f"adapter={folder}"]) == 2
        assert "this is a U-Net" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_gives_what_was_scored(
    make_scans: Callable[..., Path], train: Train, tmp_path: Path
) -> None:
    root = make_scans(5)
    result = train(root, "data.name=nifti", "train.steps=40", "train.validate_every=20")
    held = json.loads((result.run_dir / "splits.json").read_text(encoding="utf-8"))["val"][0]
    target = tmp_path / "labels.nii.gz"
    arguments = [f"adapter={result.adapter_dir}", f"output={target}", "device=cpu"]
    assert main(["predict", *arguments, f"input={root / 'imagesTr' / held}.nii.gz"]) == 0
    truth = np.asarray(nib.load(root / "labelsTr" / f"{held}.nii.gz").dataobj)
    found = np.asarray(nib.load(target).dataobj)
    rows = {r.class_name: r for r in read_per_case(result.run_dir / "eval")["adapted"]}
    for label, name in enumerate(("front", "back"), start=1):
        assert int((found == label).sum()) == rows[name].prediction_voxels
        assert int(((found == label) & (truth == label)).sum()) == rows[name].intersection


def four_channels(root: Path) -> list[str]:
    for case in range(4):
        rng = np.random.default_rng(case)
        labels = np.zeros((20, 24, 3), np.uint8)
        labels[5 + case : 12 + case, 6:15] = 1
        (root / f"c{case}").mkdir(parents=True)
        for name in "abcd":
            values = (rng.integers(1, 60, labels.shape) + 120 * labels).astype(np.int16)
            image = nib.Nifti1Image(values, np.eye(4))
            nib.save(image, root / f"c{case}" / f"c{case}_{name}.nii.gz")
        image = nib.Nifti1Image(labels, np.eye(4))
        nib.save(image, root / f"c{case}" / f"c{case}_seg.nii.gz")
    pattern = ["data.image=*/*_{channel}.nii.gz", "data.label=*/*_seg.nii.gz"]
    return ["data=nifti", *pattern, "data.channel=[a,b,c,d]", "data.intensity=mri"]


@pytest.mark.slow
def test_it_takes_four_channels_directly(train: Train, tmp_path: Path) -> None:
    root = tmp_path / "brats"
    result = train(root, *four_channels(root))
    build: dict[str, Any] = result.summary["baseline"]
    assert build["channels"] == 4
    assert len(set(build["mean"])) == 4
