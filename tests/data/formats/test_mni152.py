"""The MNI152 template is that of nilearn, and its labels follow from the two tissue maps."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import check_dataset, open_dataset
from samadapt.data.formats.mni152 import tissue_labels
from samadapt.errors import MissingExtraError


def test_mni152() -> None:
    pytest.importorskip("nilearn")
    dataset = open_dataset("mni152")
    assert dataset.classes == ["grey_matter", "white_matter"]
    assert dataset.axis == "axial"
    assert "One averaged brain" in dataset.note
    train, val = dataset.slices("train"), dataset.slices("val")
    gap = min(abs(a.index - b.index) for a in train for b in val)
    assert gap > 5
    assert len(val) == 30
    assert len(train) > 100
    assert dataset.presence("mni152")[[ref.index for ref in val]].all()
    labels = dataset.volume_labels("mni152")
    assert labels.shape == (233, 197, 189)
    assert [int((labels == value).sum()) for value in (1, 2)] == [1079599, 632004]
    sample = dataset.sample(val[0])
    grey, white = (sample.image[:, :, 0][sample.labels == value].mean() for value in (1, 2))
    assert 60 < grey < white < 250
    assert not check_dataset("mni152")


def test_mni152_is_what_nilearn_gives() -> None:
    pytest.importorskip("nilearn")
    template = nib.load(open_dataset("mni152").cases[0].image)
    datasets = pytest.importorskip("nilearn.datasets")
    ours = np.asarray(template.dataobj).astype(np.float32)
    theirs = datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    np.testing.assert_allclose(ours / ours.max(), theirs, atol=1e-6)


def test_tissue_rule() -> None:
    grey = np.array([0.6, 0.5, 0.6, 0.4, 0.9])
    white = np.array([0.3, 0.5, 0.7, 0.3, 0.9])
    assert tissue_labels(grey, white).tolist() == [1, 0, 2, 0, 1]


def test_without_nilearn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samadapt.data.formats.mni152.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"nilearn.*samadapt\[demo\]"):
        open_dataset("mni152")
