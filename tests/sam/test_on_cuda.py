"""SAM on CUDA without a GPU: fake tensors know their device, and operands on two devices fail.

Values are not computed, and kernels do not run. What is seen is that nothing is left on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from samadapt.sam.attention import layer
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.types import Prompts


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with FakeTensorMode(), torch.no_grad():
        yield


def on_cuda(name: str, image_size: int | None = None) -> tuple[Sam, Tensor]:
    with torch.device("cuda"):
        sam = build_sam(name, image_size=image_size).eval()
        side = sam.image_size
        return sam, torch.empty(2, 3, side, side)


def test_every_backend_of_attention_stays_on_the_device(monkeypatch) -> None:
    sam, images = on_cuda("tiny", 96)  # windows that do not divide the grid
    for backend in ("folded", "tiled", "fused"):
        choose = partial(lambda *given, windowed, backend: backend, backend=backend)
        monkeypatch.setattr(layer, "choose_backend", choose)
        assert sam.encode(images).device.type == "cuda"


def test_the_encoder_of_vit_h_takes_the_folded_form(monkeypatch) -> None:
    """At its real size: heads of 80 channels, a grid of 64 and windows of 14."""
    monkeypatch.setattr("samadapt.sam.attention.dispatch.is_traced", lambda x: False)
    chosen = []

    def choose(*given, windowed: bool) -> str:
        chosen.append(layer_choice(*given, windowed=windowed))
        return chosen[-1]

    layer_choice = layer.choose_backend
    monkeypatch.setattr(layer, "choose_backend", choose)
    sam, images = on_cuda("vit_h")
    assert sam.encode(images[:1]).shape == (1, 256, 64, 64)
    assert chosen == ["folded"] * 32


@pytest.mark.parametrize("name", ["tiny", "tiny_t"])
def test_prefix_suffix_and_every_prompt_stay_on_the_device(name: str) -> None:
    sam, images = on_cuda(name)
    embedding = sam.encode_suffix(sam.encode_prefix(images, 1), 1)
    side = sam.image_size / 2
    with torch.device("cuda"):
        prompts = Prompts(
            boxes=torch.full((2, 3, 4), side),
            points=torch.full((2, 3, 2, 2), side),
            point_labels=torch.ones(2, 3, 2, dtype=torch.int),
            masks=torch.zeros(2, 3, 1, 4 * sam.embedding_size, 4 * sam.embedding_size),
        )
    for multimask in (False, True):
        output = sam.decode(embedding, prompts, multimask=multimask)
        assert output.logits.device.type == output.iou.device.type == "cuda"
    assert sam.decode_classes(embedding).logits.device.type == "cuda"


def test_preprocessing_moves_pictures_to_the_device() -> None:
    sam, _ = on_cuda("tiny")
    assert sam.preprocess(torch.zeros(2, 3, 40, 64, dtype=torch.uint8)).device.type == "cuda"


def test_an_operand_on_the_cpu_would_be_seen() -> None:
    sam, images = on_cuda("tiny")
    with pytest.raises(RuntimeError, match="devices"):
        sam.encode(images) + torch.zeros(2, 64, 8, 8)
