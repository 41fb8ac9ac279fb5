"""The model card: a page for people, whose metadata the Hub reads and whose code runs as it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file

from samadapt.adapters.card import model_card
from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import inject
from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.adapters.store import save_adapter
from samadapt.data.intensity import make_intensity
from samadapt.export import export_adapter
from samadapt.export.hf import HuggingFace
from samadapt.export.onnx import Onnx
from samadapt.export.sam import SamFile
from samadapt.inference.segmenter import load_adapter
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.loading import base_hash, load_sam

CODE = re.compile(r"^### (With [^\n]+)\n(.*?)(?=^### |\Z)", re.M | re.S)

Make = Callable[..., Path]


def snippets(card: Path) -> dict[str, str]:
    """The code of each way of use, word for word; empty where the card gives a reason instead."""
    found = {}
    for title, body in CODE.findall(card.read_text(encoding="utf-8")):
        blocks = re.findall(r"^```python\n(.*?)^```", body, re.M | re.S)
        assert len(blocks) <= 1
        found[title] = blocks[0] if blocks else ""
        assert blocks or "Not possible: " in body
    return found


def picture(folder: Path, size: tuple[int, int] = (200, 180)) -> None:
    """Write image.png with a bright ellipse, which the boxes of the examples hold."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 90, (9, 10, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)).copy()
    rows, columns = np.mgrid[: size[1], : size[0]]
    image[((columns - 70) / 45) ** 2 + ((rows - 95) / 60) ** 2 < 1] += 120
    Image.fromarray(image).save(folder / "image.png")


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, samadapt: bool) -> np.ndarray:
    """Run a snippet in a folder, without samadapt if it says so, and return the mask it wrote."""
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch:
        if not samadapt:
            patch.setitem(sys.modules, "samadapt", None)  # every import of it fails
            assert "import samadapt" not in code
        exec(compile(code, "card", "exec"), {})
    return np.asarray(Image.open(folder / "mask.png"))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one > 0, other > 0
    assert one.any()
    assert not one.all()
    return float((one & other).sum() / (one | other).sum())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_segment_anything) -> Make:
    """``make(base, kind, size, ...)``: the directory of an adapter on a resampled random base."""
    from segment_anything import sam_model_registry

    def build_tiny(checkpoint: str | None = None) -> torch.nn.Module:
        model = as_segment_anything(build_sam("tiny"))
        if checkpoint is not None:
            model.load_state_dict(torch.load(checkpoint, weights_only=True))
        return model

    monkeypatch.setitem(sam_model_registry, "tiny", build_tiny)

    def create(
        base: Sam,
        kind: str = "box",
        size: int = 96,
        *,
        classes: int = 1,
        tokens: bool = False,
        intensity: str = "rgb",
        **changes: object,
    ) -> Path:
        name, folder = base.build.name, tmp_path / "adapter"
        folder.mkdir()
        save_file(base.state_dict(), folder / f"{name}.safetensors")
        sam = load_sam(name, folder / f"{name}.safetensors", size)
        digest = base_hash(sam)
        if tokens:
            sam.add_class_tokens(classes)
        injection = inject(sam, find_method("lora")())
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in injection.parameters.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        record = AdapterRecord(
            base=name,
            base_sha256=digest,
            checkpoint=f"{name}.safetensors",
            image_size=size,
            class_tokens=classes if tokens else 0,
            preprocessing=asdict(sam.preprocessing),
            intensity=make_intensity(intensity).to_dict(),
            classes=["cell", "nucleus", "wall", "pore"][:classes],
            prompt=PromptPolicy(kind).to_dict() | dict(changes),  # type: ignore[arg-type]
            data="cells",
        )
        # The base lies beside the adapter, as that of an import does.
        save_adapter(tmp_path / "saved", sam, injection, record)
        for path in (tmp_path / "saved").iterdir():
            path.rename(folder / path.name)
        picture(folder)
        return folder

    return create


