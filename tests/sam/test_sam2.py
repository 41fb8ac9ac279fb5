"""SAM 2 for still images, compared with transformers' ``Sam2Model`` on random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from theirs import KINDS, check_equal, gradients, prompts_of, theirs_of
from torch import nn

from samadapt.export.hf import transformers_model
from samadapt.sam.decode import class_logits
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.sam2_mask_decoder import Sam2MaskDecoder, StableMask
from samadapt.sam.types import Frame, MaskOutput, Prompts

Randomise = Callable[[nn.Module, int], nn.Module]


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_transformers(tiny_h_sam: Sam, kind: str, multimask: bool) -> None:
    model = transformers_model(tiny_h_sam).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    prompts = prompts_of(kind, 64, 16)
    found = tiny_h_sam(images, prompts, multimask=multimask)
    # The tiny model's random weights are large, and so are its intermediate values.
    check_equal(found, theirs_of(model, images, prompts, multimask=multimask), 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("name", ["sam2_t", "sam2_s", "sam2_b+", "sam2_l"])
@torch.no_grad()
def test_every_size_equals_transformers(randomise: Randomise, name: str, side: int) -> None:
    sam = build_sam(name, image_size=side)
    randomise(sam, 7)
    sam.eval()
    model = transformers_model(sam).eval()
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    embeddings = sam.encode(images)
    theirs = model.get_image_embeddings(images)
    for kind in KINDS:
        prompts = prompts_of(kind, side, side // 4)
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


def check_gradients(sam: Sam, side: int) -> None:
    """Compare in fp64: in fp32 rounding alone is up to 4e-3 of a gradient with random weights."""
    from samadapt.sam.weights.sam2_names import to_hugging_face

    sam, model = (
        sam.double(),
        transformers_model(sam).double().train(),
    )  # no choice of a stable mask, as in our training
    for module in sam.modules():
        if isinstance(module, StableMask):
            module.train()
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5)).double()
    drawn = prompts_of("box and points", side, side // 4)
    assert drawn.points is not None
    assert drawn.boxes is not None
    prompts = replace(drawn, points=drawn.points.double(), boxes=drawn.boxes.double())
    for multimask in (True, False):
        found = sam(images, prompts, multimask=multimask)
        expected = theirs_of(model, images, prompts, multimask=multimask)
        ours = gradients(
            dict(sam.named_parameters()), [found.logits, found.iou, found.object_score], 1
        )
        wanted = gradients(
            dict(model.named_parameters()),
            [expected.pred_masks, expected.iou_scores, expected.object_score_logits],
            1,
        )
        zeros = {k: torch.zeros_like(v) for k, v in sam.state_dict().items()}
        renamed = to_hugging_face(zeros | ours, model.state_dict())
        assert len(wanted) > 100
        largest = max(float(other.abs().max()) for other in wanted.values())
        for name, other in wanted.items():
            scale = float(other.abs().max())
            apart = float((renamed[name].view_as(other) - other).abs().max())
            if name.endswith("k_proj.bias"):  # it has no effect: both are rounding
                scale = largest
            assert apart <= 1e-5 * scale, name


def test_gradients_equal_transformers(tiny_h_sam: Sam) -> None:
    check_gradients(tiny_h_sam, 64)


@pytest.mark.slow
def test_gradients_of_a_real_size_equal_transformers(randomise: Randomise) -> None:
    sam = build_sam("sam2_t", image_size=256)
    randomise(sam, 9)
    check_gradients(sam.eval(), 256)


@torch.no_grad()
def test_objects_of_several_images_do_not_touch(tiny_h_sam: Sam) -> None:
    """A batch of images with several objects each equals one object of one image at a time."""
    images = torch.randn(3, 3, 64, 64)
    boxes = 64 * torch.rand(3, 2, 2, 2).sort(dim=2).values.flatten(2)
    embeddings = tiny_h_sam.encode(images)
    together = tiny_h_sam.decode(embeddings, Prompts(boxes=boxes), multimask=True)
    for i in range(3):
        for j in range(2):
            alone = tiny_h_sam.decode(
                embeddings[i : i + 1], Prompts(boxes=boxes[i : i + 1, j : j + 1]), multimask=True
            )
            for name in ("logits", "iou", "object_score"):
                both, one = getattr(together, name)[i, j], getattr(alone, name)[0, 0]
                torch.testing.assert_close(both, one, atol=1e-4, rtol=1e-4)


def test_an_unstable_single_mask_is_replaced_outside_of_training() -> None:
    logits = torch.full((1, 2, 4, 8, 8), 5.0)
    logits[0, 1, 0] = 0.01  # object 1: a mask that the smaller threshold would lose
    logits[0, :, 1:] *= torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    iou = torch.tensor([[[0.2, 0.3, 0.9, 0.4], [0.2, 0.3, 0.4, 0.9]]])
    chooser = StableMask().eval()
    found = chooser(MaskOutput(logits, iou))
    assert found.iou.tolist() == [[[iou[0, 0, 0].item()], [iou[0, 1, 3].item()]]]
    assert torch.equal(found.logits[0, 1, 0], logits[0, 1, 3])
    kept = chooser.train()(MaskOutput(logits, iou))
    assert torch.equal(kept.logits, logits[:, :, :1])


@torch.no_grad()
def test_the_background_and_classes_take_their_own_tokens(tiny_h_sam: Sam) -> None:
    """Where tokens are classes, none takes another's place, however unstable its mask is."""
    decoder = tiny_h_sam.mask_decoder
    assert isinstance(decoder, Sam2MaskDecoder)
    embeddings = tiny_h_sam.encode(torch.randn(2, 3, 64, 64))
    decoder.stable_mask.LEAST = 2.0  # nothing is stable
    chosen = tiny_h_sam.decode(embeddings, Prompts(), multimask=False).logits
    plain = class_logits(tiny_h_sam, embeddings, 3)
    background = plain - class_logits(tiny_h_sam, embeddings, 3, background_token=True)
    decoder.stable_mask.train()
    first = tiny_h_sam.decode(embeddings, Prompts(), multimask=False).logits
    torch.testing.assert_close(background[:, :, :1], first, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(chosen, first)
    decoder.stable_mask.eval()
    tiny_h_sam.resize_mask_tokens(5)
    assert not decoder.chooses_stable_mask
    torch.testing.assert_close(
        tiny_h_sam.decode(embeddings, Prompts(), multimask=False).logits,
        tiny_h_sam.decode_background(embeddings),
    )


@torch.no_grad()
def test_masks_are_resized_in_one_step(tiny_h_sam: Sam) -> None:
    logits = torch.randn(2, 3, 1, 16, 16)
    found = tiny_h_sam.postprocess(logits, Frame((40, 90), (64, 64), 64))
    expected = nn.functional.interpolate(logits.flatten(0, 1), (40, 90), mode="bilinear")
    assert torch.equal(found.flatten(0, 1), expected)


def test_preprocessing_is_that_of_imagenet(tiny_h_sam: Sam) -> None:
    """Squashed, divided by 255, and normalised by the mean and deviation of ImageNet."""
    import numpy as np

    from samadapt.sam.embed import to_pixels

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = to_pixels(tiny_h_sam, [image])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = torch.tensor((image / 255 - mean) / std).permute(2, 0, 1).float()
    torch.testing.assert_close(pixels[0], expected, atol=1e-5, rtol=1e-5)
    assert to_pixels(tiny_h_sam, [image[:20]]).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5])
