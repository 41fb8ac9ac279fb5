"""What each of peft's kinds does, and that peft alone loads what is saved of it."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from samadapt.adapters.combining import method_from_dict
from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.methods import METHODS
from samadapt.methods.base import UNFIT
from samadapt.sam.types import Prompts

LINEARS = {"targets": ("qkv", "proj", "mlp")}
KINDS = {
    "lora": ("LORA", {**LINEARS, "rslora": True, "decoder": "lora"}),
    "dora": ("LORA", LINEARS),
    "pissa": ("LORA", {**LINEARS, "blocks": "last:2"}),
    "adalora": ("ADALORA", {"decoder": "own"}),
    "loha": ("LOHA", LINEARS),
    "lokr": ("LOKR", {"factor": 4}),
    "ia3": ("IA3", {"decoder": "own"}),
    "vera": ("VERA", LINEARS),
    "layernorm": ("LN_TUNING", {}),
    "hra": ("HRA", {"options": {"r": 4}, "decoder": "frozen"}),
}
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type.*LayerNorm:UserWarning")
BOX = torch.tensor([[4.0, 6.0, 40.0, 50.0]])


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(1, 3, 64, 64)


@pytest.fixture(params=KINDS)
def saved(request, adapted):
    kind, options = KINDS[request.param]
    sam, _, directory = adapted(request.param, **options)
    return kind, sam, directory


@torch.no_grad()
def _masks(sam, image):
    return sam.decode(sam.encode(image), Prompts(boxes=BOX[None]), multimask=True).logits[0, 0]


@torch.no_grad()
def _their_masks(sam, image):
    sparse, dense = sam.prompt_encoder(points=None, boxes=BOX, masks=None)
    masks, _ = sam.mask_decoder(
        image_embeddings=sam.image_encoder(image),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return masks[0]


@pytest.mark.parametrize("fresh", ["tiny_sam", "tiny_t_sam"], indirect=True)
def test_peft_loads_it_onto_both_models(saved, fresh, image, as_segment_anything):
    kind, sam, directory = saved
    assert (
        json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
        == kind
    )
    expected, before = _masks(sam, image), _masks(fresh(), image)
    assert (expected - before).abs().max() > 1e-3
    atol = 1e-5 * max(1, float(expected.abs().max()))
    ours = PeftModel.from_pretrained(fresh(), str(directory)).eval()
    torch.testing.assert_close(_masks(ours, image), expected, atol=atol, rtol=0)
    theirs = PeftModel.from_pretrained(as_segment_anything(fresh()), str(directory)).eval()
    torch.testing.assert_close(_their_masks(theirs, image), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
def test_peft_writes_the_same_file(saved, fresh, tmp_path):
    directory = saved[2]
    loaded = PeftModel.from_pretrained(fresh(), str(directory))
    loaded.peft_config["default"].base_model_name_or_path = None  # else peft asks the Hub for it
    loaded.save_pretrained(str(tmp_path / "again"))
    ours = load_file(directory / "adapter_model.safetensors")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize("rank", [2, 3])
def test_rslora_divides_by_the_root_of_the_rank(tiny_sam, perturb, rank):
    perturb(inject(tiny_sam, METHODS["lora"](rank=rank, alpha=6, rslora=True, **LINEARS)))
    site = tiny_sam.attention_blocks()[0]
    for name, width in ((site.qkv, site.width), (site.proj, site.width)):
        layer = tiny_sam.get_submodule(name)
        x = torch.randn(5, width)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = 6 / rank**0.5 * x @ a.T @ b.T
        torch.testing.assert_close(layer(x) - layer.base_layer(x), expected, atol=1e-5, rtol=1e-4)


def test_targets_are_the_linears_that_are_named(fresh):
    sam = fresh()
    inject(sam, METHODS["lora"](targets=("mlp",), blocks="last:1"))
    adapted = {name for name, module in sam.named_modules() if hasattr(module, "lora_A")}
    mlp = sam.attention_blocks()[-1].mlp
    assert len(adapted) == 2
    assert all(name.startswith(f"{mlp}.") for name in adapted)


def test_pissa_is_the_papers_arithmetic(tiny_sam, perturb):
    plain = {name: p.clone() for name, p in tiny_sam.state_dict().items()}
    perturb(inject(tiny_sam, METHODS["pissa"](rank=3, alpha=6, decoder="frozen")))
    site = tiny_sam.attention_blocks()[0]
    layer, weight = tiny_sam.get_submodule(site.qkv), plain[f"{site.qkv}.weight"]
    assert torch.equal(layer.base_layer.weight, weight)
    u, values, v = torch.linalg.svd(weight)
    residual = weight - u[:, :3] @ torch.diag(values[:3]) @ v[:3]
    a, b = layer.lora_A["default"].trained, layer.lora_B["default"].trained
    x = torch.randn(4, site.width)
    expected = x @ (residual + 2 * b @ a).T + plain[f"{site.qkv}.bias"]
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_adalora_prunes_to_its_budget(tiny_sam, predict):
    method = METHODS["adalora"](rank=2, first_rank=4, decoder="frozen", hold=0.0, settle=0.5)
    injection = inject(tiny_sam, method)
    optimizer = torch.optim.AdamW(injection.parameters.values(), lr=1e-2)
    counts = []
    for step in range(6):
        (predict(tiny_sam).square().mean() + method.penalty(tiny_sam)).backward()
        optimizer.step()
        method.after_step(tiny_sam, step + 1, 6)
        optimizer.zero_grad()
        values = [p for name, p in injection.parameters.items() if ".lora_E." in name]
        counts.append(sum(int(p.count_nonzero()) for p in values))
    assert counts[0] > counts[-1]
    assert counts[2:] == [2 * len(values)] * 4


def test_adaloras_penalty_is_zero_where_rows_are_orthonormal(tiny_sam):
    method = METHODS["adalora"](orthogonality=2.0, decoder="frozen")
    injection = inject(tiny_sam, method)
    assert method.penalty(tiny_sam) > 1
    with torch.no_grad():
        for name, parameter in injection.parameters.items():
            if ".lora_E." not in name:
                torch.nn.init.orthogonal_(parameter)
    assert method.penalty(tiny_sam) < 1e-4


def test_vera_stores_its_random_pair(adapted):
    directory = adapted("vera", rank=8, decoder="frozen")[2]
    stored = load_file(directory / "adapter_model.safetensors")
    assert stored["base_model.vera_A"].shape[0] == 8


def test_the_norm_of_a_padded_token_is_the_tuned_one(tiny_t_sam):
    injection = inject(tiny_t_sam, METHODS["layernorm"](decoder="frozen"))
    before = tiny_t_sam.encode(torch.zeros(1, 3, 64, 64))
    with torch.no_grad():
        for name, parameter in injection.parameters.items():
            if name.endswith("attn.norm.ln_tuning_layers.default.bias"):
                parameter.add_(0.3)
    tuned = tiny_t_sam.encode(torch.zeros(1, 3, 64, 64))
    assert (tuned - before).abs().max() > 1e-2
    for module in [m for m in tiny_t_sam.modules() if hasattr(m, "ln_tuning_layers")]:
        module.merge()
    torch.testing.assert_close(tiny_t_sam.encode(torch.zeros(1, 3, 64, 64)), tuned)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"targets": ("qkw",)}, r"peft\.targets.*got 'qkw'.*did you mean 'qkv'"),
        ("dora", {"targets": ()}, r"peft\.targets"),
        ("loha", {"targets": ("mlp", "mlp")}, r"peft\.targets"),
        ("lora", {"rslora": 3}, r"peft\.rslora"),
        ("pissa", {"rank": 0}, r"peft\.rank.*got 0"),
        ("adalora", {"first_rank": 4}, r"peft\.first_rank must exceed peft\.rank 4"),
        ("adalora", {"hold": 0.8, "settle": 0.3}, r"peft\.hold"),
        ("lokr", {"factor": 0}, r"peft\.factor.*got 0"),
        ("vera", {"seed": -1}, r"peft\.seed.*got -1"),
        ("oft", {"block_size": 1}, r"peft\.block_size"),
        ("lora", {"blocks": "none", "decoder": "frozen"}, "trains nothing"),
        ("hra", {"options": {"target_modules": ["x"]}}, r"target_modules follows from"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        METHODS[name](**options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hra", {"options": {"rr": 4}}, r"rr is no option of peft's HRAConfig.*did you mean 'r'"),
        ("hra", {"options": {"r": "many"}}, r"peft refuses"),
        ("hra", {"options": {"init_weights": False}}, r"changes the output of image_encoder"),
        ("oft", {"block_size": 5}, r"peft\.block_size 5 does not divide the 32 inputs of"),
        ("pissa", {"rank": 99}, r"peft\.rank 99 exceeds"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tiny_sam, name, options, message):
    with pytest.raises(ConfigError, match=message):
        inject(tiny_sam, METHODS[name](**options))


@pytest.mark.parametrize("name", UNFIT)
def test_kinds_that_work_on_no_linear_are_refused_with_the_reason(name):
    with pytest.raises(ConfigError, match=f"peft={name}: it "):
        method_from_dict({"name": name})


def test_a_decoder_of_its_own_needs_no_encoder(fresh):
    sam = fresh()
    injection = inject(sam, METHODS["loha"](blocks="none", decoder="own"))
    assert set(injection.groups) == {"decoder"}
    assert injection.first_trainable_block == len(sam.attention_blocks()) + 1