def test_the_base_at_the_size_of_its_file_gives_other_masks(make, tiny_sam, monkeypatch):
    """What cards said until now, in a base of 64 px, silently gave wrong masks."""
    folder = make(tiny_sam, size=96)
    found = snippets(folder / "README.md")
    wanted = run(found["With samadapt"], folder, monkeypatch, samadapt=True)
    right = found["With peft"]
    assert iou(run(right, folder, monkeypatch, samadapt=False), wanted) > 0.99
    start, end = right.index("# The base is for 64 px"), right.index("PeftModel.from_pretrained")
    old = (right[:start] + right[end:]).replace("side = 96", "side = 64")
    assert iou(run(old, folder, monkeypatch, samadapt=False), wanted) < 0.9


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    ["box", *(pytest.param(kind, marks=SLOW) for kind in ("point", "interactive", "semantic"))],
)
def test_every_snippet_gives_the_masks_of_samadapt(make, tiny_sam, monkeypatch, kind):
    folder = make(tiny_sam, kind, classes=3 if kind == "semantic" else 1)
    found = snippets(folder / "README.md")
    assert list(found) == ["With samadapt", "With peft", "With ONNX Runtime"]
    wanted = run(found["With samadapt"], folder, monkeypatch, samadapt=True)
    assert "sam_model_registry" in found["With peft"]
    export_adapter(folder, Onnx(), folder / "onnx_model")
    for title in ("With peft", "With ONNX Runtime"):
        mask = run(found[title], folder, monkeypatch, samadapt=False)
        assert iou(mask, wanted) > 0.98, title
        if kind == "semantic":
            assert len(np.unique(wanted)) > 2
            assert (mask == wanted).mean() > 0.98


@pytest.mark.slow
def test_tiny_vit_and_its_preprocessing(make, tiny_t_sam, monkeypatch):
    build = replace(BUILDS["tiny_t"], preprocessing=BUILDS["lite_medsam"].preprocessing)
    monkeypatch.setitem(BUILDS, "tiny_t", build)
    tiny_t_sam.preprocessing = build.preprocessing
    folder = make(tiny_t_sam, "point", 64, intensity="percentile:1,99")
    found = snippets(folder / "README.md")
    wanted = run(found["With samadapt"], folder, monkeypatch, samadapt=True)
    assert "samadapt.load_sam" in found["With peft"]
    export_adapter(folder, Onnx(), folder / "onnx_model")
    for title, samadapt in (("With peft", True), ("With ONNX Runtime", False)):
        assert iou(run(found[title], folder, monkeypatch, samadapt=samadapt), wanted) > 0.98, title


@pytest.mark.slow
def test_a_squashed_picture(make, tiny_sam, monkeypatch):
    build = replace(BUILDS["tiny"], preprocessing=BUILDS["medsam"].preprocessing)
    monkeypatch.setitem(BUILDS, "tiny", build)
    folder = make(tiny_sam, "box", 96)
    found = snippets(folder / "README.md")
    wanted = run(found["With samadapt"], folder, monkeypatch, samadapt=True)
    export_adapter(folder, Onnx(), folder / "onnx_model")
    for title in ("With peft", "With ONNX Runtime"):
        assert iou(run(found[title], folder, monkeypatch, samadapt=False), wanted) > 0.98, title


@pytest.mark.slow
def test_classes_with_tokens_of_their_own(make, tiny_sam, monkeypatch):
    folder = make(tiny_sam, "semantic", classes=4, tokens=True)
    found = snippets(folder / "README.md")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Not possible: its classes have tokens of their own" in card
    wanted = run(found["With samadapt"], folder, monkeypatch, samadapt=True)
    export_adapter(folder, Onnx(), folder / "onnx_model")
    mask = run(found["With ONNX Runtime"], folder, monkeypatch, samadapt=False)
    assert len(np.unique(wanted)) > 2
    assert (mask == wanted).mean() > 0.98


