"""The Segment Anything Model (Kirillov et al. 2023): preprocess, encode, decode, postprocess.

Every step takes a batch of images, and decoding takes a batch of prompted objects for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from samadapt.errors import ConfigError, PromptError, nearest
from samadapt.sam.class_tokens import ClassTokens
from samadapt.sam.dense_head import DenseHead, HeadSettings
from samadapt.sam.hiera import HieraEncoder
from samadapt.sam.image_encoder import ImageEncoderViT
from samadapt.sam.mask_decoder_fast import FastMaskDecoder
from samadapt.sam.prompt_encoder import PromptEncoder, Sam2PromptEncoder
from samadapt.sam.prompt_generator import PromptGenerator
from samadapt.sam.rope_vit import RotaryViTEncoder
from samadapt.sam.sam2_mask_decoder import Sam2MaskDecoder
from samadapt.sam.segmentation_model import SegmentationModel
from samadapt.sam.tiny_vit import TinyViTEncoder
from samadapt.sam.types import AttentionBlock, Frame, Level, MaskOutput, Prompts
from samadapt.sam.video_memory import VideoMemory, make_memory
from samadapt.sam.watershed import Watershed
from samadapt.sam.weights.builds import BUILDS, Build

# The inputs and outputs of a graph that ``torch.export`` makes of the model.
for _values in (Prompts, MaskOutput):
    torch.export.register_dataclass(_values, serialized_type_name=f"samadapt.{_values.__name__}")


_ImageEncoder = ImageEncoderViT | TinyViTEncoder | HieraEncoder | RotaryViTEncoder
_ENCODERS: dict[str, type[_ImageEncoder]] = {
    "vit": ImageEncoderViT,
    "tiny_vit": TinyViTEncoder,
    "hiera": HieraEncoder,
    "rope_vit": RotaryViTEncoder,
}


class Sam(SegmentationModel):
    """SAM for one image size s. The image embedding has g x g cells, with g = s / ``build.stride``.

    A cell has e channels: c, the width of the prompts, in the first SAM, and 4c in SAM 2 and SAM 3,
    whose decoder also reads finer maps (``sam2_mask_decoder``).

    Args:
        build: sizes of the parts of the model.
        image_size: side s of the model's square in pixels; a multiple of ``build.side_step``.

    Raises:
        ConfigError: ``image_size`` is not such a multiple.

    Attributes:
        memory: tensors of SAM 2's memory of a video by their published names, as the weights' file
            has them. Still images do not need them; a file that is exported holds them again.
            A memory that trains is ``video_memory`` instead.
    """

    adapter_names: tuple[str, ...] = ()
    """Names of the methods that were injected into this model; empty for a plain one."""
    pixel_mean: Tensor
    pixel_std: Tensor
    input_projection: nn.Conv2d | None
    """Maps images of more than three channels to three; None if images have three."""
    class_tokens: ClassTokens | None
    """Predict classes without a prompt; None: the multimask tokens do, if anything does."""
    prompt_generator: PromptGenerator | None
    """Makes the prompts of classes; None: classes have tokens and no prompts."""
    video_memory: VideoMemory | None
    """The memory of a video if an adapter trains it; None: ``memory`` has it, if anything does."""

    def __init__(self, build: Build, image_size: int) -> None:
        super().__init__()
        if image_size < build.side_step or image_size % build.side_step:
            raise ConfigError(
                f"image_size must be a positive multiple of {build.side_step} for {build.name}; "
                f"got {image_size}"
            )
        self.build = build
        self.image_size = image_size
        self.embedding_size = image_size // build.stride
        self.preprocessing = build.preprocessing
        is_first = build.version == "1"
        self.memory: dict[str, Tensor] = {}
        self.image_encoder: _ImageEncoder = _ENCODERS[build.encoder](build, image_size)
        prompt_encoder = PromptEncoder if is_first else Sam2PromptEncoder
        self.prompt_encoder = prompt_encoder(
            build.prompt_width, self.embedding_size, image_size, build.mask_channels
        )
        decoder = FastMaskDecoder if is_first else Sam2MaskDecoder
        self.mask_decoder = decoder(
            build.prompt_width,
            depth=build.decoder_depth,
            heads=build.decoder_heads,
            mlp=build.decoder_mlp,
            iou_width=build.iou_width,
            num_multimask=build.num_multimask,
        )
        self.register_module("input_projection", None)
        self.register_module("class_tokens", None)
        self.register_module("prompt_generator", None)
        self.register_module("dense_head", None)
        self.register_module("video_memory", None)
        mean, std = (torch.tensor(v) for v in (self.preprocessing.mean, self.preprocessing.std))
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.mask_decoder.iou_token.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.mask_decoder.iou_token.weight.dtype

    def preprocess(
        self, images: Shaped[Tensor, "b n h w"] | Sequence[Shaped[Tensor, "n _ _"]]
    ) -> Float[Tensor, "b 3 s s"]:
        """Normalise images as ``self.preprocessing`` says and pad them with zeros to the square.

        The padding is on the right and below. An input projection comes first and gets gradients.

        Args:
            images: (b, 3, h, w), or a list of (3, h, w) that may differ in size; RGB values of 0 to
                255 of any type. They are resized already: no side is longer than s. With an input
                projection, images have its number n of channels.

        Returns:
            (b, 3, s, s) on the device of the model and of its type.

        Raises:
            ValueError: an image has another shape.
        """
        return torch.stack([self._preprocess_one(image) for image in images])

    def _preprocess_one(self, image: Tensor) -> Tensor:
        size = self.image_size
        if (
            image.ndim != 3
            or image.shape[0] != self.input_channels
            or not 0 < min(image.shape[1:]) <= max(image.shape[1:]) <= size
        ):
            raise ValueError(
                f"an image must be ({self.input_channels}, h, w) with sides of 1 to {size} pixels; "
                f"got {tuple(image.shape)}"
            )
        wide = torch.promote_types(self.dtype, torch.float32)
        x = image.to(self.device, wide)
        if self.input_projection is not None:
            weight = self.input_projection.weight.to(wide)
            x = functional.conv2d(x[None], weight)[0]
        if self.preprocessing.normalization == "min_max":
            low, high = x.amin(), x.amax()
            x = (x - low) / (high - low).clamp(min=1e-8)
        else:
            x = (x - self.pixel_mean.to(wide)) / self.pixel_std.to(wide)
        x = functional.pad(x, (0, size - x.shape[2], 0, size - x.shape[1]))
        return x.to(self.dtype)

    def encode(
        self, images: Float[Tensor, "b 3 s s"], seen: list[Tensor] | None = None
    ) -> Float[Tensor, "b e g g"]:
        """Embed preprocessed images (b, 3, s, s) as (b, e, g, g).

        Args:
            images: (b, 3, s, s), preprocessed.
            seen: receives the features of every level on the way; see ``levels``.

        Raises:
            ValueError: the images have another shape.
        """
        self._check_images(images)
        if seen is None:
            return self.mask_decoder.embed_maps(self.image_encoder(images))
        whole = len(self.attention_blocks()) + 1
        return self.encode_suffix(self.image_encoder.prefix(images, whole, seen), whole)

    def encode_prefix(
        self,
        images: Float[Tensor, "b 3 s s"],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Run the frozen part of the encoder, whose output can be stored.

        The encoder has n attention blocks. The patch embedding comes before block 0 and the neck
        after block n - 1.

        Args:
            images: (b, 3, s, s), preprocessed.
            first_trainable_block: 0 to n runs everything before that block (n: everything but the
                neck); n + 1 runs the whole encoder.
            seen: receives the features of every level on the way; see ``levels``.

        Returns:
            Features (b, ...) for ``encode_suffix``.

        Raises:
            ValueError: the images have another shape, or there is no such block.
        """
        self._check_images(images)
        self._check_first_block(first_trainable_block)
        return self.image_encoder.prefix(images, first_trainable_block, seen)

    def encode_suffix(
        self,
        features: Float[Tensor, "b ..."],
        first_trainable_block: int,
        seen: list[Tensor] | None = None,
    ) -> Float[Tensor, "b e g g"]:
        """Run the rest of the encoder: ``encode_suffix(encode_prefix(x, k), k) == encode(x)``.

        Args:
            features: (b, ...), what ``encode_prefix`` returned for ``first_trainable_block``.
            first_trainable_block: 0 to n + 1; see ``encode_prefix``.
            seen: receives the features of every level on the way; see ``levels``.

        Returns:
            (b, e, g, g).

        Raises:
            ValueError: there is no such block.
        """
        self._check_first_block(first_trainable_block)
        maps = self.image_encoder.suffix(features, first_trainable_block, seen)
        return self.mask_decoder.embed_maps(maps)

    def decode(
        self, embeddings: Float[Tensor, "b e g g"], prompts: Prompts, *, multimask: bool
    ) -> MaskOutput:
        """Decode p objects in each of b images, with gradients.

        In evaluation mode, the single mask of SAM 2 may be one of the multimask output; see
        ``sam2_mask_decoder.StableMask``.

        Args:
            embeddings: (b, e, g, g), what ``encode`` returned.
            prompts: prompts for the same b images; without any prompt, p = 1.
            multimask: return several masks for each object instead of one.

        Raises:
            PromptError: prompts or embeddings do not fit the model or each other.
        """
        side, width = self.embedding_size, self.embedding_channels
        if embeddings.ndim != 4 or tuple(embeddings.shape[1:]) != (width, side, side):
            raise PromptError(
                f"embeddings must be (b, {width}, {side}, {side}), from encode; "
                f"got {tuple(embeddings.shape)}"
            )
        sparse, dense = self.prompt_encoder(prompts, embeddings.shape[0])
        output: MaskOutput = self.mask_decoder(
            embeddings, self.prompt_encoder.dense_position(), sparse, dense, multimask=multimask
        )
        return output

    def decode_background(self, embeddings: Float[Tensor, "b e g g"]) -> Float[Tensor, "b 1 1 s s"]:
        """Return the logits of mask token 0 without a prompt, whether or not they are stable."""
        sparse, dense = self.prompt_encoder(Prompts(), len(embeddings))
        position = self.prompt_encoder.dense_position()
        return self.mask_decoder.decode_single(embeddings, position, sparse, dense)

    def decode_classes(self, embeddings: Float[Tensor, "b e g g"]) -> MaskOutput:
        """Predict the classes of b images without a prompt; ``iou`` says nothing about them.

        The prompt generator prompts for them, or the class tokens predict them, or the multimask
        tokens where there is neither.
        """
        if self.prompt_generator is not None:
            return self._decode_generated(self.prompt_generator, embeddings)
        if self.class_tokens is None:
            return super().decode_classes(embeddings)
        _, dense = self.prompt_encoder(Prompts(), len(embeddings))
        position = self.prompt_encoder.dense_position()
        logits = self.mask_decoder.decode_classes(self.class_tokens, embeddings, position, dense)
        return MaskOutput(logits=logits, iou=logits.new_zeros(logits.shape[:3]))

    def _decode_generated(
        self, generator: PromptGenerator, embeddings: Float[Tensor, "b e g g"]
    ) -> MaskOutput:
        """Decode an object for each class, prompted by the generator: masks (b, 1, K, 4g, 4g)."""
        dense = generator(embeddings[:, : self.build.prompt_width])
        # What the model gets where nobody prompts: nothing, or the padding points of SAM 2.
        sparse, _ = self.prompt_encoder(Prompts(), len(embeddings))
        sparse = sparse.expand(-1, dense.shape[1], -1, -1).to(dense)
        position = self.prompt_encoder.dense_position()
        output: MaskOutput = self.mask_decoder(embeddings, position, sparse, dense, multimask=False)
        return MaskOutput(logits=output.logits.transpose(1, 2), iou=output.iou.transpose(1, 2))

    def forward(
        self, images: Float[Tensor, "b 3 s s"], prompts: Prompts, *, multimask: bool
    ) -> MaskOutput:
        """Encode images (b, 3, s, s) and decode the prompts."""
        return self.decode(self.encode(images), prompts, multimask=multimask)

    def postprocess(
        self, logits: Float[Tensor, "b p m h w"], frame: Frame
    ) -> Float[Tensor, "b p m H W"]:
        """Resize logits to the original images; SAM 2 does so in one step, without the square.

        Arguments, result and errors are those of ``SegmentationModel.postprocess``.
        """
        if self.build.version == "1" or frame.size != self.image_size:
            return super().postprocess(logits, frame)
        planes = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        resized = functional.interpolate(planes, frame.original, mode="bilinear")
        return torch.unflatten(resized, 0, logits.shape[:2])

    @property
    def embedding_channels(self) -> int:
        """Number e of channels of the image embedding."""
        return (1 if self.build.version == "1" else 4) * self.build.prompt_width

    @property
    def has_class_tokens(self) -> bool:
        """Whether the mask tokens still answer to prompts, because others predict the classes."""
        return self.class_tokens is not None or self.prompt_generator is not None

    @property
    def gives_object_scores(self) -> bool:
        """Whether ``decode`` says for each prompted object if it is in the image."""
        return self.build.version != "1"

    @property
    def logits_side(self) -> int:
        """Side of the grid on which the model predicts classes without a prompt."""
        if self.dense_head is not None:
            return self.dense_head.settings.side
        return 4 * self.embedding_size  # the mask decoder enlarges the embedding four times

    @property
    def input_channels(self) -> int:
        """Number of channels of the images that ``preprocess`` takes."""
        return 3 if self.input_projection is None else self.input_projection.in_channels

    def add_input_projection(self, channels: int) -> None:
        """Accept images of more channels: a 1x1 convolution, at first the mean, makes them three.

        The projection comes before the normalisation, so n equal channels give what a grey image
        gives.

        Raises:
            ValueError: ``channels`` is less than 4.
        """
        if channels < 4:
            raise ValueError(f"expected at least 4 channels; got {channels}")
        projection = nn.Conv2d(channels, 3, kernel_size=1, bias=False)
        nn.init.constant_(projection.weight, 1 / channels)
        self.input_projection = projection.to(self.device, self.dtype)

    def add_dense_head(
        self, classes: int, settings: HeadSettings, watershed: Watershed | None = None
    ) -> None:
        """Add a decoder that predicts classes, or objects, at the resolution of the picture.

        Raises:
            ConfigError: the settings do not fit each other.
        """
        head = DenseHead(self.levels(), classes, settings, watershed)
        self.dense_head = head.to(self.device, self.dtype)

    def prefix_shape(self, first_trainable_block: int) -> tuple[int, ...]:
        """Return the shape of what ``encode_prefix`` returns, without the batch."""
        return self.image_encoder.prefix_shape(self.image_size, first_trainable_block)

    def levels(self) -> tuple[Level, ...]:
        """Return the features that the encoder offers to a dense head, the embedding last."""
        return self.image_encoder.levels(self.image_size)

    def attention_blocks(self) -> tuple[AttentionBlock, ...]:
        """Return the attention blocks of the encoder in order; methods inject into them."""
        return self.image_encoder.attention_blocks("image_encoder")

    def resize_mask_tokens(self, count: int) -> None:
        """Set the number of multimask outputs, for example one for each class.

        Additional outputs are copies of the existing ones, cycling through them.

        Raises:
            ValueError: ``count`` is less than 1.
        """
        self.mask_decoder.resize_mask_tokens(count)
        self.build = replace(self.build, num_multimask=count)

    def add_class_tokens(self, count: int, *, background: bool = False) -> None:
        """Add a token for each class, so that the mask tokens keep answering to prompts.

        Args:
            count: number of classes.
            background: the background has a token too; else its logit is 0.

        Raises:
            ValueError: ``count`` is less than 1.
        """
        self.class_tokens = ClassTokens(self.mask_decoder, count, background=background)

    def add_prompt_generator(self, classes: int) -> None:
        """Add a network that makes a prompt for each class from the image embedding.

        Raises:
            ValueError: ``classes`` is less than 1.
        """
        generator = PromptGenerator(self.prompt_encoder, classes)
        self.prompt_generator = generator.to(self.device, self.dtype)

    def add_memory(self) -> None:
        """Make a copy of the memory of a video a part of the model, so that it can train.

        Raises:
            ValueError: the model has no memory.
        """
        if not self.memory:
            raise ValueError("expected a SAM 2 with a memory, from a file that has it; got none")
        copies = {name: tensor.clone() for name, tensor in self.memory.items()}
        self.video_memory = make_memory(self.build, copies).to(self.device, self.dtype)

    def fold_memory(self) -> None:
        """Put a memory that was a part of the model back among the tensors of ``memory``."""
        if self.video_memory is not None:
            trained = self.video_memory.state_dict()
            self.memory |= {name: tensor.clone() for name, tensor in trained.items()}
            self.video_memory = None

    def _check_images(self, images: Tensor) -> None:
        size = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f"images must be (b, 3, {size}, {size}), from preprocess; got {tuple(images.shape)}"
            )

    def _check_first_block(self, first_trainable_block: int) -> None:
        last = len(self.attention_blocks()) + 1
        if not 0 <= first_trainable_block <= last:
            raise ValueError(
                f"first_trainable_block must be 0 to {last}; got {first_trainable_block}"
            )


def build_sam(build: Build | str, *, image_size: int | None = None) -> Sam:
    """Build a model with random weights.

    Args:
        build: a build, or its name in ``BUILDS``.
        image_size: side of the model's square in pixels; None takes the size of the build.

    Raises:
        ConfigError: the name is unknown, or the stride of the model does not divide the size.
    """
    if isinstance(build, str):
        if build not in BUILDS:
            raise ConfigError(
                f"unknown model {build!r}; known: {', '.join(BUILDS)}{nearest(build, BUILDS)}"
            )
        build = BUILDS[build]
    return Sam(build, build.image_size if image_size is None else image_size)
