"""Files of SAM 2 under Meta's and transformers' names, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from samadapt.errors import WeightsError
from samadapt.export.hf import transformers_model
from samadapt.export.hf_sam2 import sam2_configuration
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.video_memory import memory_tensors
from samadapt.sam.weights import loading
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.sam.weights.sam2_names import (
    NEWER,
    memory_names,
    published_sam2_key,
    sam2_hugging_face_names,
    sam2_key,
)

# Tensors of the published files, memory included: what `len` of their state dicts gives.
TENSORS = {"sam2_t": 471}


def published(sam: Sam) -> dict[str, Tensor]:
    """The state dict of a published file: our weights, and a memory."""
    state = {published_sam2_key(name): value for name, value in sam.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    memory = memory_tensors(sam.build)
    assert memory.keys() == memory_names("2.1")
    return state | {
        name: torch.randn(value.shape, generator=generator) for name, value in memory.items()
    }


@pytest.fixture
def file(tiny_h_sam: Sam, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"model": published(tiny_h_sam)}, path)
    return path


@pytest.mark.parametrize("name", ["sam2_t", "sam2_s", "sam2_b+", "sam2_l"])
def test_names_are_those_of_the_published_files(name: str) -> None:
    with torch.device("meta"):
        keys = set(build_sam(name).state_dict())
    names = {published_sam2_key(key) for key in keys}
    assert {sam2_key(name) for name in names} == keys
    assert not names & memory_names("2.1")
    everything = names | memory_names("2.1")
    blocks = sum(BUILDS[name].stage_depths)
    assert len(everything) == TENSORS["sam2_t"] + 12 * (blocks - 12)
    assert memory_names("2.1") - memory_names("2.0") == set(NEWER)
    assert {key.partition(".")[0] for key in everything} == {
        "image_encoder",
        "sam_prompt_encoder",
        "sam_mask_decoder",
        "memory_attention",
        "memory_encoder",
        "maskmem_tpos_enc",
        "mask_downsample",
        "no_mem_embed",
        "no_mem_pos_enc",
        "no_obj_embed_spatial",
        "no_obj_ptr",
        "obj_ptr_proj",
        "obj_ptr_tpos_proj",
    }


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_names_of_the_video_model_of_transformers(version: str) -> None:
    """Every tensor of ``Sam2VideoModel`` has its place, and the memory is complete."""
    import transformers

    with torch.device("meta"):
        sam = build_sam("sam2_t")
        parts = sam2_configuration(sam)
        newer = version == "2.1"
        video = transformers.Sam2VideoModel(
            transformers.Sam2VideoConfig(
                vision_config=parts.vision_config,
                prompt_encoder_config=parts.prompt_encoder_config,
                mask_decoder_config=parts.mask_decoder_config,
                enable_temporal_pos_encoding_for_object_pointers=newer,
                enable_occlusion_spatial_embedding=newer,
            )
        )
    names = set(sam2_hugging_face_names(video.state_dict()).values())
    points = {"prompt_encoder.point_embeddings.weight"}  # of all kinds of points together
    assert points <= names
    ours = {key for key in sam.state_dict() if ".point_embeddings." not in key}
    assert names - points == ours | memory_names(version)


def test_every_way_round_is_bit_equal(tiny_h_sam: Sam, file: Path, tmp_path: Path) -> None:
    """Meta's file, transformers' directory, ours, and Meta's file again."""
    first = load_sam(checkpoint=file)
    assert base_hash(first) == base_hash(tiny_h_sam)
    folder = tmp_path / "sam2.1-tiny"
    transformers_model(first).save_pretrained(folder)
    second = load_sam("tiny_h", folder)
    assert base_hash(second) == base_hash(first)
    assert not second.memory  # a Sam2Model has none
    save_file(
        {k: v.contiguous() for k, v in second.state_dict().items()}, tmp_path / "own.safetensors"
    )
    third = load_sam("tiny_h", tmp_path / "own.safetensors")
    again = {published_sam2_key(k): v for k, v in third.state_dict().items()} | first.memory
    wanted = torch.load(file)["model"]
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[key], wanted[key]) for key in wanted)


