"""The keys of the group ``baseline``, the model that trains in SAM's place; see ``schema.py``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.train import MAX_LR
from samadapt.system.settings import Settings, Whole

# `samadapt ls` shows the texts of this table.
BASELINES = {
    "unet": "MONAI's DynUNet, from scratch and without prompts; baseline.encoder=NAME takes an "
    "ImageNet model of timm as its encoder",
}


@dataclass(frozen=True)
class Baseline(Settings):
    """The model that trains in SAM's place, to compare the two on the same slices and steps."""

    section: ClassVar[str] = "baseline"

    name: Literal["unet"] | None = Field(
        default=None,
        description="unet: train a U-Net from scratch instead of adapting SAM, on the same slices, "
        "with the same augmentation, steps, validation and scores, always without prompts; the "
        "keys of this group take the place of model and peft, and of train.batch_size, lr, "
        "weight_decay, warmup_steps, schedule and clip; null: adapt SAM",
    )
    image_size: Whole | None = Field(
        default=None,
        ge=16,
        description="side in pixels of the square that the U-Net sees, a multiple of 16; larger "
        "pictures are resized to it, smaller ones keep their pixels; null: the longest side of the "
        "training pictures, rounded up, at most 512",
    )
    filters: Whole = Field(
        default=32,
        ge=4,
        le=256,
        description="filters at the full resolution; each lower resolution has twice as many, up "
        "to 256",
    )
    encoder: str | None = Field(
        default=None,
        description="name of a convolutional timm model, such as resnet34, as the encoder of the "
        "U-Net; null: plain convolutions",
    )
    pretrained: bool = Field(
        default=False,
        description="start baseline.encoder from its ImageNet weights, which timm downloads",
    )
    batch_size: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="slices in a step; auto: 12, or, where time alone limits the training, 12 of "
        "up to 182 pixels and fewer of larger ones, at least 2",
    )
    lr: float = Field(default=3e-3, gt=0, le=MAX_LR, description="peak learning rate of AdamW")
    encoder_lr: float | None = Field(
        default=None,
        gt=0,
        le=MAX_LR,
        description="peak learning rate of the encoder; null: baseline.lr, or a tenth of it where "
        "baseline.pretrained is true",
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="weight decay of AdamW")
    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the steps over which the learning rate rises linearly",
    )
    schedule: Literal["cosine", "poly", "constant"] = Field(
        default="poly", description="learning rate after the warm-up; see train.schedule"
    )
    clip: float = Field(
        default=5.0, ge=0, description="largest norm of the gradient; see train.clip"
    )
