"""The arms: command lines of samadapt, the same for every data set but for how it is read.

``today`` is frozen: it names copies of the recipes as they were before issue 16, so that it stays
the same when the recipes change. An arm whose keys change is measured anew (see ``plan.Cell``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.few_labels.domains import Domain

NEW = "few_labels"
"""The recipe of the U-Net and of all new arms."""
BUDGET = "train.max_cpu_seconds"
"""The key that ends a run, features and validation included."""
NO_OTHER_END = ("train.steps=null", "train.max_seconds=null")
"""Given to every arm: the budget alone ends a run, and the schedule follows it."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: its name in the results.
        title: its heading in the tables.
        recipe: returns the recipe for a data set: a name, or a file in this folder.
        keys: returns the keys beside the recipe, the reading of the data set apart.
        has_boxes: whether it is prompted with boxes from the ground truth.
    """

    name: str
    title: str
    recipe: Callable[[Domain], str]
    keys: Callable[[Domain], tuple[str, ...]]
    has_boxes: bool = False


def _today(domain: Domain) -> str:
    by_name = {"msd_hippocampus": "hippocampus_parts", "acdc": "medical"}
    return f"today/{by_name.get(domain.name, 'photos')}.yaml"


def _today_keys(domain: Domain) -> tuple[str, ...]:
    # As in the issue: SAM's decoder needs a higher rate to learn without prompts.
    photos = ("prompts=semantic", "train.decoder_lr=2e-3")
    return photos if _today(domain).endswith("photos.yaml") else ()


def _same(*keys: str) -> Callable[[Domain], tuple[str, ...]]:
    return lambda domain: keys


ARMS = {
    arm.name: arm
    for arm in (
        Arm("unet", "U-Net from scratch", lambda d: NEW, _same("baseline=unet")),
        Arm("today", "recipe before", _today, _today_keys),
        Arm(
            "frozen",
            "dense decoder, frozen encoder",
            lambda d: NEW,
            _same("peft=none"),
        ),
        # The recipe itself would leave the encoder of small crops frozen.
        Arm("lora", "dense decoder, LoRA", lambda d: NEW, _same("peft.blocks=last:8")),
        Arm("box", "with box prompts", _today, _same("prompts=box"), has_boxes=True),
    )
}
BASELINE = "unet"
CANDIDATES = ("frozen", "lora")
"""The new arms; the better one is measured with the large budget, too."""
