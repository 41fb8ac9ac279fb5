"""Keys of ``data`` that a format does not read are refused, not passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from samadapt.data import check_dataset, open_dataset
from samadapt.errors import ConfigError


@pytest.mark.parametrize("name", ["folder", "labelme", "yolo", "sa1b", "medsam_npz"])
@pytest.mark.parametrize("key", ["image", "label"])
def test_files_that_a_format_finds_itself_are_not_named(
    tmp_path: Path, name: str, key: str
) -> None:
    named: Any = {key: "instances/*"}
    with pytest.raises(ConfigError, match=rf"data\.{key}: data={name} finds its files by itself"):
        check_dataset(name, tmp_path, **named)


def test_coco_has_no_image_pattern(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image: data=coco"):
        check_dataset("coco", tmp_path, image="*.jpg")


def test_the_template_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    """Without this, ``recipe=medical data.root=MINE`` would train on the template."""
    with pytest.raises(ConfigError, match=r"data\.root: .* Name the format of your data"):
        check_dataset("mni152", tmp_path)


@pytest.mark.parametrize(
    ("lowest", "kind"),
    [
        ([-1000, -1000, -1000], "window"),
        ([-200, -180, -1000], "window"),  # crops inside a body, where there is no air
        ([0, 0, 0], "percentile"),
        ([-3, -5, -2], "percentile"),  # standardised
        ([0, 0, -900], "percentile"),  # most volumes decide
    ],
)
def test_values_tell_ct_from_mri_where_nothing_else_does(
    tmp_path: Path, lowest: list[int], kind: str
) -> None:
    for index, low in enumerate(lowest):
        labels = np.zeros((12, 12, 3), np.uint8)
        labels[2:8, 3:9] = 1
        image = np.linspace(low, 300 + index, labels.size).reshape(labels.shape).astype(np.int16)
        for folder, array in (("images", image), ("labels", labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / folder / f"c{index}.nii.gz")
    assert open_dataset("nifti", tmp_path, intensity="auto").intensity.kind == kind
    with pytest.raises(ConfigError, match="or auto to let the values decide"):
        open_dataset("nifti", tmp_path)


def test_what_a_data_set_declares_comes_before_its_values(
    make_scans: Any, make_pictures: Any
) -> None:
    assert open_dataset("nifti", make_scans(5), intensity="auto").intensity.kind == "percentile"
    assert open_dataset("folder", make_pictures(5), intensity="auto").intensity.kind == "rgb"
