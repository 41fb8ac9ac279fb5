"""SAM 3's tracker for still images, compared with ``Sam3TrackerModel`` on random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from theirs import KINDS, check_equal, gradients, prompts_of, theirs_of
from torch import nn

from samadapt.errors import ConfigError
from samadapt.export.hf import transformers_model
from samadapt.sam.embed import to_pixels
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.sam2_mask_decoder import StableMask
from samadapt.sam.tracking import open_memory
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.sam3_names import sam3_to_hugging_face

Randomise = Callable[[nn.Module, int], nn.Module]


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_transformers(tiny_r_sam: Sam, kind: str, multimask: bool) -> None:
    model = transformers_model(tiny_r_sam).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    prompts = prompts_of(kind, 64, 32)
    found = tiny_r_sam(images, prompts, multimask=multimask)
    # The tiny model's random weights are large, and so are its intermediate values.
    check_equal(found, theirs_of(model, images, prompts, multimask=multimask), 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("side", [196, 336])
@torch.no_grad()
def test_real_widths_equal_transformers(randomise: Randomise, side: int) -> None:
    """All widths of SAM 3 in two of its 32 blocks, one of them global, with and without padding."""
    sam = build_sam(replace(BUILDS["sam3_tracker"], depth=2, global_blocks=(1,)), image_size=side)
    randomise(sam, 7)
    sam.eval()
    model = transformers_model(sam).eval()
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    embeddings = sam.encode(images)
    theirs = model.get_image_embeddings(images)
    for kind in KINDS:
        prompts = prompts_of(kind, side, 4 * side // 14)
        for multimask in (True, False):
            found = sam.decode(embeddings, prompts, multimask=multimask)
            expected = model(
                image_embeddings=theirs,
                input_points=prompts.points,
                input_labels=prompts.point_labels,
                input_boxes=prompts.boxes,
                input_masks=None if prompts.masks is None else prompts.masks[:, 0],
                multimask_output=multimask,
            )
            check_equal(found, expected)


def test_gradients_equal_transformers(tiny_r_sam: Sam) -> None:
    """In fp64, because in fp32 rounding alone is a larger part of a gradient."""
    sam = tiny_r_sam.double().requires_grad_(True)
    # transformers rotates in float32 whatever the type is, which leaves an error of about 1e-7.
    model = transformers_model(sam).double().train()
    for module in sam.modules():
        if isinstance(module, StableMask):
            module.train()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)).double()
    drawn = prompts_of("box and points", 64, 32)
    assert drawn.points is not None
    assert drawn.boxes is not None
    prompts = replace(drawn, points=drawn.points.double(), boxes=drawn.boxes.double())
    found = sam(images, prompts, multimask=True)
    expected = theirs_of(model, images, prompts, multimask=True)
    ours = gradients(dict(sam.named_parameters()), [found.logits, found.iou, found.object_score], 1)
    wanted = gradients(
        dict(model.named_parameters()),
        [expected.pred_masks, expected.iou_scores, expected.object_score_logits],
        1,
    )
    zeros = {k: torch.zeros_like(v) for k, v in sam.state_dict().items()}
    renamed = sam3_to_hugging_face(zeros | ours, model.state_dict())
    assert len(wanted) > 100
    largest = max(float(other.abs().max()) for other in wanted.values())
    for name, other in wanted.items():
        # The bias of keys has no effect: both gradients are rounding.
        scale = largest if name.endswith("k_proj.bias") else float(other.abs().max())
        apart = float((renamed[name].view_as(other) - other).abs().max())
        assert apart <= 1e-4 * scale, name


def test_preprocessing_has_a_mean_of_its_own(tiny_r_sam: Sam) -> None:
    image = np.arange(40 * 64 * 3, dtype=np.uint8).reshape(40, 64, 3) % 251
    full = np.full((64, 64, 3), 255, np.uint8)
    assert to_pixels(tiny_r_sam, [image]).shape == (1, 3, 64, 64)  # squashed
    assert torch.equal(to_pixels(tiny_r_sam, [full]), torch.ones(1, 3, 64, 64))


def test_it_has_no_memory(tiny_r_sam: Sam) -> None:
    with pytest.raises(ConfigError, match="of SAM 3 is not supported, so tiny_r has none"):
        open_memory(tiny_r_sam)