@torch.no_grad()
def test_masks_above_an_iou_are_those_of_decode(
    tiny_h_sam: Sam, multimask: bool, share: float
) -> None:
    """As automatic masks draw them."""
    points = 64 * torch.rand(1, 6, 1, 2, generator=torch.Generator().manual_seed(2))
    prompts = Prompts(points=points, point_labels=torch.ones(1, 6, 1, dtype=torch.int64))
    embeddings = tiny_h_sam.encode(torch.randn(1, 3, 64, 64))
    output = tiny_h_sam.decode(embeddings, prompts, multimask=multimask)
    least = float(output.iou.quantile(share)) if share else 0.0
    sparse, dense = tiny_h_sam.prompt_encoder(prompts, 1)
    position = tiny_h_sam.prompt_encoder.dense_position()
    parts = tiny_h_sam.mask_decoder.decode_above(
        embeddings, position, sparse, dense, least, multimask=multimask
    )
    logits, iou, objects = (torch.cat(values) for values in zip(*parts, strict=True))
    good = output.iou[0] > least
    assert 0 < good.sum() < good.numel() or not share
    assert torch.equal(objects, good.nonzero()[:, 0])
    torch.testing.assert_close(iou, output.iou[0][good])
    torch.testing.assert_close(logits, output.logits[0][good], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_overfits_two_pictures_from_random_weights(tiny_h_sam: Sam) -> None:
    """LoRA in the encoder and the whole decoder learn two masks by heart."""
    from samadapt.adapters.injection import inject
    from samadapt.methods.lora import LoRA

    injection = inject(tiny_h_sam, LoRA(rank=8, targets=("qkv", "proj", "mlp")))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    truth = torch.zeros(2, 1, 1, 16, 16)
    truth[0, ..., 3:9, 4:13] = 1
    truth[1, ..., 8:15, 1:7] = 1
    boxes = torch.tensor([[[16.0, 12.0, 52.0, 36.0]], [[4.0, 32.0, 28.0, 60.0]]])
    optimizer = torch.optim.AdamW(injection.parameters.values(), lr=1e-3)
    injection.set_training(tiny_h_sam)
    for _ in range(200):
        logits = tiny_h_sam(images, Prompts(boxes=boxes), multimask=False).logits
        loss = nn.functional.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    injection.set_training(tiny_h_sam, False)
    with torch.no_grad():
        found = tiny_h_sam(images, Prompts(boxes=boxes), multimask=False).logits > 0
    overlap = (found & (truth > 0)).sum() / (found | (truth > 0)).sum()
    assert float(overlap) > 0.95
