"""PeftModel puts the export onto segment-anything's and transformers' models, without samadapt."""

from __future__ import annotations

import json

import pytest
import torch

from samadapt.errors import AdapterError, ConfigError
from samadapt.export import export_adapter
from samadapt.export.hf import configuration, names
from samadapt.export.peft import Peft
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import load_sam

BOX = [4.0, 6.0, 40.0, 50.0]


def transformers_base(sam):
    from transformers import SamModel

    model = SamModel(configuration(sam))
    state = sam.state_dict()
    model.load_state_dict({theirs: state[ours] for theirs, ours in names(model).items()})
    return model


@pytest.mark.parametrize("decoder", ["full", "lora", "frozen"])
def test_peft_puts_it_onto_transformers_own_model(tiny_sam, save, tmp_path, decoder):
    from peft import PeftModel

    directory, sam = save(tiny_sam, decoder=decoder, slices=("q", "k"), blocks="last:3")
    done = export_adapter(directory, Peft("transformers"), tmp_path / "out")
    assert done.difference.logits < 1e-5 * max(1, done.difference.largest)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert "vision_encoder.layers.1.attn.qkv" in config["target_modules"]
    assert (config["modules_to_save"] == ["mask_decoder"]) is (decoder == "full")
    model = PeftModel.from_pretrained(transformers_base(tiny_sam), tmp_path / "out").eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[BOX]])
    with torch.no_grad():
        found = model(pixel_values=images, input_boxes=boxes).pred_masks
        wanted = sam.decode(sam.encode(images), Prompts(boxes=boxes), multimask=True).logits
        plain = tiny_sam.decode(tiny_sam.encode(images), Prompts(boxes=boxes), multimask=True)
    assert (found - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())
    assert (plain.logits - wanted).abs().max() > 0.1


@pytest.mark.parametrize("base", ["tiny_sam", "tiny_t_sam"])
def test_our_own_names(base, save, tmp_path, request):
    directory, _ = save(request.getfixturevalue(base))
    done = export_adapter(directory, Peft(), tmp_path / "out")
    assert done.difference.logits < 1e-5 * max(1, done.difference.largest)
    assert "samadapt.json" not in done.files
    assert "PeftModel.from_pretrained(sam" in (tmp_path / "out" / "README.md").read_text(
        encoding="utf-8"
    )


def test_the_card_gives_the_published_decoder_the_epsilon_of_segment_anything(
    tiny_sam, save, tmp_path
):
    from transformers import SamConfig, SamModel

    directory, _ = save(tiny_sam)
    export_adapter(directory, Peft("transformers"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert (
        'from_pretrained("PATH/OF/THE/BASE", mask_decoder_config={"layer_norm_eps": 1e-5})' in card
    )
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_dim": 16}
    published = SamModel(SamConfig(vision_config={**vision, "image_size": 64}))
    assert published.config.mask_decoder_config.layer_norm_eps == 1e-6
    published.save_pretrained(tmp_path / "base")
    model = SamModel.from_pretrained(
        tmp_path / "base", mask_decoder_config={"layer_norm_eps": 1e-5}
    )
    norms = [
        m for m in model.mask_decoder.transformer.modules() if isinstance(m, torch.nn.LayerNorm)
    ]
    assert {norm.eps for norm in norms} == {1e-5}
    assert model.state_dict().keys() == published.state_dict().keys()


def test_what_peft_cannot_hold_names_its_targets(tiny_sam, tiny_t_sam, save, tmp_path):
    for base, target, message, options in (
        (tiny_sam, Peft(), r"5 mask outputs.*exported to hf, onnx, sam, web$", {"masks": 5}),
        (
            tiny_sam,
            Peft(),
            r"adapter is no kind of peft's.*exported to onnx, web$",
            {"method": "adapter"},
        ),
        (
            tiny_sam,
            Peft(),
            r"loha with decoder=lora is two kinds of peft's.*exported to hf, onnx, sam, web$",
            {"method": "loha", "decoder": "lora"},
        ),
        (tiny_t_sam, Peft("transformers"), r"no TinyViT.*exported to onnx, peft, sam, web$", {}),
    ):
        directory, _ = save(base, **options)
        with pytest.raises(AdapterError, match=message):
            export_adapter(directory, target, tmp_path / "out")
    with pytest.raises(ConfigError, match="did you mean 'transformers'"):
        Peft("transformer")


LINEARS = {"targets": ("qkv", "proj", "mlp")}
EVERY = {
    "lora": {**LINEARS, "rslora": True, "decoder": "lora"},
    "dora": LINEARS,
    "pissa": {**LINEARS, "blocks": "last:2"},
    "adalora": {"decoder": "own"},
    "loha": LINEARS,
    "lokr": {"factor": 4},
    "ia3": {"decoder": "own"},
    "vera": LINEARS,
    "layernorm": {},
    "hra": {"options": {"r": 4}, "decoder": "frozen"},
    "pvera": {},
    "randlora": {},
    "fourierft": {},
}
"""Those of ``tests/methods/test_peft_kinds.py``, and more that share tensors between modules."""


FAST = ("vera",)


@pytest.mark.filterwarnings("ignore:Unsupported layer type.*LayerNorm:UserWarning")
@pytest.mark.parametrize(
    "method",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in EVERY],
)
def test_every_kind_under_transformers_names(method, tiny_sam, save, tmp_path):
    directory, _ = save(tiny_sam, method, **EVERY[method])
    done = export_adapter(directory, Peft("transformers"), tmp_path / "out")
    assert done.difference.logits < 1e-5 * max(1, done.difference.largest)


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["sam", "transformers"])
def test_vit_b(randomise, save, tmp_path, naming):
    from samadapt.sam.model import build_sam

    directory, _ = save(randomise(build_sam("vit_b"), 0).eval(), scale=0.01)
    done = export_adapter(directory, Peft(naming), tmp_path / "out")
    assert done.difference.logits < 1e-5 * max(1, done.difference.largest)


@pytest.mark.slow
def test_lite_medsam(save, tmp_path):
    directory, _ = save(load_sam("lite_medsam"), scale=0.01)
    done = export_adapter(directory, Peft(), tmp_path / "out")
    assert done.difference.logits < 1e-5 * max(1, done.difference.largest)
