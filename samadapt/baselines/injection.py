"""What a run trains of a U-Net: everything."""

from __future__ import annotations

from dataclasses import dataclass

from samadapt.adapters.injection import Injection
from samadapt.baselines.build import UNetBuild
from samadapt.baselines.unet import UNet
from samadapt.methods.none import NoAdaptation

ENCODER = ("network.encoder.", "network.input_block.", "network.downsamples.", "network.bottleneck")
"""Prefixes of the encoder's parameters; all others belong to the decoder."""


@dataclass
class WholeModel(Injection):
    """All parameters of a U-Net, in the place of the few that a method injects into SAM.

    Attributes:
        build: the shape of the U-Net.
    """

    build: UNetBuild

    def report(self) -> str:
        """Return what the model is, as lines of text."""
        build = self.build
        shape = f"{build.levels} resolutions, filters {', '.join(map(str, build.widths))}"
        rows = {
            "model": f"{build.title}; {shape if not build.encoder else 'a decoder of MONAI'}",
            "input": f"{build.channels} channels, {build.image_size} x {build.image_size} pixels; "
            "smaller pictures keep their pixels, larger ones are resized",
            "trained": f"{self.trainable:,} parameters, all of them",
        }
        return "\n".join(f"{key:<8} {text}" for key, text in rows.items())


def train_everything(model: UNet) -> WholeModel:
    """Return all parameters of a U-Net by group: ``"encoder"`` and ``"decoder"``."""
    parameters = dict(model.named_parameters())
    groups: dict[str, list[str]] = {}
    for name in parameters:
        groups.setdefault("encoder" if name.startswith(ENCODER) else "decoder", []).append(name)
    return WholeModel(
        method=NoAdaptation(),  # it adds no layer, no penalty and no step of its own
        base_name="unet",
        attention_blocks=(),
        depth=0,
        first_trainable_block=-1,  # nothing is frozen, so the pixels are the features
        groups=groups,
        total=sum(parameter.numel() for parameter in parameters.values()),
        peft=(),
        parameters=parameters,
        build=model.build,
    )
