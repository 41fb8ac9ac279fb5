"""Keys of ``data`` that a format does not read are refused, not passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samadapt.data import check_dataset
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
