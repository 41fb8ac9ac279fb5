"""Models and helpers that all tests share."""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import jaxtyping
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import Injection, inject
from samadapt.adapters.record import AdapterRecord
from samadapt.adapters.store import save_adapter
from samadapt.config.compose import compose
from samadapt.runs.finetune import FinetuneResult, finetune
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import base_hash

torch.set_num_threads(1)  # tiny forwards are many times slower with the default on a busy machine

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Real data with ground truth, in some checkouts."""


def pytest_collection_finish() -> None:
    """Leave all that importing made out of garbage collections, which then take no time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free it at its end."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests find in data sets out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMADAPT_CACHE", str(tmp_path_factory.mktemp("samadapt_cache")))
        yield


Randomise = Callable[[nn.Module, int], nn.Module]


def _draw(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of a useful scale: signals keep their size, and every table matters."""
    noise = torch.randn(value.shape, generator=generator).to(value.dtype)
    leaf = name.rpartition(".")[2]
    if "running_var" in name:
        return 0.5 + noise.abs()
    if "running_mean" in name or leaf == "bias":
        return 0.2 * noise
    if "rel_pos" in name or "attention_biases" in name or "pos_embed" in name:
        return 0.5 * noise
    if value.ndim == 1:  # gains of a normalisation
        return 1 + 0.3 * noise
    if value.shape[0] == 1 or name.endswith(("mask_tokens.weight", "gaussian_matrix")):
        return noise
    gain = 2.0 if value.ndim == 4 else 1.4  # convolutions of TinyViT forget the image below that
    if ".conv_s" in name:  # the fine maps of SAM 2 drown the prompts above that
        gain = 0.3
    if any(layer in name for layer in (".dconv_2x2", ".conv_1x1.", ".conv_3x3.")):
        gain = 1.0  # up to four convolutions of SAM 3's neck follow one another
    return gain * noise * value[0].numel() ** -0.5


def _randomise(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    drawn = {
        name: _draw(name, value, generator) if value.is_floating_point() else value
        for name, value in state.items()
    }
    model.load_state_dict(drawn)
    return model


def _check_not_degenerate(sam: Sam) -> None:
    """Fail unless the output depends on image and prompt; otherwise tests prove nothing."""
    generator = torch.Generator().manual_seed(0)
    side = sam.image_size
    images = torch.randn(2, 3, side, side, generator=generator, dtype=sam.dtype)
    boxes = torch.tensor([[[4.0, 6.0, 30.0, 40.0], [20.0, 22.0, 60.0, 50.0]]]).expand(2, -1, -1)
    with torch.no_grad():
        logits = sam.decode(sam.encode(images), Prompts(boxes=boxes), multimask=True).logits
    spread = float(logits.std())
    assert 0.05 < spread < 100
    assert float((logits[0] - logits[1]).abs().mean()) > 0.1 * spread
    assert float((logits[:, 0] - logits[:, 1]).abs().mean()) > 0.1 * spread
    assert float((logits[:, :, 0] - logits[:, :, 1]).abs().mean()) > 0.1 * spread


@cache
def _made(name: str, seed: int) -> Sam:
    sam = build_sam(name)
    _randomise(sam, seed)
    sam.eval()
    _check_not_degenerate(sam)
    return sam


def _make(name: str, seed: int) -> Sam:
    return copy.deepcopy(_made(name, seed))  # building and checking one takes far longer


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Turn the checks of annotated shapes off: for wrong shapes on purpose, and for graphs."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def randomise() -> Randomise:
    """Give ``randomise(model, seed)``: fill a model, in place, with weights of a useful scale."""
    return _randomise


def _as_segment_anything(sam: Sam) -> nn.Module:
    from functools import partial

    from segment_anything import modeling
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    build, side = sam.build, sam.embedding_size
    if build.encoder == "vit":
        encoder = ImageEncoderViT(
            img_size=sam.image_size,
            patch_size=build.patch_size,
            embed_dim=build.embed_dim,
            depth=build.depth,
            num_heads=build.num_heads,
            mlp_ratio=build.mlp_ratio,
            out_chans=build.prompt_width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=build.window,
            global_attn_indexes=build.global_blocks,
        )
    else:  # segment-anything has no TinyViT: lend it ours
        encoder = copy.deepcopy(sam.image_encoder)
        encoder.img_size = sam.image_size
    prompt_encoder = modeling.PromptEncoder(
        embed_dim=build.prompt_width,
        image_embedding_size=(side, side),
        input_image_size=(sam.image_size, sam.image_size),
        mask_in_chans=build.mask_channels,
    )
    decoder = modeling.MaskDecoder(
        transformer_dim=build.prompt_width,
        transformer=modeling.TwoWayTransformer(
            depth=build.decoder_depth,
            embedding_dim=build.prompt_width,
            mlp_dim=build.decoder_mlp,
            num_heads=build.decoder_heads,
        ),
        num_multimask_outputs=build.num_multimask,
        iou_head_hidden_dim=build.iou_width,
    )
    reference = modeling.Sam(encoder, prompt_encoder, decoder).to(sam.dtype)
    reference.load_state_dict(sam.state_dict(), strict=True)
    if sam.dtype == torch.float64:  # its positions are fp32, whatever the model is
        layer = reference.prompt_encoder.pe_layer
        encode = layer._pe_encoding
        layer._pe_encoding = lambda places: encode(places.double())
        layer.forward_with_coords = lambda pixels, size: layer._pe_encoding(
            pixels.double() / torch.tensor([size[1], size[0]])
        )
    return reference.eval()


@pytest.fixture
def as_segment_anything() -> Callable[[Sam], nn.Module]:
    """Give ``as_segment_anything(sam)``: the same weights in segment-anything's own ``Sam``."""
    return _as_segment_anything


@pytest.fixture
def tiny_sam() -> Sam:
    """A random ViT of the build ``tiny``, in eval mode, whose output depends on its input."""
    return _make("tiny", seed=1)


@pytest.fixture
def tiny_t_sam() -> Sam:
    """A random TinyViT of the build ``tiny_t``, in eval mode, whose output depends on its input."""
    return _make("tiny_t", seed=2)


@pytest.fixture
def tiny_h_sam() -> Sam:
    """A random SAM 2 of the build ``tiny_h``, in eval mode, whose output depends on its input."""
    return _make("tiny_h", seed=4)


@pytest.fixture
def tiny_r_sam() -> Sam:
    """A random SAM 3 of the build ``tiny_r``, in eval mode, whose output depends on its input."""
    return _make("tiny_r", seed=5)


SLOW_BUILDS = [pytest.param(name, marks=pytest.mark.slow) for name in ("tiny_h", "tiny_r")]


@pytest.fixture(params=["tiny", "tiny_t", *SLOW_BUILDS])
def any_sam(request: pytest.FixtureRequest) -> Sam:
    """Each of the four models, one after the other."""
    return _make(request.param, seed={"tiny_h": 4, "tiny_r": 5}.get(request.param, 3))


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    """Return a function that gives a folder of the real data, or skips the test."""

    def find(name: str) -> Path:
        folder = SHARED / name
        if not folder.is_dir():
            pytest.skip(f"real data are not here: ../shared/data/{name}")
        return folder

    return find


@pytest.fixture
def heard_signals() -> Iterator[None]:
    """Give signals their usual handlers that are ignored where the tests were started.

    ``nohup pytest`` ignores SIGHUP, and a shell ignores SIGINT for what it starts with ``&``; both
    would be passed on to the programs that a test starts.
    """
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}
    usual |= {"SIGUSR1": signal.SIG_DFL, "SIGUSR2": signal.SIG_DFL}
    before = {}
    for name, handler in usual.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def rectangles(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Labels with one rectangle a class, left to right."""
    labels = np.zeros(shape, np.uint8)
    width = shape[1] // classes
    for index in range(classes):
        row, column = rng.integers(1, shape[0] - 8), index * width + rng.integers(0, 2)
        labels[row : row + 6, column : column + width - 2] = index + 1
    return labels


def write_pictures(root: Path, count: int = 8, classes: int = 1) -> Path:
    """Write images/ and masks/ of 24 x 40 pixels."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        labels = rectangles(rng, (24, 40), classes)
        image = rng.integers(0, 40, (24, 40, 3), dtype=np.uint8)
        image[labels > 0] += (40 * labels[labels > 0])[:, None] % 200
        Image.fromarray(image).save(root / "images" / f"p{index}.png")
        Image.fromarray(labels).save(root / "masks" / f"p{index}.png")
    return root


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., Path]:
    """``make_pictures(count, classes)``: images/ and masks/ of 24 x 40 pixels."""

    def make(count: int = 8, classes: int = 1, name: str = "pictures") -> Path:
        return write_pictures(tmp_path / name, count, classes)

    return make


