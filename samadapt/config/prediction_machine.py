"""Keys of the commands that find masks in files: the model, number format and device."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.schema import BuildName, Device, Precision
from samadapt.errors import ConfigError
from samadapt.system.settings import Settings, Whole


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
    compile: bool = Field(
        default=False,
        description="torch.compile, for GPUs; minutes to start",
    )


@dataclass(frozen=True)
class ChosenModel(PredictionMachine):
    """Which model finds the masks: an adapter, or a base model without one."""

    adapter: str | None = Field(
        default=None,
        description="adapter directory, or hf:USER/NAME[@REVISION] on the Hugging Face Hub; null: "
        "the base model that model names",
    )
    model: BuildName | None = Field(
        default=None, description="base model without an adapter (`samadapt ls models`)"
    )
    image_size: Whole | None = Field(
        default=None,
        ge=1,
        description="for model: side of the square that images are resized to, in pixels; null: "
        "the size that it was pretrained with",
    )
    intensity: str | None = Field(
        default=None,
        description="for model: how values become grey, such as rgb, microscopy, mri or "
        "ct:soft_tissue; null: rgb",
    )
    axis: str | None = Field(
        default=None,
        description="for model: which slices of a volume are seen: axial, coronal or sagittal; "
        "null: those with the largest spacing",
    )

    def check_model(self, command: str) -> None:
        """Refuse keys of the model that contradict each other.

        Args:
            command: the command that asks, for the message.

        Raises:
            ConfigError: naming the keys.
        """
        if (self.adapter is None) == (self.model is None):
            raise ConfigError(
                f"{command}: expected adapter=DIR, or model=NAME for a base model without an "
                "adapter; got " + ("neither" if self.model is None else "both")
            )
        of_model = ("image_size", "intensity", "axis")
        own = [key for key in of_model if getattr(self, key) is not None]
        if self.adapter is not None and own:
            raise ConfigError(f"{own[0]}: the adapter records it; this key is for model=NAME")
