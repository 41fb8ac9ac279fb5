"""The keys of the group ``train``, such as ``train.steps``; ``schema.py`` has all other groups."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.described import OfMethod
from samadapt.errors import ConfigError
from samadapt.system.settings import Settings, Tuple, Whole

DECODER_LR = 1e-3
STEPS = 150

MAX_LR = 1.0
"""AdamW moves each weight by about the learning rate in a step; above 1 nothing is learned."""

# fmt: off
Augmentation = Literal[
    "flip", "rotate90", "rotate", "scale", "zoom", "crop",
    "intensity", "noise", "bias_field", "colour",
]
# fmt: on


@dataclass(frozen=True)
class Train(Settings):
    """How long, in which batches and at which learning rate the training loop runs."""

    section: ClassVar[str] = "train"

    steps: Whole | None = Field(
        default=None,
        ge=1,
        description=f"number of optimizer steps; null: {STEPS}, or as many as train.max_seconds or "
        "train.max_cpu_seconds allows",
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="seconds that training may take, from the first frozen feature to the last "
        "validation; reading the data, loading the model and the final scores are not part of it; "
        "the learning rate follows the time; null: no limit",
    )
    max_cpu_seconds: float | None = Field(
        default=None,
        gt=0,
        description="the same in CPU seconds, of all threads of the process; null: no limit",
    )
    batch_size: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field(
        default=4,
        description="slices in a batch of all processes together; a multiple of peft.depth and of "
        "head.depth; auto: the neighbouring slices that are seen together in volumes, and else 2 "
        "to 8 by the size of the pictures",
    )
    accumulate: Whole = Field(default=1, ge=1, description="number of batches summed into one step")
    lr: OfMethod[float | None] = Field(
        default=None,
        gt=0,
        le=MAX_LR,
        description="peak learning rate of the injected layers; null: the method's own, which "
        "`samadapt ls peft` shows",
    )
    decoder_lr: float | None = Field(
        default=None,
        gt=0,
        le=MAX_LR,
        description="peak learning rate of the mask decoder and of a memory that trains; null: the "
        f"value of train.lr, or {DECODER_LR:g} where that is null too",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay of AdamW")
    warmup_steps: Whole = Field(
        default=10, ge=0, description="number of steps over which the learning rate rises linearly"
    )
    schedule: Literal["cosine", "poly", "constant"] = Field(
        default="cosine",
        description="learning rate after the warm-up: it falls to 0 "
        "(cosine, poly) or stays constant",
    )
    clip: float = Field(
        default=1.0,
        ge=0,
        description="largest norm of the gradient; longer ones are scaled down; 0: off",
    )
    validate_every: Whole = Field(
        default=50, ge=0, description="number of steps between validations; 0: only at the end"
    )
    validate_cases: Whole | None = Field(
        default=None,
        ge=0,
        description="largest number of training cases that choose the best step and do not train; "
        "null: one in ten; 0: every case trains, and the last weights are kept",
    )
    checkpoint_every: Whole = Field(
        default=50, ge=0, description="number of steps between checkpoints; 0: only at the end"
    )
    augment: Literal["auto"] | Tuple[Augmentation] = Field(
        default=(),
        description="random changes of the training slices, each applied with probability 1/2; "
        "auto: those that fit the kind of image, see docs/explanation/augmentation.md",
    )
    recompute: bool = Field(
        default=False,
        description="run each trained block a second time in the backward pass instead of storing "
        "it: less memory, slower, same result",
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the exponential moving average of the weights, such as 0.99; the "
        "average is validated and kept; 0: off",
    )
    patience: Whole = Field(
        default=0,
        ge=0,
        description="stop after this many validations in a row without a better score; 0: never",
    )

    @property
    def slices(self) -> int:
        """The slices in a batch: ``batch_size``, once ``runs/batch_size.py`` has settled it.

        Raises:
            ConfigError: it is still ``auto``.
        """
        if self.batch_size == "auto":
            raise ConfigError("train.batch_size=auto: expected the number that it means here")
        return self.batch_size

    def __post_init__(self) -> None:
        """Refuse a patience that would count nothing.

        Raises:
            ConfigError: naming the two keys.
        """
        for key, why in (("validate_cases", "has none"), ("validate_every", "has one, at the end")):
            if self.patience and getattr(self, key) == 0:
                raise ConfigError(
                    f"train.patience={self.patience} counts validations, and train.{key}=0 {why}: "
                    "leave one of the two out"
                )
