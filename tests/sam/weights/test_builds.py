"""The numbers of the builds against what the papers and files give."""

from __future__ import annotations

import pytest
import torch

from samadapt.sam.model import build_sam
from samadapt.sam.weights.builds import BUILDS, TEST_BUILDS, fitting_image_size

# Parameters of the official models, as segment-anything's registry builds them.
PARAMETERS = {"vit_b": 93_735_472, "vit_l": 312_342_832, "vit_h": 641_090_608}


@pytest.mark.parametrize("name", BUILDS)
def test_every_build_can_be_built(name: str) -> None:
    with torch.device("meta"):
        sam = build_sam(name)
    build = BUILDS[name]
    assert build.name == name
    # The first stage of TinyViT has no attention.
    stages = build.stage_depths[1:] if build.encoder == "tiny_vit" else build.stage_depths
    depth = build.depth if build.encoder in ("vit", "rope_vit") else sum(stages)
    assert len(sam.attention_blocks()) == depth
    kinds = [index for index, site in enumerate(sam.attention_blocks()) if site.kind == "global"]
    assert tuple(kinds) == build.global_blocks


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_names_and_shapes(name: str) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        ours, theirs = build_sam(name), sam_model_registry[name]()
    shapes = [{k: v.shape for k, v in sam.state_dict().items()} for sam in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(TEST_BUILDS))
def test_test_builds_are_small(name: str) -> None:
    assert sum(p.numel() for p in build_sam(name).parameters()) < 500_000


def test_medical_builds_record_their_preprocessing() -> None:
    assert BUILDS["medsam"].preprocessing.resize == "squash"
    assert BUILDS["lite_medsam"].preprocessing.resize == "longest"
    for name in ("medsam", "lite_medsam"):
        assert BUILDS[name].preprocessing.normalization == "min_max"
    assert BUILDS["vit_b"].preprocessing.normalization == "mean_std"


@pytest.mark.parametrize(
    ("name", "longest", "side"),
    [
        ("lite_medsam", 50, 84),
        ("lite_medsam", 84, 84),
        ("lite_medsam", 85, 168),
        ("lite_medsam", 4000, 168),
        ("vit_t", 300, 336),
        ("vit_b", 257, 512),
        ("sam2_t", 200, 256),
        ("sam2_t", 4000, 512),
        ("sam3_tracker", 300, 336),
        ("sam3_tracker", 4000, 672),
        ("tiny", 500, 64),
    ],
)
def test_the_side_that_fits_the_pictures(name, longest, side):
    assert fitting_image_size(name, longest) == side


@pytest.mark.parametrize("name", ["tiny", "tiny_t", "tiny_h", "tiny_r"])
def test_a_build_knows_its_number_of_blocks(name):
    assert BUILDS[name].blocks == len(build_sam(name).attention_blocks())
