"""A box and clicks in volumes: which volumes can be scored, and how objects share voxels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samadapt.data.types import Sample, SliceRef
from samadapt.errors import DataError
from samadapt.inference.spool import Spool
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.oracle_gap import untrained
from samadapt.runs.volume_clicks import _Volume
from samadapt.sam.types import MaskOutput, Preprocessing

SIDE, DEPTH = 12, 6


class Careless:
    """Sees the classes, but overlooks a column of each object that is not clicked on."""

    device, dense_head, preprocessing = torch.device("cpu"), None, Preprocessing()
    image_size, embedding_size, mask_threshold = SIDE, SIDE // 4, 0.0

    def decode(self, embeddings, prompts, *, multimask):
        plane, clicked = embeddings[0, 0], prompts.points is not None
        if clicked:
            assert prompts.masks is not None  # the previous logits come back
            column, row = prompts.points[0, 0, -1].int().tolist()
        else:
            column, row = ((prompts.boxes[0, 0, :2] + prompts.boxes[0, 0, 2:]) / 2).int().tolist()
        found = plane == plane[row, column]
        if not clicked:
            found[:, 5] = False
        logits = torch.where(found, 1.0, -1.0)[None, None, None]
        return MaskOutput(logits, torch.ones(logits.shape[:3]))

    def postprocess(self, logits, frame):
        return logits


@pytest.fixture
def volume():
    """Two classes on some slices each, a model, and the slices that it has embedded."""
    labels = np.zeros((SIDE, SIDE, DEPTH), np.int16)
    labels[1:6, 1:6, 1:5] = 1
    labels[7:10, 4:9, 2:4] = 2
    image, embedded = np.zeros((SIDE, SIDE, 3), np.uint8), []

    def embed(samples):
        embedded.extend(sample.index for sample in samples)
        return torch.stack([torch.from_numpy(one.labels)[None].float() for one in samples])

    data = SimpleNamespace(
        classes=("one", "two"),
        sample=lambda ref: Sample(ref.case, ref.index, image, labels[..., ref.index]),
        case=lambda name: SimpleNamespace(spacing_mm=(1.0, 1.0, 1.0)),
    )
    predictor = SimpleNamespace(
        sam=Careless(), embed=embed, policy=PromptPolicy("box"), classes=2, independent=False,
        batch_size=2,
    )  # fmt: skip
    return SimpleNamespace(context=SimpleNamespace(dataset=data)), predictor, embedded


def test_each_click_mends_a_slice_and_every_slice_is_embedded_once(volume):
    scorer, predictor, embedded = volume
    refs = [SliceRef("a", index) for index in range(DEPTH)]
    with Spool() as spool:
        answers = list(_Volume(scorer, predictor, refs, spool, by_memory=False).answers())
    voxels = [[row.intersection for row in rows] for rows in answers]
    # A column of 5 voxels is missing on 4 slices, and one of 3 voxels on 2 slices.
    assert voxels == [[80, 24], [85, 27], [90, 30], [95, 30], [100, 30], [100, 30]]
    assert [row.prediction_voxels for row in answers[-1]] == [100, 30]
    assert set(answers[0][0].values) == {"dice", "nsd"}
    assert sorted(embedded) == [1, 2, 3, 4]


def test_a_volume_with_missing_slices_is_refused(volume):
    scorer, predictor, _ = volume
    refs = [SliceRef("a", 0), SliceRef("a", 2)]
    message = r"'a'.*2 of the slices 0 to 2 are scored"
    with Spool() as spool, pytest.raises(DataError, match=message):
        _Volume(scorer, predictor, refs, spool, by_memory=False)


def test_the_base_model_gives_one_mask_to_a_box():
    assert untrained(PromptPolicy("interactive")) == PromptPolicy("box")
    assert untrained(PromptPolicy("point")) == PromptPolicy("point")
