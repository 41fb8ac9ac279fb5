"""Ground truth through reading, slicing, stitching and writing comes back as it was."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from scipy.spatial.transform import Rotation

SHAPE = (5, 9, 15)  # along right, anterior, superior: 45 is an odd multiple of each longer side
AXES = list(product(permutations(range(3)), product((1, -1), repeat=3)))
CODES = [(1, 1), (2, 1), (1, 0), (0, 1), (3, 4)]


def affine_of(spacing, oblique):
    turn = Rotation.from_euler("zyx", [17, -11, 8], degrees=True).as_matrix()
    turn = turn if oblique else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = -31.5, 12.25, 80
    return affine


@pytest.mark.parametrize("oblique", [False, True], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 1.3, 4.5)], ids=["even", "anisotropic"])
@pytest.mark.parametrize("number", range(48))
def test_every_orientation(make_oracle, tmp_path, number, spacing, oblique):
    order, flips = AXES[number]
    ornt = np.stack([order, flips], axis=1)
    truth = np.random.default_rng(number).integers(0, 4, SHAPE).astype(np.int16)
    labels = orientations.apply_orientation(truth, ornt)
    affine = affine_of(spacing, oblique) @ orientations.inv_ornt_aff(ornt, SHAPE)
    image = nib.Nifti1Image(labels * 85, affine)
    sform, qform = CODES[number % len(CODES)]
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    source, target = tmp_path / "image.nii", tmp_path / "labels.nii"
    nib.save(image, source)
    axis = ("auto", "sagittal", "coronal", "axial")[number % 4]
    segmenter = make_oracle(axis=axis)
    result = segmenter.predict_file(source, target)
    before, after = nib.load(source), nib.load(target)
    found = np.asarray(after.dataobj)
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)  # Dice 1.0
    assert np.array_equal(after.affine, before.affine)
    for form in ("sform", "qform"):
        old, old_code = getattr(before.header, f"get_{form}")(coded=True)
        new, new_code = getattr(after.header, f"get_{form}")(coded=True)
        assert old_code == new_code
        assert (old is None and new is None) or np.array_equal(old, new)
    assert after.header["qform_code"] == qform
    assert after.header["sform_code"] == sform
    assert result["voxels"] == {n: int((labels == k).sum()) for k, n in enumerate("abc", 1)}
    if number % 8 == 0:
        assert np.array_equal(segmenter.segment(source), labels)


def test_forms_that_disagree_are_both_kept(make_oracle, tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(labels * 85, affine_of((1, 2, 3), oblique=False))
    image.set_sform(affine_of((1, 2, 3), oblique=True), 2)
    image.set_qform(affine_of((1, 2, 3), oblique=False), 1)
    nib.save(image, tmp_path / "image.nii.gz")
    make_oracle().predict_file(tmp_path / "image.nii.gz", tmp_path / "out.nii.gz")
    after = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(np.asarray(after.dataobj), labels)
    for form in ("sform", "qform"):
        before = nib.load(tmp_path / "image.nii.gz").header
        assert np.array_equal(
            getattr(after.header, f"get_{form}")(), getattr(before, f"get_{form}")()
        )
