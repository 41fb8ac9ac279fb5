"""What is trained: methods, their sizes, tasks, seeds, and the search for a learning rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import results

Task = Literal["box", "semantic"]
Size = Literal["small", "medium", "large"]

TASKS: Mapping[Task, tuple[str, ...]] = {
    "box": ("prompts=box", "data.merge_classes=true"),
    "semantic": ("prompts=semantic", "data.merge_classes=false", "data.empty_slices=drop"),
}
SIZES: tuple[Size, ...] = ("small", "medium", "large")
SEEDS = (0, 1, 2)

_RANKS = ({"rank": 2}, {"rank": 8}, {"rank": 32})
_WIDTHS = ({"hidden": 8}, {"hidden": 32}, {"hidden": 128})
_DEPTHS = ({"blocks": "last:1"}, {"blocks": "last:2"}, {"blocks": "last:4"})
METHODS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "decoder": (
        {"decoder": "lora", "decoder_rank": 4},
        {"decoder": "lora", "decoder_rank": 16},
        {"decoder": "full"},
    ),
    "lora": _RANKS,
    "dora": _RANKS,
    "pissa": _RANKS,
    "adalora": (
        {"rank": 2, "first_rank": 4},
        {"rank": 8, "first_rank": 16},
        {"rank": 32, "first_rank": 64},
    ),
    "loha": _RANKS,
    "lokr": _RANKS,
    "conv_lora": _RANKS,
    "fact": ({"rank": 4}, {"rank": 16}, {"rank": 64}),
    "vera": ({"rank": 64}, {"rank": 256}, {"rank": 1024}),
    "oft": ({"block_size": 4}, {"block_size": 8}, {"block_size": 32}),
    "ia3": (
        {"targets": ["qkv"]},
        {"targets": ["qkv", "mlp"]},
        {"targets": ["qkv", "proj", "mlp"]},
    ),
    "houlsby": _WIDTHS,
    "adaptformer": _WIDTHS,
    "adapter": _WIDTHS,
    "prompt_tokens": ({"tokens": 2}, {"tokens": 8}, {"tokens": 32}),
    "ssf": _DEPTHS,
    "bias": _DEPTHS,
    "layernorm": _DEPTHS,
    "late_blocks": _DEPTHS,
    "full": _DEPTHS,
}
"""Options of each method, small, medium and large. Where a method has no size of its own, it grows
by blocks."""

FORMER_NAMES = {"none": "decoder"}
"""Names in the results that mean something else today: ``peft=none`` trained the decoder, too."""

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_RATES = (3e-4, 1e-3, 3e-3)


@dataclass(frozen=True)
class Settings:
    """What all trials have in common.

    Attributes:
        steps: optimizer steps.
        batch_size: images a step.
        image_size: in pixels.
        blocks: where methods that do not grow by blocks are placed.
        decoder_lr: learning rate of the decoder, which is trained whole beside each method.
        max_cases: volumes; every fifth is held out.
        test_every: of their slices, one in so many is scored.
    """

    steps: int = 60
    batch_size: int = 4
    image_size: int = 84
    blocks: str = "last:2"
    decoder_lr: float = 2e-3
    max_cases: int = 60
    test_every: int = 3


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        method, size, task: what.
        lr: of the method's own parameters, for ``decoder`` of the decoder.
        seed: of initialisation, data order and prompts.
    """

    method: str
    size: Size
    task: Task
    lr: float
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        """The method's options of this size."""
        return METHODS[self.method][SIZES.index(self.size)]

    def overrides(self, settings: Settings) -> list[str]:
        """Return what ``samadapt finetune recipe=hippocampus`` would be given."""
        options = {"blocks": settings.blocks, **self.options}
        decoder_lr = self.lr if self.method == "decoder" else settings.decoder_lr
        return [
            *TASKS[self.task],
            f"peft={self.method}",
            *(f"peft.{key}={json.dumps(value)}" for key, value in options.items()),
            f"model.image_size={settings.image_size}",
            f"data.max_cases={settings.max_cases}",
            f"train.steps={settings.steps}",
            f"train.batch_size={settings.batch_size}",
            f"train.lr={self.lr}",
            f"train.decoder_lr={decoder_lr}",
            "train.validate_every=0",
            f"seed={self.seed}",
        ]


Train = Callable[[Trial], float]


def read_trials(path: Path) -> list[dict[str, Any]]:
    """Return the recorded trials under the names that methods have today."""
    rows = results.read(path)
    for row in rows:
        trial = row["trial"]
        trial["method"] = FORMER_NAMES.get(trial["method"], trial["method"])
    return rows


def search(method: str, train: Train) -> float:
    """Return the learning rate with the best validation Dice without a prompt.

    It is searched at the medium size with seed 0: three rates at first, and as long as the best
    one is at an edge, the next one beyond it as well.

    Args:
        method: its name.
        train: trains, and returns the validation Dice.
    """
    first, last = (RATES.index(rate) for rate in (FIRST_RATES[0], FIRST_RATES[-1]))
    found = {rate: train(searched(method, rate)) for rate in FIRST_RATES}
    while True:
        best = max(found, key=lambda rate: found[rate])
        place = RATES.index(best)
        if place == first > 0:
            first -= 1
            rate = RATES[first]
        elif place == last < len(RATES) - 1:
            last += 1
            rate = RATES[last]
        else:
            return best
        found[rate] = train(searched(method, rate))


def searched(method: str, rate: float) -> Trial:
    """Return the trial of a rate."""
    return Trial(method, "medium", "semantic", rate, SEEDS[0])