def test_the_memory_is_kept(file: Path) -> None:
    sam = load_sam("tiny_h", file)
    assert sam.memory.keys() == memory_names("2.1")
    assert not any(name in sam.state_dict() for name in sam.memory)


def test_a_directory_of_the_video_model_is_read(tiny_h_sam: Sam, tmp_path: Path) -> None:
    """As the published repositories have them: model_type is sam2_video."""
    theirs = transformers_model(tiny_h_sam).state_dict()
    folder = tmp_path / "model"
    folder.mkdir()
    renamed = sam2_hugging_face_names(theirs)
    assert "mask_decoder.no_mem_embed" in renamed.values()
    memory = {
        "no_object_pointer": torch.ones(1, 64),
        "memory_encoder.memory_fuser.layers.1.scale": torch.ones(64),
    }
    save_file(
        {k: v.contiguous() for k, v in (theirs | memory).items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "sam2_video"}), encoding="utf-8")
    with pytest.raises(
        WeightsError, match=r"of the 160 tensors of the memory of tiny_h are missing"
    ):
        load_sam("tiny_h", folder)


@pytest.mark.parametrize(("name", "version"), [("sam2_t", "2.0"), ("sam2.0_t", "2.1")])
def test_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str
) -> None:
    with torch.device("meta"):
        state = build_sam("sam2_t").state_dict()
        memory = {key: torch.zeros(1) for key in memory_names(version)}
    monkeypatch.setattr(loading, "read_checkpoint", lambda path: state | memory)
    other = "sam2.0_t" if version == "2.0" else "sam2_t"
    for asked in (name, "vit_b"):
        with pytest.raises(WeightsError) as caught:
            load_sam(asked, tmp_path / "w.pt")
        assert f"expected the weights of {asked!r}; its tensors are those of {other};" in str(
            caught.value
        )


def test_missing_and_unexpected_tensors_are_named(file: Path, tmp_path: Path) -> None:
    state = torch.load(file)["model"]
    del state["sam_mask_decoder.conv_s0.bias"]
    state["image_encoder.trunk.blocks.9.norm1.bias"] = torch.zeros(1)
    del state["memory_attention.norm.bias"]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt holds no known model.*depth 7"):
        load_sam(checkpoint=tmp_path / "a.pt")
    del state["image_encoder.trunk.blocks.9.norm1.bias"]
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"b\.pt: 1 of the 160.*memory_attention\.norm\.bias"):
        load_sam(checkpoint=tmp_path / "b.pt")
    state["memory_attention.norm.bias"] = torch.zeros(2)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=r"1 of a wrong shape: memory_attention\.norm\.bias"):
        load_sam("tiny_h", tmp_path / "c.pt")
    state["memory_attention.norm.bias"] = torch.zeros(64)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=r"1 missing: mask_decoder\.conv_s0\.bias"):
        load_sam(checkpoint=tmp_path / "c.pt")


def test_a_wrong_file_under_a_published_name_is_refused(file: Path) -> None:
    path = file.rename(file.parent / "sam2.1_hiera_tiny.pt")
    with pytest.raises(
        WeightsError, match=r"'sam2_t' but is another file: expected sha256:7402e0d8"
    ):
        load_sam("sam2_t", path)
    path = path.rename(file.parent / "sam2_hiera_base_plus.pt")
    with pytest.raises(WeightsError, match=r"'sam2\.0_b\+' but is another file"):
        load_sam("sam2.0_b+", path)


def test_the_file_name_tells_the_version_where_the_tensors_do_not(tmp_path: Path) -> None:
    from samadapt.sam.weights.loading import detect_build

    with torch.device("meta"):
        state = build_sam("sam2_t").state_dict()
    assert detect_build(state, tmp_path / "sam2.1-hiera-tiny") == ("sam2_t", "sam2.0_t")
    assert detect_build(state, tmp_path / "sam2-hiera-tiny") == ("sam2.0_t", "sam2_t")
    assert detect_build(state, tmp_path / "MedSAM2_latest.pt") == ("sam2_t", "sam2.0_t")
