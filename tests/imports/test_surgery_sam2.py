"""micro-sam's version 2 on SAM 2, with its wrappers written here from their description."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from samadapt.adapters.base_model import open_adapter
from samadapt.errors import AdapterError, WeightsError
from samadapt.imports import import_adapter
from samadapt.sam.types import Prompts
from samadapt.sam.weights.sam2_names import published_sam2_key

RANK, HIDDEN = 2, 5


class Wrapper(nn.Module):
    """A wrapper whose added linears are called by their published names."""

    def add(self, name, inputs, outputs, generator, *, bias=False):
        linear = nn.Linear(inputs, outputs, bias=bias)
        for parameter in linear.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        self.add_module(name, linear)


class LoraOfQkv(Wrapper):
    """q, k, v + w_b w_a x for the named parts."""

    def __init__(self, qkv, generator, parts="qv"):
        super().__init__()
        self.qkv_proj, self.parts = qkv, parts
        for part in parts:
            self.add(f"w_a_linear_{part}", qkv.in_features, RANK, generator)
            self.add(f"w_b_linear_{part}", RANK, qkv.out_features // 3, generator)

    def forward(self, x):
        thirds = list(self.qkv_proj(x).chunk(3, dim=-1))
        for part in self.parts:
            low = self.get_submodule(f"w_a_linear_{part}")(x)
            thirds["qkv".index(part)] = thirds["qkv".index(part)] + self.get_submodule(
                f"w_b_linear_{part}"
            )(low)
        return torch.cat(thirds, dim=-1)


class LoraOfMlp(Wrapper):
    """lin2(gelu(lin1 x + w_b_1 w_a_1 x)) and the same for lin2."""

    def __init__(self, mlp, generator):
        super().__init__()
        self.mlp_layer = mlp
        for i, linear in (("1", mlp.lin1), ("2", mlp.lin2)):
            self.add(f"w_a_linear_{i}", linear.in_features, RANK, generator)
            self.add(f"w_b_linear_{i}", RANK, linear.out_features, generator)

    def forward(self, x):
        x = self.mlp_layer.lin1(x) + self.w_b_linear_1(self.w_a_linear_1(x))
        x = nn.functional.gelu(x)
        return self.mlp_layer.lin2(x) + self.w_b_linear_2(self.w_a_linear_2(x))


class Factors(Wrapper):
    """q and v + FacTv FacTs FacTu x, without the dropout of training."""

    def __init__(self, qkv, generator):
        super().__init__()
        self.qkv_proj = qkv
        self.add("FacTu", qkv.in_features, RANK, generator)
        self.add("FacTv", RANK, qkv.out_features // 3, generator)
        for part in "qv":
            self.add(f"{part}_FacTs", RANK, RANK, generator)

    def forward(self, x):
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        low = self.FacTu(x)
        return torch.cat(
            [q + self.FacTv(self.q_FacTs(low)), k, v + self.FacTv(self.v_FacTs(low))], dim=-1
        )


class ScaledAndShifted(nn.Module):
    """scale * layer(x) + shift for each channel of the output."""

    def __init__(self, layer, generator):
        super().__init__()
        self.layer, width = layer, len(layer.weight)
        self.out_features = width  # our MLP asks its first linear for it
        self.scale = nn.Parameter(1 + 0.2 * torch.randn(width, generator=generator))
        self.shift = nn.Parameter(0.2 * torch.randn(width, generator=generator))

    def forward(self, x):
        out = self.layer(x)
        shape = (-1, 1, 1) if isinstance(self.layer, nn.Conv2d) else (-1,)
        return out * self.scale.view(shape) + self.shift.view(shape)


class Beside(Wrapper):
    """mlp(x) + alpha up(relu(down x))."""

    def __init__(self, mlp, generator, *, learned=True):
        super().__init__()
        self.mlp_proj = mlp
        width = mlp.lin1.in_features
        self.add("down_proj", width, HIDDEN, generator, bias=True)
        self.add("up_proj", HIDDEN, width, generator, bias=True)
        self.alpha = nn.Parameter(torch.tensor([0.7])) if learned else 1.0

    def forward(self, x):
        return self.mlp_proj(x) + self.alpha * self.up_proj(self.down_proj(x).relu())


def lora(sam, generator):
    for block in sam.image_encoder.trunk.blocks:
        block.attn.qkv = LoraOfQkv(block.attn.qkv, generator)


def lora_of_all(sam, generator):
    for block in sam.image_encoder.trunk.blocks[1:]:
        block.attn.qkv = LoraOfQkv(block.attn.qkv, generator, "qkv")
        block.mlp = LoraOfMlp(block.mlp, generator)


def fact(sam, generator):
    for block in sam.image_encoder.trunk.blocks:
        block.attn.qkv = Factors(block.attn.qkv, generator)


def ssf(sam, generator):
    trunk = sam.image_encoder.trunk
    trunk.patch_embed.proj = ScaledAndShifted(trunk.patch_embed.proj, generator)
    for block in trunk.blocks:
        for host, name in (
            (block, "norm1"),
            (block, "norm2"),
            (block.attn, "qkv"),
            (block.attn, "proj"),
            (block.mlp, "lin1"),
            (block.mlp, "lin2"),
        ):
            setattr(host, name, ScaledAndShifted(getattr(host, name), generator))


def adaptformer(sam, generator):
    for block in sam.image_encoder.trunk.blocks[2:]:
        block.mlp = Beside(block.mlp, generator)


def adaptformer_of_fixed_alpha(sam, generator):
    for block in sam.image_encoder.trunk.blocks:
        block.mlp = Beside(block.mlp, generator, learned=False)


SURGERIES = {
    "lora": (lora, "lora", False),
    "lora of all": (lora_of_all, "lora", True),
    "fact": (fact, "lora", False),
    "ssf": (ssf, "decoder", True),
    "adaptformer": (adaptformer, "adaptformer", False),
    "fixed alpha": (adaptformer_of_fixed_alpha, "adaptformer", False),
}


def state_of(sam):
    """Return the state dict that the trained model has, under sam2's names."""
    names = {
        key: published_sam2_key(key).replace("mlp_layer.lin1.", "mlp_layer.layers.0.")
        for key in sam.state_dict()
    }
    names = {
        key: name.replace("mlp_layer.lin2.", "mlp_layer.layers.1.")
        .replace("mlp_proj.lin1.", "mlp_proj.layers.0.")
        .replace("mlp_proj.lin2.", "mlp_proj.layers.1.")
        for key, name in names.items()
    }
    return {names[key]: value.clone() for key, value in sam.state_dict().items()} | sam.memory


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A random SAM 2 with its memory, and what an import is called with."""
    from samadapt.sam.weights.loading import load_sam

    monkeypatch.chdir(tmp_path)
    sam = load_sam("tiny_h")
    torch.save({"model": state_of(sam)}, tmp_path / "base.pt")
    return sam, {"model": "tiny_h", "checkpoint": tmp_path / "base.pt"}


def adapted(sam, surgery, seed=1):
    peer = copy.deepcopy(sam)
    surgery(peer, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        peer.mask_decoder.iou_token.weight.add_(0.3)
    return peer.eval()


@torch.no_grad()
def logits(sam):
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])
    return sam(images, Prompts(boxes=boxes), multimask=True).logits


@pytest.mark.parametrize("name", SURGERIES)
def test_every_method(base, tmp_path, name):
    sam, given = base
    surgery, method, changes_base = SURGERIES[name]
    peer = adapted(sam, surgery)
    saved = {"model": state_of(peer), "model_type": "hvit_t", "peft_kwargs": {"rank": RANK}}
    torch.save(saved, tmp_path / "finetuned.pt")
    done = import_adapter(tmp_path / "finetuned.pt", tmp_path / "out", **given)
    assert (done.source, done.method.name, done.method.decoder) == ("micro-sam v2", method, "full")
    assert (tmp_path / "out" / "base.safetensors").exists() is changes_base
    assert any("at 1024 pixels; this adapter runs at 64" in note for note in done.notes)
    assert any("alpha" in note for note in done.notes) is (name == "fixed alpha")
    found, wanted = logits(open_adapter(tmp_path / "out").sam), logits(peer)
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-4 * scale
    assert (logits(sam) - wanted).abs().max() > 1e-2 * scale  # the surgery changes something


def test_a_trained_memory_goes_into_the_copy_of_the_base(base, tmp_path):
    sam, given = base
    peer = adapted(sam, lora)
    peer.memory = {key: value + 0.5 for key, value in sam.memory.items()}
    state = {f"module.{key}": value for key, value in state_of(peer).items()}
    torch.save({"model_state": state, "epoch": 3}, tmp_path / "best.pt")
    done = import_adapter(tmp_path / "best.pt", tmp_path / "out", **given)
    assert any("160 weights of the memory" in note for note in done.notes)
    found = open_adapter(tmp_path / "out").sam.memory
    assert found.keys() == peer.memory.keys()
    assert all(torch.equal(found[key], value) for key, value in peer.memory.items())


def test_scale_multiplies_an_update_and_nothing_else(base, tmp_path):
    sam, given = base
    torch.save(state_of(adapted(sam, lora)), tmp_path / "lora.pt")
    import_adapter(tmp_path / "lora.pt", tmp_path / "half", scale=0.5, **given)
    peer = adapted(sam, lora)
    for block in peer.image_encoder.trunk.blocks:
        for part in "qv":
            block.attn.qkv.get_submodule(f"w_b_linear_{part}").weight.data *= 0.5
    wanted = logits(peer)
    found = logits(open_adapter(tmp_path / "half").sam)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    torch.save(state_of(adapted(sam, ssf)), tmp_path / "ssf.pt")
    with pytest.raises(AdapterError, match=r"ssf\.pt: scale=0\.5: only LoRA and FacT"):
        import_adapter(tmp_path / "ssf.pt", tmp_path / "out", scale=0.5, **given)


BLOCK = "image_encoder.trunk.blocks.1."
FAULTS = {
    "half a pair": (lora, f"{BLOCK}attn.qkv.w_b_linear_q.weight", None, "q has no B"),
    "half of FacT": (fact, f"{BLOCK}attn.qkv.FacTv.weight", None, "has no FacTv"),
    "no shift": (ssf, f"{BLOCK}norm1.shift", None, "a scale and a shift of this layer"),
    "half a bottleneck": (
        adaptformer_of_fixed_alpha,
        f"{BLOCK}mlp.up_proj.bias",
        None,
        "has no up_proj.bias",
    ),
    "another width": (
        adaptformer_of_fixed_alpha,
        f"{BLOCK}mlp.up_proj.bias",
        torch.ones(3),
        "must be for 16 channels",
    ),
    "no decoder": (lora, "sam_mask_decoder.iou_token.weight", None, "iou_token.weight is missing"),
    "half a memory": (lora, "no_obj_ptr", None, "no_obj_ptr is missing"),
    "quantized": (lora, f"{BLOCK}attn.proj.weight.absmax", torch.ones(3), "in 4 bits"),
    "unknown": (lora, f"{BLOCK}attn.more", torch.ones(3), "is neither a weight of tiny_h nor"),
    "rows": (lora, f"{BLOCK}attn.qkv.w_b_linear_q.weight", torch.ones(9, RANK), "of 16 rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_refused(base, tmp_path, fault):
    sam, given = base
    surgery, key, value, message = FAULTS[fault]
    state = state_of(adapted(sam, surgery))
    state.pop(key, None)
    if value is not None:
        state[key] = value
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(AdapterError, match=rf"best\.pt: .*{message}"):
        import_adapter(tmp_path / "best.pt", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_of_the_trainer_is_refused(base, tmp_path):
    """It pickles data sets beside the model, which only their own code could read."""
    sam, given = base
    saved = {"model_state": state_of(adapted(sam, lora)), "init": {"data": logging.Formatter()}}
    torch.save(saved, tmp_path / "best.pt")
    with pytest.raises(WeightsError, match=r"best\.pt .*Save only the .*; found: logging\.Formatt"):
        import_adapter(tmp_path / "best.pt", tmp_path / "out", **given)


def test_a_model_of_another_build_is_refused(base, tmp_path):
    torch.save(state_of(adapted(base[0], lora)), tmp_path / "best.pt")
    with pytest.raises(AdapterError, match=r"best\.pt: image_encoder\.trunk.* of tiny nor"):
        import_adapter(tmp_path / "best.pt", tmp_path / "out", model="tiny")
