"""Three rounds of the data engine, with the ground truth in the person's place."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from samadapt.adapters.record import read_record
from samadapt.cli import main
from samadapt.data.formats.base import ReaderOptions
from samadapt.engine.workspace import create_workspace, opened

pytestmark = pytest.mark.slow  # each round is a training

SMALL = (
    "recipe=photos",
    "model=tiny",
    "peft.blocks=all",
    "prompts=semantic",
    "train.steps=3",
    "train.validate_cases=0",
    "train.batch_size=2",
    "eval.overlays=0",
    "device=cpu",
)


def engine(*arguments: object) -> None:
    assert main(["engine", *map(str, arguments)]) == 0


def index_of(work: Path):
    return json.loads((work / "index.json").read_text(encoding="utf-8"))


def check_rounds(work: Path, held_out: set[str], rounds: int) -> None:
    """Each round starts from the last one, trains on all masks and never on a held-out image."""
    index = index_of(work)
    done = index["rounds"]
    assert [one["number"] for one in done] == list(range(1, rounds + 1))
    digests = {index["images"][name]["digest"] for name in held_out}
    before = None
    for one in done:
        assert one["init_sha256"] == before
        assert set(one["held_out"]) == held_out
        assert not set(one["masks"]) & held_out
        assert 0 <= one["after"]["dice"] <= 1
        record = read_record(work / one["run_dir"] / "adapter")
        assert not set(record.trained_on or {}) & digests
        assert len(record.trained_on or {}) == len(one["masks"])
        before = one["adapter_sha256"]
        assert record.weights_sha256 == before
    # What is proposed now comes from the last round.
    assert index["makers"][-1]["adapter_sha256"] == [before]
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "Quality by round" in page
    assert all(one["adapter_sha256"][:12] in page for one in done)


def test_three_rounds_on_pictures(tmp_path, capsys):
    work, pictures, truth = tmp_path / "work", tmp_path / "pictures", {}
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        values = rng.integers(0, 60, (32, 40, 3)).astype(np.uint8)
        mask = np.zeros((32, 40), np.uint8)
        y, x = rng.integers(3, 18, 2)
        mask[y : y + 10, x : x + 12] = 1
        values[mask > 0] += 150
        Image.fromarray(values).save(pictures / f"p{k}.png")
        truth[f"p{k}"] = mask
    boxes = {name: {"boxes": [[5, 5, 20, 20]]} for name in truth}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")

    def accept(names, *keys):
        for name in names:
            Image.fromarray(truth[name]).save(work / "correct" / f"{name}.png")
        engine("accept", f"workspace={work}", f"names=[{','.join(names)}]", *keys)

    begin = [f"workspace={work}", f"input={pictures}", "model=tiny", "device=cpu"]
    engine("propose", *begin, f"prompts={tmp_path / 'boxes.json'}")
    assert main(["engine", "retrain", f"workspace={work}", *SMALL]) == 2
    assert "no mask is accepted for training yet" in capsys.readouterr().err
    accept(["p0"])
    assert main(["engine", "retrain", f"workspace={work}", *SMALL]) == 2
    assert "no image is held out" in capsys.readouterr().err
    accept(["p4", "p5"], "held_out=true")
    for k in range(3):
        accept([f"p{k}"])
        engine("retrain", f"workspace={work}", *SMALL)
        engine("propose", f"workspace={work}", "device=cpu")
    check_rounds(work, {"p4", "p5"}, 3)
    # The second version of a mask is what the next round trains on; the first one stays.
    truth["p0"][:2] = 1
    accept(["p0"])
    with opened(work) as workspace:
        assert workspace.current(held_out=False)["p0"].version == 2
    assert (work / "accepted/p0/0001.png").is_file()


def test_three_rounds_on_hippocampus_volumes(shared_data, tmp_path):
    """Volumes keep their grid through proposals, versions and data sets of the rounds."""
    data = shared_data("msd_hippocampus")
    images, work = tmp_path / "images", tmp_path / "work"
    images.mkdir()
    names = sorted(path.name.split(".")[0] for path in (data / "labelsTr").glob("hippo*"))[:8]
    for name in names:
        (images / f"{name}.nii.gz").symlink_to((data / "imagesTr" / f"{name}.nii.gz").resolve())
    create_workspace(work, images, ["anterior", "posterior"], ReaderOptions(), objects=False)

    def accept(chosen, *keys):
        (work / "correct").mkdir(exist_ok=True)
        for name in chosen:
            file = f"{name}.nii.gz"
            (work / "correct" / file).write_bytes((data / "labelsTr" / file).read_bytes())
        engine("accept", f"workspace={work}", f"names=[{','.join(chosen)}]", *keys)

    held_out, left = names[:2], names[2:]
    accept(held_out, "held_out=true")
    chosen = left[:1]
    for _ in range(3):
        accept(chosen)
        engine("retrain", f"workspace={work}", *SMALL, "data.intensity=mri", "data.slice_step=4")
        engine("rank", f"workspace={work}", "device=cpu")
        engine("propose", f"workspace={work}", "top=1", "device=cpu")
        chosen = [index_of(work)["ranking"][0]["image"]]
    check_rounds(work, set(held_out), 3)
    second, third = index_of(work)["rounds"][1:]
    assert len(third["masks"]) == len(second["masks"]) + 1
    for one in index_of(work)["accepted"]:
        kept = nib.load(work / one["file"])
        truth = nib.load(data / "labelsTr" / f"{one['image']}.nii.gz")
        assert np.array_equal(kept.dataobj, truth.dataobj)
        assert np.allclose(kept.affine, truth.affine)
        # The first mask was drawn by hand; the others correct a proposal.
        assert (one["changes"] is None) == (one["image"] in (*held_out, left[0]))
