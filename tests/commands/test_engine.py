"""``samadapt engine`` through the command line's own entry."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from samadapt.cli import main
from samadapt.commands.engine import STAGES
from samadapt.config.engine_arguments import AutomaticArguments
from samadapt.inference.mask_options import MaskOptions
from samadapt.sam.model import build_sam

LOOSE = ["points_per_side=5", "min_iou=0", "min_stability=0", "relative_iou=0", "nms=1"]
"""Thresholds that some masks of a random model pass."""

# pycocotools' own decoder is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def engine(*arguments):
    return main(["engine", *map(str, arguments)])


def test_a_stage_must_be_named(capsys):
    assert engine() == 2
    assert "expected a stage" in capsys.readouterr().err
    assert engine("automatc", "input=x") == 2
    assert "did you mean 'automatic'" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_explains_its_keys(stage, capsys):
    assert engine(stage, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"samadapt engine {stage} [key=value ...]")
    assert "workspace=" in out or "input=" in out


def test_automatic_has_the_settings_of_the_paper(pictures, tmp_path, capsys):
    asked = AutomaticArguments(input="in", output="out", model="tiny")
    options = MaskOptions(**{item.name: getattr(asked, item.name) for item in fields(MaskOptions)})
    assert [len(grid) for grid in options.generator(build_sam("tiny")).point_grids] == [
        32**2,
        16**2,
        8**2,
    ]
    target = tmp_path / "found"
    keys = [f"input={pictures}", f"output={target}", "points_per_side=4", "crop_layers=0"]
    assert engine("automatic", "model=tiny", "device=cpu", *keys, "--json") == 0
    assert [row["masks"] for row in json.loads(capsys.readouterr().out)["files"]] == [0, 0]
    settings = (target / "masks_settings.yaml").read_text(encoding="utf-8")
    for line in (
        "min_iou: 0.88",
        "min_stability: 0.95",
        "nms: 0.7",
        "crop_points_factor: 2",
        "min_area: 100",
        "min_mask_area: 100",
        "max_mask_share: 0.95",
        "base_sha256: ",
    ):
        assert line in settings
    assert sorted(path.name for path in target.iterdir()) == [
        "a.json",
        "b.json",
        "masks_settings.yaml",
    ]


def test_automatic_drops_small_and_whole_masks(pictures, tmp_path, capsys):
    """A random model draws masks of all sizes; the keys decide which remain."""
    loose = ["points_per_side=6", "crop_layers=0", "min_iou=0", "min_stability=0", "nms=1"]

    def areas(name, *keys):
        target = tmp_path / name
        head = ["model=tiny", f"input={pictures}", f"output={target}", "device=cpu", *loose]
        assert engine("automatic", *head, *keys) == 0
        capsys.readouterr()
        content = json.loads((target / "a.json").read_text(encoding="utf-8"))
        found = [coco_mask.decode(one["segmentation"]) for one in content["annotations"]]
        return sorted(int(mask.sum()) for mask in found)

    everything = areas("all", "min_area=0", "min_mask_area=0", "max_mask_share=1")
    low, high = everything[len(everything) // 4] + 1, everything[-1]
    assert everything[0] < low < high
    share = (high - 0.5) / (20 * 30)
    kept = areas("kept", "min_area=0", f"min_mask_area={low}", f"max_mask_share={share}")
    assert kept == [area for area in everything if low <= area < high]


@pytest.fixture
def semantic(adapter_at, tmp_path):
    return adapter_at(tmp_path / "semantic", "semantic", classes=["cell"])


def said(capsys, *arguments, code=0):
    capsys.readouterr()
    assert engine(*arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def workspace(semantic, pictures, tmp_path, capsys):
    """A workspace with a proposal of a semantic adapter for each of two pictures."""
    root = tmp_path / "work"
    keys = [f"workspace={root}", f"input={pictures}", f"adapter={semantic}", "device=cpu"]
    result = said(capsys, "propose", *keys)
    assert (result["how"], [row["image"] for row in result["images"]]) == ("semantic", ["a", "b"])
    return root


def index_of(root):
    return json.loads((root / "index.json").read_text(encoding="utf-8"))


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture)


def correct(root, name):
    """Paint a square, as a person would."""
    path = root / "correct" / f"{name}.png"
    mask = pixels(path)
    mask[2:8, 3:9] = 1 - mask[2:8, 3:9]
    Image.fromarray(mask).save(path)
    return mask


def test_a_proposal_is_kept_and_knows_its_adapter(workspace, semantic, capsys):
    first, second = index_of(workspace)["proposals"]
    assert [first["image"], second["image"]] == ["a", "b"]
    assert (workspace / first["file"]).read_bytes() == (workspace / "correct/a.png").read_bytes()
    (maker,) = index_of(workspace)["makers"]
    assert maker["adapters"] == [str(semantic)]
    record = json.loads((semantic / "samadapt.json").read_text(encoding="utf-8"))
    assert maker["adapter_sha256"] == [record["weights_sha256"]]
    assert maker["base_sha256"] == record["base_sha256"]
    again = said(capsys, "propose", f"workspace={workspace}", f"adapter={semantic}", "device=cpu")
    assert again["images"] == []  # the same model has nothing new to say


def test_several_adapters_rank_but_do_not_draw_without_prompts(
    adapter_at, pictures, tmp_path, capsys
):
    root = tmp_path / "work"
    folders = [adapter_at(tmp_path / name, "box", classes=["cell"]) for name in ("one", "two")]
    both = f"adapter=[{folders[0]},{folders[1]}]"
    keys = [f"workspace={root}", "device=cpu", *LOOSE]
    assert said(capsys, "propose", *keys, f"input={pictures}", f"adapter={folders[0]}")["images"]
    ranking = said(capsys, "rank", *keys, both)["ranking"]
    # The two were not trained, so they agree in every mask.
    assert [one["values"]["disagreement"] for one in ranking] == pytest.approx([0, 0], abs=1e-6)
    (first, _) = said(capsys, "rank", *keys, f"adapter={folders[0]}")["ranking"]
    assert first["values"]["disagreement"] is None
    assert engine("propose", *keys, both) == 2
    assert "drawn by one model, and 2 adapters were given" in capsys.readouterr().err


def test_a_copy_that_somebody_changed_is_not_replaced(workspace, semantic, capsys):
    drawn = correct(workspace, "a")
    keys = [f"workspace={workspace}", f"adapter={semantic}", "device=cpu", "tta=flip"]
    rows = {row["image"]: row for row in said(capsys, "propose", *keys)["images"]}
    assert rows["a"]["correct"] is None
    assert rows["b"]["correct"] is not None
    assert np.array_equal(pixels(workspace / "correct/a.png"), drawn)
    assert len(list((workspace / "proposals").glob("*/a.png"))) == 2


def test_accepted_masks_have_versions_and_say_what_was_changed(workspace, capsys):
    before = pixels(workspace / "correct/a.png")
    first = correct(workspace, "a")
    keys = [f"workspace={workspace}", "names=[a]", "by=anna"]
    result = said(capsys, "accept", *keys)
    (row,) = result["images"]
    assert (row["version"], result["training"], result["unlabelled"]) == (1, 1, 1)
    assert row["changes"]["pixels"] == pytest.approx(36 / 600)
    assert row["changes"]["dice"] == pytest.approx(
        2 * (before & first).sum() / (before.sum() + first.sum())
    )
    assert said(capsys, "accept", *keys)["images"] == [{"image": "a", "version": 1, "same": True}]
    first[10:15, 10:15] = 1
    Image.fromarray(first).save(workspace / "correct/a.png")
    assert said(capsys, "accept", *keys)["images"][0]["version"] == 2
    files = sorted((workspace / "accepted/a").iterdir())
    assert [path.name for path in files] == ["0001.png", "0002.png"]
    assert np.array_equal(pixels(files[1]), first)
    assert not np.array_equal(pixels(files[0]), first)
    old, new = index_of(workspace)["accepted"]
    assert (old["by"], old["maker"], new["call"]) == ("anna", index_of(workspace)["makers"][0], 1)


def test_held_out_images_never_train_and_training_images_are_never_held_out(
    workspace, pictures, capsys
):
    assert said(capsys, "accept", f"workspace={workspace}", "names=[a]")["training"] == 1
    keys = [f"workspace={workspace}", "names=[b]"]
    assert said(capsys, "accept", *keys, "held_out=true")["held_out"] == 1
    correct(workspace, "b")
    (row,) = said(capsys, "accept", *keys, code=1)["images"]
    assert "b is held out: it measures the rounds and never trains" in row["error"]
    correct(workspace, "a")
    held = [f"workspace={workspace}", "names=[a]", "held_out=true"]
    (row,) = said(capsys, "accept", *held, code=1)["images"]
    assert "a is accepted for training, so it cannot be held out" in row["error"]
    # A copy under another name is the same image.
    Image.open(pictures / "b.png").save(pictures / "copy.png")
    Image.fromarray(pixels(workspace / "correct/b.png")).save(workspace / "correct/copy.png")
    (row,) = said(capsys, "accept", f"workspace={workspace}", "names=[copy]", code=1)["images"]
    assert "copy (the same image as b) is held out" in row["error"]


def test_coco_and_labelme_come_back(workspace, pictures, tmp_path, capsys):
    drawn = np.zeros((20, 30), np.uint8)
    drawn[4:12, 5:20] = 1
    outline = [[5, 4, 20, 4, 20, 12, 5, 12]]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": outline}],
    }
    (tmp_path / "a.json").write_text(json.dumps(coco), encoding="utf-8")
    shape = {"label": "cell", "shape_type": "rectangle", "points": [[5, 4], [20, 12]]}
    note = {"imagePath": "../b.png", "imageHeight": 20, "imageWidth": 30, "shapes": [shape]}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/b.json").write_text(json.dumps(note), encoding="utf-8")
    for source in ("a.json", "notes"):
        keys = [f"workspace={workspace}", f"input={tmp_path / source}"]
        (row,) = said(capsys, "accept", *keys)["images"]
        assert np.array_equal(pixels(row["file"]), drawn)
    coco["categories"][0]["name"] = "cel"
    (tmp_path / "a.json").write_text(json.dumps(coco), encoding="utf-8")
    assert engine("accept", f"workspace={workspace}", f"input={tmp_path / 'a.json'}") == 2
    assert "no class 'cel'; it has cell" in capsys.readouterr().err


def test_values_of_a_tool_are_named(workspace, tmp_path, capsys):
    (tmp_path / "tool").mkdir()
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(tmp_path / "tool/a_mask.png")
    keys = [f"workspace={workspace}", f"input={tmp_path / 'tool'}"]
    (row,) = said(capsys, "accept", *keys, code=1)["images"]
    assert "the values 255 are no class" in row["error"]
    (row,) = said(capsys, "accept", *keys, "classes={cell: 255}")["images"]
    assert np.array_equal(pixels(row["file"]), mask // 255)


def test_ranking_says_why_and_propose_follows_it(workspace, semantic, pictures, capsys):
    Image.open(pictures / "a.png").save(pictures / "again.png")  # shows nothing new
    keys = [f"workspace={workspace}", f"adapter={semantic}", "device=cpu"]
    assert said(capsys, "accept", f"workspace={workspace}", "names=[a]")["training"] == 1
    ranking = said(capsys, "rank", *keys, "diversity=1", "tta=flip")["ranking"]
    assert [one["image"] for one in ranking] == ["b", "again"]
    assert "unlike what is labelled" in ranking[0]["reason"]
    assert ranking[1]["values"]["novelty"] == pytest.approx(0, abs=1e-6)
    assert 0 <= ranking[0]["values"]["disagreement"] <= 1
    lines = (workspace / "ranking.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("place,image,score,predicted_iou,stability,disagreement,novelty")
    assert [line.split(",")[1] for line in lines[1:]] == ["b", "again"]
    rows = said(capsys, "propose", *keys, "top=1", "tta=flip")["images"]
    assert [row["image"] for row in rows] == ["b"]


def test_prompts_and_everything_found_are_proposed_too(pictures, tmp_path, capsys):
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("a: {boxes: [[3, 3, 15, 15]]}\n", encoding="utf-8")
    keys = [f"input={pictures}", "model=tiny", "device=cpu", *LOOSE]
    named = said(capsys, "propose", f"workspace={tmp_path / 'w'}", *keys, f"prompts={prompts}")
    assert (named["how"], [row["image"] for row in named["images"]]) == ("prompts", ["a"])
    root = tmp_path / "everything"
    found = said(capsys, "propose", f"workspace={root}", *keys)
    assert found["how"] == "automatic"
    assert index_of(root)["objects"] is True
    assert pixels(found["images"][0]["proposal"]).max() > 1
    ranking = said(capsys, "rank", f"workspace={root}", *keys[1:], "tta=flip")["ranking"]
    assert {one["image"] for one in ranking} == {"a", "b"}
    assert all(0 < one["values"]["disagreement"] <= 1 for one in ranking)
    changed = [f"workspace={root}", "names=[a]"]
    assert said(capsys, "accept", *changed)["images"][0]["changes"]["pixels"] == 0


@pytest.mark.parametrize(
    ("stage", "keys", "message"),
    [
        ("propose", ["workspace=new"], "input: new is a new workspace"),
        ("propose", ["workspace={root}", "input=elsewhere", "model=tiny"], "input: this workspace"),
        ("propose", ["workspace={root}", "names=[c]", "model=tiny"], "no image 'c'"),
        ("propose", ["workspace={root}"], "there is no round yet"),
        ("propose", ["workspace={root}", "top=2", "model=tiny"], "masks without prompts number"),
        ("propose", ["model=tiny"], "workspace: this key is required"),
        ("rank", ["workspace=new"], "there is no workspace here"),
        ("accept", ["workspace={root}"], "expected input=PATH, or names=[a,b]"),
        ("accept", ["workspace={root}", "input=nowhere"], "no such file or folder"),
    ],
)
def test_mistakes_are_named(stage, keys, message, workspace, capsys):
    assert engine(stage, *(key.format(root=workspace) for key in keys)) == 2
    assert message in capsys.readouterr().err


def test_a_workspace_begins_with_masks_drawn_by_hand(pictures, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(tmp_path / "masks/a.png")
    keys = [f"workspace={tmp_path / 'new'}", f"input={tmp_path / 'masks'}", f"images={pictures}"]
    assert engine("accept", *keys) == 2
    assert "needs the names of its classes" in capsys.readouterr().err
    result = said(capsys, "accept", *keys, "classes={cell: 255}")
    assert (result["training"], result["unlabelled"]) == (1, 1)
    (row,) = result["images"]
    assert row["changes"] is None
    assert np.array_equal(pixels(row["file"]), mask // 255)
    assert index_of(tmp_path / "new")["classes"] == ["cell"]
    assert engine("accept", *keys, "classes={cell: 255}") == 2
    assert "is there already; leave them out" in capsys.readouterr().err
    boxes = tmp_path / "boxes.yaml"
    boxes.write_text("b: {boxes: [[3, 3, 15, 15]]}\n", encoding="utf-8")
    more = [keys[0], "model=tiny", "device=cpu", f"prompts={boxes}"]
    assert [row["image"] for row in said(capsys, "propose", *more)["images"]] == ["b"]


def test_an_original_that_was_edited_is_noticed(workspace, capsys):
    path = workspace / index_of(workspace)["proposals"][0]["file"]
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    (row,) = said(capsys, "accept", f"workspace={workspace}", "names=[a]", code=1)["images"]
    assert "was changed or removed after it was written" in row["error"]
    assert index_of(workspace)["accepted"] == []