@pytest.mark.slow
def test_a_dense_head(tiny_sam, tmp_path, monkeypatch):
    from samadapt.sam.dense_head import HeadSettings

    folder, base = tmp_path / "adapter", tmp_path / "tiny.safetensors"
    save_file(tiny_sam.state_dict(), base)
    sam = load_sam("tiny", base, 96)
    digest = base_hash(sam)
    sam.add_dense_head(2, HeadSettings(side=64, width=8, scales=3))
    injection = inject(sam, find_method("lora")())
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in injection.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    record = AdapterRecord(
        base="tiny", base_sha256=digest, checkpoint="tiny.safetensors", image_size=96,
        preprocessing=asdict(sam.preprocessing), intensity=make_intensity("rgb").to_dict(),
        classes=["cell", "wall"], prompt=PromptPolicy("semantic").to_dict(),
        head=sam.dense_head.describe(),
    )  # fmt: skip
    save_adapter(folder, sam, injection, record)
    base.rename(folder / "tiny.safetensors")
    picture(folder)
    found = snippets(folder / "README.md")
    assert not found["With peft"]
    wanted = run(found["With samadapt"], folder, monkeypatch, samadapt=True)
    export_adapter(folder, Onnx(), folder / "onnx_model")
    mask = run(found["With ONNX Runtime"], folder, monkeypatch, samadapt=False)
    assert len(np.unique(wanted)) > 1
    assert (mask == wanted).mean() > 0.98


@pytest.mark.slow
def test_the_merged_file_in_segment_anything_at_its_size(make, tiny_sam, monkeypatch):
    folder = make(tiny_sam)
    wanted = run(
        snippets(folder / "README.md")["With samadapt"], folder, monkeypatch, samadapt=True
    )
    export_adapter(folder, SamFile(), folder / "merged")
    picture(folder / "merged")
    code = snippets(folder / "merged" / "README.md")["With segment-anything"]
    mask = run(code, folder / "merged", monkeypatch, samadapt=False)
    assert iou(mask, wanted) > 0.98


@pytest.mark.slow
def test_transformers_at_its_size(make, tiny_sam, monkeypatch):
    folder = make(tiny_sam)
    wanted = run(
        snippets(folder / "README.md")["With samadapt"], folder, monkeypatch, samadapt=True
    )
    export_adapter(folder, HuggingFace(), folder / "hf")
    picture(folder / "hf")
    code = snippets(folder / "hf" / "README.md")["With transformers"]
    assert iou(run(code, folder / "hf", monkeypatch, samadapt=False), wanted) > 0.97


@pytest.mark.slow
def test_a_slice_of_a_volume(make, tiny_sam, monkeypatch):
    import nibabel

    folder = make(tiny_sam, "box", 96, intensity="mri")
    record = read_record(folder)
    # Array axes of this affine are (x, y, z) of an upright axial picture (column, row, slice).
    rng = np.random.default_rng(0)
    volume = rng.uniform(1, 50, (180, 200, 7)).astype(np.float32)
    volume[30:110, 40:150] += 300
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "scan.nii.gz")
    np.save(folder / "volume.npy", volume.swapaxes(0, 1))
    sam = load_sam("tiny", folder / "tiny.safetensors", 96)
    (folder / "tiny.safetensors").rename(folder.parent / "tiny.safetensors")
    from samadapt.adapters.store import load_into

    injection = load_into(folder, sam, record)
    save_adapter(folder, sam, injection, replace(record, axis="axial"))
    (folder.parent / "tiny.safetensors").rename(folder / "tiny.safetensors")
    nibabel.save(nibabel.Nifti1Image(volume, affine), folder / "scan.nii.gz")
    np.save(folder / "volume.npy", volume.swapaxes(0, 1))
    found = snippets(folder / "README.md")
    monkeypatch.chdir(folder)
    exec(compile(found["With samadapt"], "card", "exec"), {})
    labels = np.asarray(nibabel.load(folder / "mask.nii.gz").dataobj)
    assert labels.shape == volume.shape
    assert not labels[:, :, 4].any()
    wanted = labels[:, :, 5].T
    assert iou(run(found["With peft"], folder, monkeypatch, samadapt=False), wanted) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("title", ["With peft", "With ONNX Runtime"])
