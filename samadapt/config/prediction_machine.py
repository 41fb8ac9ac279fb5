"""Keys of the commands that find masks in files: base weights, number format and device."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.schema import Device, Precision
from samadapt.system.settings import Settings


@dataclass(frozen=True)
class PredictionMachine(Settings):
    """Where the base weights are, and on what the model computes in which number format."""

    checkpoint: str | None = Field(
        default=None, description="file of the base weights; null: search by the model's name"
    )
    precision: Precision = Field(
        default="fp32",
        description="number format of the computation; fp32 gives the same masks on every device; "
        "auto: bf16 where the device is fast in it",
    )
    device: Device = Field(
        default="auto",
        description="where to compute; auto: cuda if there is one, then mps, then cpu",
    )
