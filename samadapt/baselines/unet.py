"""A 2D U-Net that stands in a run where SAM stands: MONAI's DynUNet, as nnU-Net shapes it.

It sees pictures at their own resolution and predicts every class without a prompt::

    image (h, w, n) uint8                       original frame
      |  frame "shrink": unchanged, or made smaller where it exceeds the square
      |  preprocess: z-score, pad right and below
      v
    pixels (b, n, s, s)                         they are the "embedding": nothing is frozen
      |  decode: the whole network
      v
    logits (b, 1, K, s, s)                      of the classes; the background has the logit 0
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from samadapt.baselines.build import UNetBuild
from samadapt.errors import PromptError
from samadapt.sam.segmentation_model import SegmentationModel
from samadapt.sam.types import MaskOutput, Preprocessing, Prompts
from samadapt.sam.watershed import Watershed


class UNet(SegmentationModel):
    """A U-Net with random or pretrained weights. All of its parameters are trained.

    Args:
        build: its shape.
        network: maps (b, n, s, s) to the logits (b, K, s, s); None: MONAI's DynUNet.
        watershed: separates objects by the distances that follow the logits; None: there are none.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        build: UNetBuild,
        network: nn.Module | None = None,
        watershed: Watershed | None = None,
    ) -> None:
        super().__init__()
        self.build, self._watershed = build, watershed
        self.image_size = self.embedding_size = build.image_size
        self.preprocessing = Preprocessing("mean_std", "shrink", build.mean, build.std)
        self.network = network or dynunet(build)
        self.register_module("dense_head", None)
        for name, values in (("pixel_mean", build.mean), ("pixel_std", build.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def input_channels(self) -> int:
        """Number of channels of the images that ``preprocess`` takes."""
        return self.build.channels

    @property
    def watershed(self) -> Watershed | None:
        """What separates the objects of a class; None: the model predicts classes alone."""
        return self._watershed

    @property
    def logits_side(self) -> int:
        """Side of the grid on which classes are predicted: that of the pixels."""
        return self.image_size

    def preprocess(
        self, images: Shaped[Tensor, "b n h w"] | Sequence[Shaped[Tensor, "n _ _"]]
    ) -> Float[Tensor, "b n s s"]:
        """Scale images to mean 0 and standard deviation 1, and pad them with zeros to the square.

        Args:
            images: (n, h, w) each, with sides of at most s pixels and values of 0 to 255.

        Returns:
            (b, n, s, s) on the device of the model.
        """
        size, padded = self.image_size, []
        for image in images:
            x = (image.to(self.device).float() - self.pixel_mean) / self.pixel_std
            padded.append(functional.pad(x, (0, size - x.shape[2], 0, size - x.shape[1])))
        return torch.stack(padded)

    def encode(
        self, images: Float[Tensor, "b n s s"], seen: list[Tensor] | None = None
    ) -> Float[Tensor, "b n s s"]:
        """Return the pixels as they are: no part of the network is shared by several prompts."""
        del seen
        return images

    def decode(
        self, embeddings: Float[Tensor, "b n s s"], prompts: Prompts, *, multimask: bool
    ) -> MaskOutput:
        """Run the network, with gradients.

        Args:
            embeddings: (b, n, s, s), from ``preprocess``.
            prompts: no prompt.
            multimask: it makes no difference.

        Returns:
            Logits (b, 1, K, s, s) of the classes, and with a watershed 2K distances behind them.
            The network estimates no IoU, so that is 0.

        Raises:
            PromptError: there are prompts.
        """
        del multimask
        if (prompts.points, prompts.boxes, prompts.masks) != (None, None, None):
            raise PromptError("a U-Net predicts its classes without prompts; it takes none")
        logits = self.network(embeddings)[:, None]
        return MaskOutput(logits, logits.new_zeros(logits.shape[:3]))


def dynunet(build: UNetBuild) -> nn.Module:
    """Return MONAI's DynUNet with 3x3 kernels, strides 1, 2, 2, ... and instance norm."""
    from monai.networks.nets.dynunet import DynUNet

    strides = [1] + [2] * (build.levels - 1)
    network: nn.Module = DynUNet(
        spatial_dims=2,
        in_channels=build.channels,
        out_channels=build.outputs,
        kernel_size=[3] * build.levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=build.widths,
        norm_name=("INSTANCE", {"affine": True}),
    )
    return network


def make_unet(build: UNetBuild, watershed: Watershed | None = None, *, fetch: bool = True) -> UNet:
    """Build a U-Net, plain or with an encoder of timm's.

    Args:
        build: its shape.
        watershed: separates objects; see ``UNet``.
        fetch: load pretrained weights where the build says so; False: weights are loaded later.

    Raises:
        ConfigError: timm has no such encoder, or it does not fit.
        WeightsError: pretrained weights cannot be fetched.
    """
    if not build.encoder:
        return UNet(build, watershed=watershed)
    from samadapt.baselines.encoders import EncoderUNet

    return UNet(build, EncoderUNet(build, fetch=fetch), watershed)
