"""Adapters away from the start, saved beside the random base that they were trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.data.intensity import make_intensity
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.model import Sam
from samadapt.sam.weights.loading import base_hash

Save = Callable[..., tuple[Path, Sam]]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """``save(base, method, masks=3, classes=0, background=False, name="adapter", **options)``.

    Gives (directory, adapted model); ``classes`` is the number of class tokens.
    """
    monkeypatch.chdir(tmp_path)  # the record holds the bare name of the base's file

    def make(
        base: Sam,
        method: str = "lora",
        *,
        masks: int = 3,
        classes: int = 0,
        background: bool = False,
        name: str = "adapter",
        scale: float = 0.05,
        **options: object,
    ) -> tuple[Path, Sam]:
        weights = tmp_path / f"{base.build.name}-base.safetensors"
        if not weights.exists():
            save_file(base.state_dict(), weights)
        sam = copy.deepcopy(base)
        digest = base_hash(sam)
        if masks != 3:
            sam.resize_mask_tokens(masks)
        if classes:
            sam.add_class_tokens(classes, background=background)
        injection = inject(sam, find_method(method)(**options))
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in injection.parameters.values():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        record = AdapterRecord(
            base=sam.build.name,
            base_sha256=digest,
            checkpoint=str(weights),
            image_size=sam.image_size,
            num_masks=masks,
            class_tokens=classes,
            preprocessing=asdict(sam.preprocessing),
            intensity=make_intensity("rgb").to_dict(),
            classes=[f"class {k}" for k in range(classes)] or ["cell"],
            prompt=PromptPolicy("box", background_token=background).to_dict(),
            data="toy",
            scores={"dice": 0.5},
        )
        save_adapter(tmp_path / name, sam, injection, record)
        return tmp_path / name, sam.eval().requires_grad_(False)

    return make
