"""Objects carried through a volume by the memory of SAM 2."""

from __future__ import annotations

import copy

import nibabel as nib
import numpy as np
import pytest
import torch

from samadapt.errors import PromptError
from samadapt.sam.embed import embed, frame_of
from samadapt.sam.geometry import to_model_boxes
from samadapt.sam.tracking import Tracker, open_memory
from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import MemoryBank
from samadapt.sam.weights.loading import load_sam

DEPTH = 6
BOXES = {"a": [3, 4, 30, 25], "b": [12, 10, 38, 30]}


@pytest.fixture(scope="module")
def random_sam():
    """The random SAM 2 with a memory, which finds an object wherever it is asked for one."""
    sam = load_sam("tiny_h")
    sam.mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(50.0)
    return sam


@pytest.fixture
def sam(random_sam):
    return copy.deepcopy(random_sam)


@pytest.fixture
def volume(tmp_path):
    """The path of an axial volume, and its slices as pictures."""
    values = np.random.default_rng(0).integers(0, 256, (40, 32, DEPTH)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 3, 1])), tmp_path / "scan.nii")
    upright = values.transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.uint8)
    pictures = [np.ascontiguousarray(np.repeat(one[..., None], 3, axis=2)) for one in upright]
    return tmp_path / "scan.nii", pictures


def on_slices(labels):
    """The label map of a file as upright slices (d, h, w)."""
    return labels.transpose(2, 1, 0)[:, ::-1, ::-1]


@torch.no_grad()
def tracked(sam, pictures, box, prompted, way):
    """The masks of the slices ``way``, by the tracker alone, after prompts on other slices."""
    embeddings, frames = embed(sam, pictures)
    placed = torch.tensor(to_model_boxes(np.array([box], np.float32), frames[0]))[None]
    tracker = Tracker(sam, len(pictures))
    seeds = {
        index: tracker.prompted(
            embeddings[index][None], Prompts(boxes=placed.float()), multimask=False
        )
        for index in prompted
    }
    found = {index: one.logits for index, one in seeds.items()}
    bank = MemoryBank({index: one.memory for index, one in seeds.items()})
    for index in way:
        found[index] = tracker.tracked(embeddings[index][None], bank, index, way.step).logits
    frame = frame_of(sam, pictures[0])
    return {i: sam.postprocess(one[None], frame)[0, 0, 0] > 0 for i, one in found.items()}


def test_both_ways_start_from_the_prompt_alone(make_oracle, sam, volume):
    path, pictures = volume
    segmenter = make_oracle("box", classes=["x"], sam=sam)
    found = on_slices(
        segmenter.segment(path, boxes={2: [BOXES["a"]]}, propagate="memory", vanish=0.0)
    )
    up = tracked(sam, pictures, BOXES["a"], [2], range(3, DEPTH))
    down = tracked(sam, pictures, BOXES["a"], [2], range(1, -1, -1))
    for index, mask in (up | down).items():
        assert np.array_equal(found[index] > 0, mask.numpy())
    # The mask says something: the slices differ, and from what prompts alone would give.
    assert len({found[index].tobytes() for index in range(DEPTH)}) > 2
    other = on_slices(segmenter.segment(path, boxes={2: [BOXES["a"]]}, propagate=True, vanish=0.0))
    assert not np.array_equal(found, other)


def test_every_prompted_slice_is_remembered(make_oracle, sam, volume):
    path, pictures = volume
    boxes = {0: [BOXES["a"]], 2: [BOXES["a"]]}
    found = on_slices(
        make_oracle("box", classes=["x"], sam=sam).segment(
            path, boxes=boxes, propagate="memory", vanish=0.0
        )
    )
    masks = tracked(sam, pictures, BOXES["a"], [0, 2], range(3, DEPTH))
    assert all(np.array_equal(found[index] > 0, mask.numpy()) for index, mask in masks.items())


def test_objects_do_not_touch_and_no_slice_is_embedded_twice(make_oracle, sam, volume, monkeypatch):
    path, _ = volume
    segmenter = make_oracle("box", classes=["x", "y"], sam=sam, overlapping=True)
    alone = [
        segmenter.segment(path, boxes={at: [box]}, labels=name, propagate="memory", vanish=0.0)
        for name, at, box in (("x", 1, BOXES["a"]), ("y", 4, BOXES["b"]))
    ]
    seen = []
    encode = type(sam).encode
    monkeypatch.setattr(
        type(sam), "encode", lambda self, x, *rest: seen.append(len(x)) or encode(self, x, *rest)
    )
    together = segmenter.segment(
        path,
        boxes={1: [BOXES["a"]], 4: [None, BOXES["b"]]},
        labels=["x", "y"],
        propagate="memory",
        vanish=0.0,
    )
    assert sum(seen) == DEPTH
    assert np.array_equal(together, alone[0] | alone[1])


def test_an_object_ends_where_its_score_says_that_it_is_not_there(make_oracle, sam, volume):
    path, _ = volume
    segmenter = make_oracle("box", classes=["x"], sam=sam)
    sam.mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(-50.0)
    found = segmenter.segment(path, boxes={2: [BOXES["a"]]}, propagate="memory", vanish=0.0)
    assert not found.any()


def test_a_model_without_memory_refuses(make_oracle, tiny_sam, sam, volume):
    path, _ = volume
    given = {"boxes": {2: [BOXES["a"]]}, "propagate": "memory"}
    with pytest.raises(PromptError, match=r"tiny has none; only SAM 2 has\. propagate=true"):
        make_oracle("box", classes=["x"], sam=tiny_sam).segment(path, **given)
    with pytest.raises(PromptError, match="carry=mask says what prompts"):
        make_oracle("box", classes=["x"], sam=sam).segment(path, **given, carry="mask")
    with pytest.raises(PromptError, match="propagate must be true, false or memory; got 'yes'"):
        make_oracle("box", classes=["x"], sam=sam).segment(path, **given | {"propagate": "yes"})
    with pytest.raises(PromptError, match="propagate=memory carries objects through a volume"):
        make_oracle("box", classes=["x"], sam=sam).segment(
            np.zeros((40, 32), np.uint8), boxes=[BOXES["a"]], propagate="memory"
        )
    sam.memory = {}
    with pytest.raises(PromptError, match="tiny_h were loaded from a file without it; expected"):
        make_oracle("box", classes=["x"], sam=sam).segment(path, **given)
    with pytest.raises(Exception, match="propagate=memory needs the memory of SAM 2"):
        open_memory(sam)