def test_vit_b_at_256_px_in_a_fresh_interpreter_without_samadapt(tmp_path, randomise, title):
    """The case of the issue: SAM's own ViT-B, adapted at 256 px, with random weights."""
    base = tmp_path / "sam_vit_b.pth"
    torch.save(randomise(build_sam("vit_b"), 5).state_dict(), base)
    folder = tmp_path / "adapter"
    sam = load_sam("vit_b", base, 256)
    record = AdapterRecord(
        base="vit_b", base_sha256=base_hash(sam), checkpoint="sam_vit_b.pth", image_size=256,
        preprocessing=asdict(sam.preprocessing), intensity=make_intensity("rgb").to_dict(),
        classes=["cell"], prompt=PromptPolicy("box").to_dict(),
    )  # fmt: skip
    injection = inject(sam, find_method("lora")())
    with torch.no_grad():
        for name, parameter in injection.parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    save_adapter(folder, sam, injection, record)
    base.rename(folder / base.name)
    picture(folder)
    code = snippets(folder / "README.md")[title]
    wanted = load_adapter(folder).segment(folder / "image.png", boxes=[[20, 30, 120, 160]])
    if title == "With ONNX Runtime":
        export_adapter(folder, Onnx(), folder / "onnx_model")
    packages = ("numpy", "torch", "peft", "PIL", "segment_anything", "onnxruntime")
    homes = {str(Path(__import__(name).__file__).parents[1]) for name in packages}
    # -S leaves out the .pth files of an editable installation; another kind is hidden by None.
    start = "import sys; sys.modules['samadapt'] = None\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", start + code],
        cwd=folder, capture_output=True, encoding="utf-8", check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sorted(homes))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert iou(np.asarray(Image.open(folder / "mask.png")), wanted) > 0.99


RECORD = AdapterRecord(
    base="vit_b", base_sha256="0" * 64, image_size=256, method={"name": "lora", "rank": 8},
    classes=["liver", "spleen"], prompt=PromptPolicy("semantic").to_dict(), data="abdomen",
    intensity=make_intensity("ct").to_dict(), axis="axial", trained_on={"a": [1, 2], "b": [3]},
    scores={
        "zero_shot": {"dice": 0.5, "per_class": {"liver": {"dice": 0.5, "iou": 0.4, "cases": 9}}},
        "adapted": {
            "dice": 0.9,
            "iou": 0.82,
            "per_class": {
                "liver": {
                    "dice": 0.91234, "iou": 0.85, "hd95": 3.21, "cases": 9,
                    "detail": {
                        "dice": {"interval": [0.88, 0.94]}, "hd95": {"unit": "mm"},
                    },
                },
                "spleen": {"dice": 0.88, "iou": None, "cases": 8},
            },
        },
        "oracle_prompt": False,
    },
)  # fmt: skip


def test_a_licence_that_the_hub_does_not_know_is_named(tmp_path):
    path = tmp_path / "README.md"
    text = model_card(replace(RECORD, base="sam3_tracker"), 1000, plain_peft=True)
    path.write_text(text, encoding="utf-8")
    data = ModelCard.load(path).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "sam-license")
    assert data["base_model"] == "facebook/sam3"
    assert "SAM License" in text


