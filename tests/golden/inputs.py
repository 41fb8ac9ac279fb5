"""What the golden files were made from, the same on every machine: base weights and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

BASE, PICTURES = "base.safetensors", "pictures"
CLASSES = 4

RECIPE = f"""
model: {{name: tiny, checkpoint: {BASE}}}
data: {{name: folder, root: {PICTURES}}}
train: {{steps: 12, batch_size: 2, warmup_steps: 1, lr: 0.003,
  validate_every: 3, checkpoint_every: 6}}
eval: {{overlays: 0}}
output: {{dir: runs}}
precision: fp32
device: cpu
"""
ADAPTERS = {
    "lora_box": (
        "peft=lora",
        "peft.rank=2",
        "peft.decoder_rank=1",
        "peft.decoder=lora",
        "data.merge_classes=true",
    ),
    "conv_lora_point": (
        "peft=conv_lora",
        "peft.experts=2",
        "peft.decoder=frozen",
        "prompts=point",
        "data.merge_classes=true",
    ),
    "fact_semantic": ("peft=fact", "peft.rank=4", "peft.decoder=own", "prompts=semantic"),
}
"""Each adapter directory by name, and what `samadapt finetune` was told beside ``RECIPE``."""

PROMPTS = {
    "lora_box": {"boxes": [3, 4, 11, 12]},
    "conv_lora_point": {"points": [[7, 8]]},
    "fact_semantic": {},
}
"""How each adapter was prompted on ``image()``."""


def write_base(folder: Path) -> Path:
    """Write base weights of the build ``tiny`` whose bits do not depend on torch's generator."""
    import torch
    from safetensors.torch import save_file

    from samadapt import load_sam

    rng, tensors = np.random.default_rng(15), {}
    for name, like in sorted(load_sam("tiny").state_dict().items()):
        steps = rng.integers(-(2**15), 2**15, tuple(like.shape)) / 2**15
        if like.ndim > 1:
            values = steps * np.sqrt(3 / max(1, like[0].numel()))
        else:
            values = 0.1 * steps + float(name.endswith("weight"))
        tensors[name] = torch.from_numpy(np.asarray(values, np.float32))
    save_file(tensors, folder / BASE)
    return folder / BASE


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a dark picture (24, 40, 3) and its labels (24, 40), a bright rectangle a class."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((24, 40), np.uint8)
    for number in range(CLASSES):
        row, column = rng.integers(1, 16), 10 * number + rng.integers(0, 3)
        labels[row : row + 7, column : column + 7] = number + 1
    image = rng.integers(0, 40, (24, 40, 3), dtype=np.uint8)
    image[labels > 0] += (50 * labels[labels > 0])[:, None]
    return image, labels


def write_pictures(folder: Path) -> Path:
    """Write ``images/`` and ``masks/`` of eight pictures."""
    for part in ("images", "masks"):
        (folder / PICTURES / part).mkdir(parents=True)
    for seed in range(8):
        for part, pixels in zip(("images", "masks"), picture(seed), strict=True):
            Image.fromarray(pixels).save(folder / PICTURES / part / f"p{seed}.png")
    return folder / PICTURES


def image() -> np.ndarray:
    """Return the picture (24, 40, 3) on which every adapter's labels were recorded."""
    return picture(100)[0]
