"""What is saved loads with peft alone, onto our model and onto segment-anything's."""

import json

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from samadapt.sam.types import Prompts

CASES = {
    "lora": ("lora", {}),
    "qkv, last block, frozen decoder": (
        "lora",
        {"slices": ("q", "k", "v"), "blocks": "last:1", "decoder": "frozen", "alpha": 7.0},
    ),
    "k, decoder by LoRA of another rank": (
        "lora",
        {"slices": ("k",), "decoder": "lora", "decoder_rank": 3, "rank": 2, "alpha": 1.0},
    ),
    "decoder only": ("none", {"decoder": "full"}),
    "decoder by LoRA only": ("none", {"decoder": "lora"}),
}


@pytest.fixture(params=CASES)
def trained(request, adapted):
    name, options = CASES[request.param]
    sam, _, directory = adapted(name, **options)
    return sam, directory


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 64, 64)


BOXES = torch.tensor([[4.0, 6.0, 40.0, 50.0]])


def _ours(sam, images):
    boxes = BOXES.expand(2, 1, 4)
    with torch.no_grad():
        return sam.decode(sam.encode(images), Prompts(boxes=boxes), multimask=True)


def _theirs(sam, images):
    """segment-anything decodes one image at a time."""
    with torch.no_grad():
        embeddings = sam.image_encoder(images)
        sparse, dense = sam.prompt_encoder(points=None, boxes=BOXES, masks=None)
        decoded = [
            sam.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            for embedding in embeddings
        ]
    return torch.stack([masks for masks, _ in decoded]), torch.stack([iou for _, iou in decoded])


def _check_equal(found, expected):
    """Within 1e-5 of the largest value: fp32 sums in another order."""
    atol = 1e-5 * max(1, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def _by_injection(sam, directory):
    config = LoraConfig(**{
        key: value
        for key, value in json.loads((directory / "adapter_config.json").read_bytes()).items()
        if key in LoraConfig.__dataclass_fields__
    })  # fmt: skip
    inject_adapter_in_model(config, sam)
    # names as seen from PeftModel; without it, peft finds modules_to_save only by the bare ones
    stored = load_file(directory / "adapter_model.safetensors")
    bare = {key.removeprefix("base_model.model."): value for key, value in stored.items()}
    outcome = set_peft_model_state_dict(sam, bare)
    assert not outcome.unexpected_keys
    return sam.eval()


def _by_peft_model(sam, directory):
    return PeftModel.from_pretrained(sam, str(directory)).eval()


@pytest.mark.parametrize("load", [_by_injection, _by_peft_model])
def test_equal_on_our_model(trained, fresh, images, load):
    sam, directory = trained
    expected, before = _ours(sam, images), _ours(fresh(), images)
    found = _ours(load(fresh(), directory), images)
    assert (expected.logits - before.logits).abs().max() > 1e-3
    _check_equal(found.logits, expected.logits)
    _check_equal(found.iou, expected.iou)


@pytest.mark.parametrize("fresh", ["tiny_sam", "tiny_t_sam"], indirect=True)
@pytest.mark.parametrize("load", [_by_injection, _by_peft_model])
def test_equal_on_segment_anythings(trained, fresh, images, load, as_segment_anything):
    sam, directory = trained
    expected = _ours(sam, images)
    logits, iou = _theirs(load(as_segment_anything(fresh()), directory), images)
    _check_equal(logits, expected.logits)
    _check_equal(iou, expected.iou)


def test_peft_writes_the_same_file(trained, fresh, tmp_path):
    _, directory = trained
    loaded = _by_peft_model(fresh(), directory)
    loaded.peft_config["default"].base_model_name_or_path = None  # else peft asks the Hub for it
    loaded.save_pretrained(str(tmp_path / "again"))
    ours = load_file(directory / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize("name", ["adapter", "full"])
def test_peft_refuses_what_it_does_not_know(adapted, fresh, name):
    directory = adapted(name)[2]
    with pytest.raises((KeyError, ValueError), match=f"SAMADAPT_{name.upper()}"):
        PeftModel.from_pretrained(fresh(), str(directory))
    with pytest.raises((KeyError, ValueError), match=f"SAMADAPT_{name.upper()}"):
        PeftConfig.from_pretrained(str(directory))