def test_the_hub_reads_base_and_scores(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(model_card(RECORD, 1000, plain_peft=True), encoding="utf-8")
    data = ModelCard.load(path).data
    assert data.base_model == "facebook/sam-vit-base"
    assert data.library_name == "peft"
    assert data.license == "apache-2.0"
    assert data.pipeline_tag == "image-segmentation"
    found = {(r.metric_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert found == {
        ("dice", "Dice, mean of the classes"): 0.9,
        ("iou", "IoU, mean of the classes"): 0.82,
        ("dice", "Dice of liver"): 0.9123,
        ("iou", "IoU of liver"): 0.85,
        ("dice", "Dice of spleen"): 0.88,
    }
    assert {r.dataset_name for r in data.eval_results} == {"abdomen"}
    # What the Hub's client writes back is the same.
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data
    assert again.eval_results == data.eval_results


def test_the_page_is_for_people(tmp_path):
    card = model_card(RECORD, 1000, plain_peft=True)
    assert len(card.splitlines()) < 200
    assert "```json" not in card
    for said in (
        "# liver, spleen: SAM ViT-B + lora",
        "in axial slices of volumes with no prompt. Pictures are resized to 256 px",
        "| Intensity | window -160 to 240 |",
        "| Data | abdomen: 2 training images, 3 slices of them |",
        "| liver | adapted | 9 | 0.912 [0.880, 0.940] | 0.850 | 3.2 mm |",
        "| spleen | adapted | 8 | 0.880 | \N{EN DASH} | \N{EN DASH} |",
        "| mean of the classes | adapted |",
        "- Before training the base was given exact boxes",
    ):
        assert said in card, said


@pytest.mark.parametrize(
    ("changes", "plain", "said"),
    [
        ({"quantize": "nf4"}, False, "the base is rounded to 4 bits"),
        ({"input_channels": 4}, False, "maps 4 channels to SAM's three"),
        ({"head": {"name": "instances", "side": 64}}, False, "separated by a watershed"),
        ({"method": {"name": "adapter"}}, False, "adapter with these options is not one kind"),
        ({"num_masks": 5}, False, "it has 5 mask tokens"),
        ({"prompt": PromptPolicy("auto").to_dict()}, False, "a network makes its prompts"),
        ({"prompt": PromptPolicy("mask").to_dict()}, True, "prompted with rough masks"),
        (
            {"prompt": PromptPolicy("interactive", click_disks=True).to_dict()}, True,
            "clicks are also drawn into the mask prompt",
        ),
        (
            {"prompt": PromptPolicy("mixed", shares={"box": 0.6, "point": 0.4}).to_dict()}, True,
            "which the code below does not show: point",
        ),
        ({"data_options": {"tile": 512}}, True, "takes one tile"),
        ({"keep_largest": ["liver"]}, True, "only the largest component of liver"),
        ({"scores": {"reason": "nothing is held out"}}, True, "Not evaluated: nothing is held"),
        ({"intensity": make_intensity("ct:soft_tissue+lung+bone").to_dict()}, True,
         "Red, green and blue of this picture"),
    ],
)  # fmt: skip
def test_the_card_names_what_a_snippet_cannot_do(tmp_path, changes, plain, said):
    path = tmp_path / "README.md"
    path.write_text(model_card(replace(RECORD, **changes), 5, plain_peft=plain), encoding="utf-8")
    assert said in path.read_text(encoding="utf-8")
    found = snippets(path)
    assert found["With samadapt"]
    for title, code in found.items():
        compile(code, title, "exec")
    assert ModelCard.load(path).data.library_name == ("peft" if plain else "samadapt")


@pytest.mark.slow
def test_a_unet_has_a_card(tmp_path, monkeypatch):
    from samadapt.baselines.build import UNetBuild
    from samadapt.baselines.store import save_unet
    from samadapt.baselines.unet import UNet

    torch.manual_seed(0)
    model = UNet(UNetBuild(64, channels=3, classes=1, filters=4)).eval()
    record = AdapterRecord(
        base="unet", base_sha256="0" * 64, image_size=64, num_masks=1, classes=["cell"],
        prompt=PromptPolicy("semantic").to_dict(), intensity=make_intensity("rgb").to_dict(),
    )  # fmt: skip
    save_unet(tmp_path / "baseline", model, record)
    picture(tmp_path / "baseline")
    found = snippets(tmp_path / "baseline" / "README.md")
    assert [title for title, code in found.items() if code] == ["With samadapt"]
    mask = run(found["With samadapt"], tmp_path / "baseline", monkeypatch, samadapt=True)
    assert mask.shape == (180, 200)
    assert "base_model" not in ModelCard.load(tmp_path / "baseline" / "README.md").data.to_dict()


def test_peft_learns_the_base(make, tiny_sam):
    folder = make(tiny_sam)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny.safetensors"


def test_a_name_cannot_end_the_code(tmp_path):
    path = tmp_path / "README.md"
    record = replace(RECORD, classes=["a```<script>", "b"], prompt=PromptPolicy("box").to_dict())
    path.write_text(model_card(record, 5), encoding="utf-8")
    assert "````python\n" in path.read_text(encoding="utf-8")
