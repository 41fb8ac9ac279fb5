"""Files of SAM 3 under Meta's and transformers' names, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from samadapt.errors import WeightsError
from samadapt.export.hf import transformers_model
from samadapt.export.hf_sam3 import sam3_configuration
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.sam.weights.sam2_names import published_sam2_key
from samadapt.sam.weights.sam3_names import from_sam3


def published(sam: Sam) -> dict[str, Tensor]:
    """Meta's file: detector and tracker, one more position, and a fourth level of the neck."""
    file: dict[str, Tensor] = {}
    backbone = "detector.backbone.vision_backbone"
    for name, tensor in sam.state_dict().items():
        if name.endswith("trunk.pos_embed"):
            rows = tensor.flatten(1, 2)
            tensor = torch.cat([torch.randn_like(rows[:, :1]), rows], dim=1)
        if name.startswith("image_encoder.trunk."):
            theirs = name.replace("image_encoder.trunk", f"{backbone}.trunk")
            file[theirs.replace(".mlp.lin", ".mlp.fc")] = tensor
        elif name.startswith("image_encoder.neck.convs."):
            rest = name.removeprefix("image_encoder.neck.convs.")
            file[f"{backbone}.sam2_convs.{rest}"] = tensor
            file[f"{backbone}.convs.{rest}"] = torch.randn_like(tensor)
        else:
            file[f"tracker.{published_sam2_key(name)}"] = tensor
    file[f"{backbone}.trunk.blocks.0.attn.freqs_cis"] = torch.randn(9, 8, dtype=torch.complex64)
    file[f"{backbone}.sam2_convs.3.conv_1x1.bias"] = torch.randn(64)
    file["detector.backbone.language_backbone.encoder.ln_final.bias"] = torch.randn(8)
    file["tracker.maskmem_tpos_enc"] = torch.randn(7, 1, 1, 64)
    return file


def whole_of_transformers(sam: Sam) -> dict[str, Tensor]:
    """The names of ``Sam3VideoModel``, from those of ``Sam3TrackerModel``."""
    file: dict[str, Tensor] = {}
    for name, tensor in transformers_model(sam).state_dict().items():
        if name.startswith("vision_encoder.neck."):
            file[name.replace("vision_encoder.neck.", "tracker_neck.")] = tensor
            file[f"detector_model.{name}"] = torch.randn_like(tensor)
        elif name.startswith("vision_encoder."):
            file[f"detector_model.{name}"] = tensor
        else:
            file[f"tracker_model.{name}"] = tensor
    file["tracker_neck.fpn_layers.3.proj1.bias"] = torch.randn(64)
    file["detector_model.mask_decoder.instance_projection.bias"] = torch.randn(8)
    file["tracker_model.no_object_pointer"] = torch.randn(1, 64)
    return {name: tensor.clone() for name, tensor in file.items()}


def test_metas_file(tiny_r_sam: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model": published(tiny_r_sam)}, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        sam = load_sam(checkpoint=tmp_path / "weights.pt")
    assert (sam.build.name, base_hash(sam)) == ("tiny_r", base_hash(tiny_r_sam))
    neck = sum(name.startswith("image_encoder.neck.") for name in sam.state_dict())
    assert f"{neck + 4} tensors of SAM 3's detector, text encoder and memory" in caplog.text


def test_a_directory_of_the_tracker(tiny_r_sam: Sam, tmp_path: Path) -> None:
    folder = tmp_path / "tracker"
    transformers_model(tiny_r_sam).save_pretrained(folder)
    sam = load_sam("tiny_r", folder)
    assert base_hash(sam) == base_hash(tiny_r_sam)
    assert sam.memory == {}
    state = {name: tensor.clone() for name, tensor in sam.state_dict().items()}
    save_file(state, tmp_path / "own.safetensors")
    again = load_sam("tiny_r", tmp_path / "own.safetensors", 48)  # no tensor depends on the side
    assert base_hash(again) == base_hash(tiny_r_sam)


def test_a_directory_of_the_whole_model(tiny_r_sam: Sam, tmp_path: Path) -> None:
    tensors = whole_of_transformers(tiny_r_sam)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "sam3_video"}', encoding="utf-8")
    assert base_hash(load_sam(checkpoint=tmp_path)) == base_hash(tiny_r_sam)


def test_names_of_the_published_size() -> None:
    """Every tensor of transformers' trackers has its place, and every one of ours is there."""
    import transformers

    with torch.device("meta"):
        sam = build_sam("sam3_tracker")
        for kind in (transformers.Sam3TrackerModel, transformers.Sam3TrackerVideoModel):
            configuration = sam3_configuration(sam)
            if kind is transformers.Sam3TrackerVideoModel:
                configuration = transformers.Sam3TrackerVideoConfig(
                    vision_config=configuration.vision_config,
                    prompt_encoder_config=configuration.prompt_encoder_config,
                    mask_decoder_config=configuration.mask_decoder_config,
                )
            named, left = from_sam3(kind(configuration).state_dict())
            wanted = {name: tensor.shape for name, tensor in sam.state_dict().items()}
            assert {name: tensor.shape for name, tensor in named.items()} == wanted
            assert bool(left) is (kind is transformers.Sam3TrackerVideoModel)
    assert sum(parameter.numel() for parameter in sam.parameters()) // 10**5 == 4574


def test_the_detector_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam3"}', encoding="utf-8")
    with pytest.raises(WeightsError, match=r"SAM 3's detector with its text encoder, which samad"):
        load_sam(checkpoint=tmp_path)


def test_missing_and_unknown_tensors_are_named(tiny_r_sam: Sam, tmp_path: Path) -> None:
    theirs = transformers_model(tiny_r_sam).state_dict()
    tensors = {name: tensor.clone() for name, tensor in theirs.items()}
    (tmp_path / "config.json").write_text('{"model_type": "sam3_tracker"}', encoding="utf-8")
    key = "vision_encoder.backbone.layers.1.attention.k_proj.weight"
    more = {"vision_encoder.backbone.more": torch.ones(2), "shared_text.weight": torch.ones(2)}
    save_file({k: v for k, v in tensors.items() if k != key} | more, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_sam("tiny_r", tmp_path)
    for told in ("1 missing: image_encoder.trunk.blocks.1.attn.qkv.weight", "4 unexpected"):
        assert told in str(caught.value)
    for name in ("blocks.1.attn.q_proj.weight", "trunk.more", "shared_text.weight"):
        assert name in str(caught.value)


def test_another_model_is_refused_by_name(tiny_r_sam: Sam, tmp_path: Path) -> None:
    save_file(tiny_r_sam.state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match=r"weights of 'sam2_t'; its tensors are those of tiny_r"):
        load_sam("sam2_t", tmp_path / "own.safetensors")


def test_weights_that_are_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"weights of 'sam3_tracker' are not on.*put sam3\.pt"):
        load_sam("sam3_tracker")


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam3_lite_text"}', encoding="utf-8")
    with pytest.raises(WeightsError, match=r"expected model_type sam, .*sam3_tracker"):
        load_sam(checkpoint=tmp_path)