@pytest.fixture
def make_scans(tmp_path: Path) -> Callable[..., Path]:
    """``make_scans(count)``: an MSD folder of volumes with two classes and an empty slice."""

    def make(count: int = 5) -> Path:
        root = tmp_path / "scans"
        for part in ("imagesTr", "labelsTr"):
            (root / part).mkdir(parents=True)
        entries = []
        for index in range(count):
            rng = np.random.default_rng(index)
            labels = np.stack([rectangles(rng, (20, 28), 2) for _ in range(4)], axis=-1)
            labels[..., 0] = 0
            image = (rng.uniform(1, 100, labels.shape) + 150 * labels).astype(np.float32)
            name = f"scan_{index}.nii.gz"
            affine = np.diag([1.0, 1.0, 2.0, 1.0])
            nib.save(nib.Nifti1Image(image, affine), root / "imagesTr" / name)
            nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / name)
            entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        content = {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "front", "2": "back"},
            "training": entries,
        }
        (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        return root

    return make


def write_recipe(folder: Path) -> Path:
    """Write a recipe of four steps on the CPU; its runs are below ``folder``."""
    path = folder / "small.yaml"
    path.write_text(
        "model: {name: tiny}\n"
        "data: {name: folder}\n"
        "train: {steps: 4, batch_size: 2, warmup_steps: 1, validate_every: 2, "
        "checkpoint_every: 2}\n"
        "eval: {overlays: 0}\n"
        f"output: {{dir: {folder / 'runs'}}}\n"
        "precision: fp32\n"
        "device: cpu\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of four steps on the CPU, writing below ``tmp_path``."""
    return write_recipe(tmp_path)


@pytest.fixture(scope="session")
def one_step_run(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A run of one step on eight pictures, for tests that change nothing in it.

    The pictures are in ``run_dir.parents[2] / "pictures"``.
    """
    folder = tmp_path_factory.mktemp("one_step")
    root = write_pictures(folder / "pictures")
    overrides = [f"data.root={root}", "train.steps=1"]
    return finetune(compose(str(write_recipe(folder)), overrides))


@pytest.fixture
def run(recipe: Path) -> Callable[..., FinetuneResult]:
    """``run(root, "key=value", ...)``: what ``finetune`` returned."""

    def start(root: Path, *overrides: str) -> FinetuneResult:
        return finetune(compose(str(recipe), [f"data.root={root}", *overrides]))

    return start


@pytest.fixture(
    params=["tiny_sam", "tiny_t_sam", pytest.param("tiny_h_sam", marks=pytest.mark.slow)]
)
def fresh(request: pytest.FixtureRequest) -> Callable[[], Sam]:
    """``fresh()``: another copy of the same random base, of each build in turn."""
    base: Sam = request.getfixturevalue(request.param)
    return lambda: copy.deepcopy(base)


def _predict(sam: Sam, count: int = 2) -> Tensor:
    """Every mask, multimask and single, and every score, of a fixed batch in one vector."""
    torch.manual_seed(0)
    images = torch.randn(count, 3, sam.image_size, sam.image_size)
    box = torch.tensor([[[4.0, 6.0, 40.0, 50.0]], [[20.0, 12.0, 60.0, 44.0]]])
    box = box.repeat(count // 2, 1, 1)
    embeddings = sam.encode(images)
    outputs = [sam.decode(embeddings, Prompts(boxes=box), multimask=m) for m in (True, False)]
    parts = [part for o in outputs for part in (o.logits, o.iou, o.object_score)]
    return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.fixture
def predict() -> Callable[[Sam], Tensor]:
    """``predict(sam)``: logits and IoU of a fixed batch, flat, with gradients."""
    return _predict


@pytest.fixture
def perturb() -> Callable[[Injection], None]:
    """``perturb(injection)``: move every trained parameter, as training would."""

    def move(injection: Injection) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in injection.parameters.values():
                scale = 0.02 if parameter.any() else 0.1  # B and up-projections start at zero
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))

    return move


@pytest.fixture
def adapted(fresh: Callable[[], Sam], perturb: Callable[[Injection], None], tmp_path: Path):
    """``adapted(method, **options)``: (model, injection, saved directory), away from the start."""

    def make(name: str, **options: object) -> tuple[Sam, Injection, Path]:
        sam = fresh()
        record = AdapterRecord(
            base=sam.build.name,
            base_sha256=base_hash(sam),
            image_size=sam.image_size,
            num_masks=sam.build.num_multimask,
        )
        injection = inject(sam, find_method(name)(**options))
        perturb(injection)
        save_adapter(tmp_path / "adapter", sam, injection, record)
        return sam, injection, tmp_path / "adapter"

    return make


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder with programs that take SLURM's place; ``sbatch`` keeps the script it is given."""
    folder = tmp_path / "programs"
    folder.mkdir()
    sbatch = f'cp "$1" {folder}/script; echo Submitted batch job 71'
    for name, line in {"sbatch": sbatch, "srun": "", "sacct": ""}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
