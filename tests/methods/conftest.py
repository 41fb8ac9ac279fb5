"""Fresh models, a toy batch and a short training that the tests of the methods share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from samadapt.adapters.injection import Injection, inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.methods.base import find_method
from samadapt.sam.model import Sam
from samadapt.sam.types import Prompts
from samadapt.sam.weights.loading import base_hash

Fresh = Callable[[], Sam]


@pytest.fixture(params=["tiny_sam", "tiny_t_sam"])
def fresh(request: pytest.FixtureRequest) -> Fresh:
    """``fresh()``: another copy of the same random base, of each build in turn."""
    base: Sam = request.getfixturevalue(request.param)
    return lambda: copy.deepcopy(base)


def _predict(sam: Sam, count: int = 2) -> Tensor:
    """Every mask, multimask and single, and every IoU, of a fixed batch in one vector."""
    torch.manual_seed(0)
    images = torch.randn(count, 3, sam.image_size, sam.image_size)
    box = torch.tensor([[[4.0, 6.0, 40.0, 50.0]], [[20.0, 12.0, 60.0, 44.0]]])
    box = box.repeat(count // 2, 1, 1)
    embeddings = sam.encode(images)
    outputs = [sam.decode(embeddings, Prompts(boxes=box), multimask=m) for m in (True, False)]
    return torch.cat([part.flatten() for o in outputs for part in (o.logits, o.iou)])


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


def _loss(sam: Sam) -> Tensor:
    output = _predict(sam, 4).float()
    return (output - torch.linspace(-1, 1, len(output)).sin()).square().mean()


@pytest.fixture
def loss() -> Callable[[Sam], Tensor]:
    """``loss(sam)``: what ``train`` lowers."""
    return _loss


@pytest.fixture
def train() -> Callable[[Sam, Injection, int], list[float]]:
    """``train(sam, injection, steps)``: 4 images, AdamW with weight decay, a fixed target."""

    def steps(sam: Sam, injection: Injection, count: int) -> list[float]:
        optimizer = torch.optim.AdamW(injection.parameters.values(), lr=5e-3, weight_decay=0.1)
        losses = []
        injection.set_training(sam)
        for step in range(count):
            loss = _loss(sam)
            optimizer.zero_grad()
            (loss + injection.method.penalty(sam)).backward()
            optimizer.step()
            injection.method.after_step(sam, step + 1, 100)
            losses.append(loss.item())
        injection.set_training(sam, False)
        return losses

    return steps


@pytest.fixture
def adapted(fresh: Fresh, perturb: Callable[[Injection], None], tmp_path: Path):
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
