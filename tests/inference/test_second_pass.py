"""A prediction with a second pass: what the base model refines, and what is refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from samadapt.errors import PromptError
from samadapt.evaluation import second_pass as module
from samadapt.evaluation.second_pass import SecondPass
from samadapt.inference.segmenter import Segmenter, load_adapter
from samadapt.sam.decode import semantic_labels, semantic_logits
from samadapt.sam.embed import embed
from samadapt.sam.mean_prediction import MeanLogits


@pytest.fixture
def any_answer(monkeypatch):
    """Take every answer: a random base agrees with nobody."""
    monkeypatch.setattr(module, "AGREEMENT", 0.0)


def labels_by_hand(segmenter, image, refined=True):
    """What the passes of one or several adapters and the base say about a picture."""
    mean = MeanLogits(exclusive=True)
    for member in segmenter._members:
        (logits,) = semantic_logits(member.sam, *embed(member.sam, [image]), 2)
        mean.add(logits[0, 0])
    if refined:
        SecondPass(segmenter._base).add_to(mean, image)
    return semantic_labels(mean.logits[None, None], 2)[0].numpy()


@pytest.mark.parametrize("widths", [[None], [8], [None, 8]])
def test_the_base_refines_the_mean_of_all_adapters(adapter, picture, any_answer, widths):
    members = [adapter(f"a{n}", n, width=width) for n, width in enumerate(widths)]
    segmenter = load_adapter(members, device="cpu")
    expected = labels_by_hand(segmenter, picture)
    found = segmenter.predict(picture, second_pass="base", uncertainty="mutual_information")
    assert len(np.unique(expected)) > 1
    assert (found.labels != expected).mean() < 2e-3
    assert (expected != labels_by_hand(segmenter, picture, refined=False)).mean() > 0.01
    assert found.mutual_information.max() > 0.01


def test_a_volume_is_refined_slice_by_slice(adapter, any_answer, tmp_path):
    segmenter = load_adapter(adapter("a", axis="axial"), device="cpu")
    values = np.random.default_rng(1).integers(0, 255, (41, 30, 2)).astype(np.int16)
    path = tmp_path / "v.nii"
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    plain, refined = (segmenter.segment(path, second_pass=one) for one in (None, "base"))
    assert refined.shape == plain.shape == values.shape
    assert all((plain[..., z] != refined[..., z]).any() for z in range(2))


def test_what_cannot_be_refined_is_refused(adapter, picture, make_oracle):
    with pytest.raises(PromptError, match="second_pass must be base, or left out; got 'self'"):
        load_adapter(adapter("a"), device="cpu").segment(picture, second_pass="self")
    boxed = load_adapter(adapter("b", kind="box"), device="cpu")
    with pytest.raises(PromptError, match=r"found without prompts, .* trained with box prompts"):
        boxed.segment(picture, boxes=[5, 4, 25, 20], labels="grey", second_pass="base")
    plain = make_oracle()
    without_base = Segmenter(plain.sam, plain.record)
    with pytest.raises(PromptError, match="prompts the base model, and none is known"):
        without_base.segment(np.zeros((45, 27), np.uint8), second_pass="base")
