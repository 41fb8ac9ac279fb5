"""A U-Net whose encoder is an ImageNet model of timm's, with MONAI's decoder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from samadapt.errors import ConfigError, WeightsError, nearest

if TYPE_CHECKING:
    from samadapt.baselines.build import UNetBuild

GROUPS = 32
"""Groups of the group norm that stands for batch norm, as in the paper (Wu and He 2018)."""

DECODER_WIDTHS = (256, 128, 64, 32, 16)
"""Filters of the decoder from the lowest resolution up, as in MONAI's FlexibleUNet."""

WHITE = 255.0
"""timm gives mean and standard deviation for values of 0 to 1."""


class EncoderUNet(nn.Module):
    """A timm encoder and a U-Net decoder on its feature maps.

    Batch norm with pretrained weights keeps their statistics, which a batch of a few slices would
    only blur. Without pretrained weights there are none to keep, so group norm takes its place.

    Args:
        build: names the encoder and gives the numbers of channels and classes.
        fetch: load pretrained weights where the build says so; False: the caller loads weights.

    Raises:
        ConfigError: timm has no such model, or it gives no feature maps that a U-Net can use.
        WeightsError: the pretrained weights cannot be fetched.
    """

    def __init__(self, build: UNetBuild, *, fetch: bool) -> None:
        from monai.networks.nets.flexible_unet import UNetDecoder

        super().__init__()
        self.encoder = feature_extractor(build, fetch=fetch)
        channels = check_features(self.encoder, build)
        if not build.pretrained:
            use_group_norm(self.encoder)
        widths = DECODER_WIDTHS[: len(channels)]
        self.skips = len(channels) - 1
        self.decoder = UNetDecoder(
            spatial_dims=2,
            encoder_channels=[build.channels, *channels],
            decoder_channels=widths,
            act=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            norm=("instance", {"affine": True}),
            dropout=0.0,
            bias=False,
            upsample="nontrainable",
            pre_conv="default",
            interp_mode="bilinear",
            align_corners=None,
            is_pad=False,
        )
        self.head = nn.Conv2d(widths[-1], build.outputs, kernel_size=3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (b, n, s, s) to the logits (b, K, s, s)."""
        logits: Tensor = self.head(self.decoder(self.encoder(pixels), self.skips))
        if logits.shape[2:] == pixels.shape[2:]:
            return logits
        # The first feature map of some encoders, such as ConvNeXt, has stride 4, so the decoder
        # ends at half the resolution.
        return functional.interpolate(logits, pixels.shape[2:], mode="bilinear")


def feature_extractor(build: UNetBuild, *, fetch: bool) -> nn.Module:
    """Return timm's model that gives the feature maps of all its resolutions.

    Raises:
        ConfigError: there is no such model, or it gives no feature maps.
        WeightsError: the pretrained weights cannot be fetched.
    """
    import timm

    name = build.encoder
    if not timm.is_model(name):
        raise ConfigError(
            f"baseline.encoder: timm has no model {name!r}{nearest(name, timm.list_models())}"
        )
    options: dict[str, Any] = {"features_only": True, "in_chans": build.channels}
    try:
        model: nn.Module = timm.create_model(name, pretrained=build.pretrained and fetch, **options)
    except Exception as error:  # timm and the hub raise whatever fits
        reason = str(error).partition("\n")[0]
        if build.pretrained and fetch:
            raise WeightsError(
                f"baseline.pretrained=true: timm cannot fetch the weights of {name}: {reason}. Use "
                "baseline.pretrained=false, or a machine that reaches the Hugging Face Hub"
            ) from error
        raise ConfigError(
            f"baseline.encoder={name}: timm gives no feature maps of this model: {reason}. Use a "
            "convolutional one, such as resnet34 or efficientnet_b0"
        ) from error
    return model


def check_features(encoder: Any, build: UNetBuild) -> list[int]:
    """Return the channels of an encoder's feature maps, each half as large as the one before.

    Raises:
        ConfigError: the feature maps are of other sizes.
    """
    channels, strides = list(encoder.feature_info.channels()), encoder.feature_info.reduction()
    first, side = strides[0], build.image_size
    halved = [first * 2**level for level in range(len(strides))]
    fits = strides == halved and first in (2, 4) and strides[-1] <= 32 and len(strides) >= 3
    if fits:
        # Some transformers return (b, h, w, c), or refuse other sizes than that of their training.
        expected = [(1, c, side // s, side // s) for c, s in zip(channels, strides, strict=True)]
        with torch.no_grad():
            try:
                maps = encoder.eval()(torch.zeros(1, build.channels, side, side))
                fits = [tuple(found.shape) for found in maps] == expected
            except (RuntimeError, ValueError, AssertionError):
                fits = False
    if not fits:
        raise ConfigError(
            f"baseline.encoder={build.encoder}: a U-Net needs feature maps of strides 2 or 4, each "
            f"half as large as the one before, down to 32; this model has strides {strides}. Use a "
            "convolutional one, such as resnet34 or efficientnet_b0"
        )
    return channels


def use_group_norm(module: nn.Module) -> None:
    """Replace every batch norm by a group norm, with the activation that timm fuses into it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = math.gcd(GROUPS, child.num_features)
            fused = [part for part in ("drop", "act") if hasattr(child, part)]
            norm = nn.GroupNorm(groups, child.num_features)
            setattr(module, name, nn.Sequential(norm, *(getattr(child, part) for part in fused)))
        else:
            use_group_norm(child)


def imagenet_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation (3,) of the pictures that a timm model was trained on."""
    import timm
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # there is no such tag, which ``feature_extractor`` reports
        known = None
    mean = known.mean if known else IMAGENET_DEFAULT_MEAN
    std = known.std if known else IMAGENET_DEFAULT_STD
    return tuple(WHITE * value for value in mean), tuple(WHITE * value for value in std)
