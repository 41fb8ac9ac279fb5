"""``to=onnx``: encoder and prompt-and-mask decoder for onnxruntime, also in a browser."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from samadapt.adapters.combining import recorded_stack
from samadapt.adapters.snippets import Snippet, as_onnx
from samadapt.errors import AdapterError, ConfigError, MissingExtraError, nearest
from samadapt.export.target import Target, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samadapt.adapters.base_model import Adapted
    from samadapt.export.probe import ProbedClassModel, ProbedModel
    from samadapt.sam.model import Sam
    from samadapt.sam.types import MaskOutput, Prompts

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
CLASSES = "classes.onnx"
PRECISIONS = ("fp32", "fp16", "int8")
OPSET = 17  # LayerNormalization; onnxruntime since 1.12

DECODER_INPUTS = (
    "image_embeddings",
    "point_coords",
    "point_labels",
    "mask_input",
    "has_mask_input",
    "orig_im_size",
)
DECODER_OUTPUTS = ("masks", "iou_predictions", "low_res_masks")
"""Inputs and outputs have the names of segment-anything's own export."""
CLASS_OUTPUT = "class_logits"
"""The further output of a decoder with class tokens."""


@register("onnx")
@dataclass(frozen=True)
class Onnx(Target):
    """Two files, or one for a model that predicts its classes with a dense head.

    A method that cannot be merged stays in the graph of the encoder as it is.

    Attributes:
        precision: precision of the encoder's weights: ``"fp32"``, ``"fp16"``, or ``"int8"`` for
            its matrix products (dynamic quantization). The decoder stays fp32, because the sines of
            its position encoding lose their phase in lower precision.

    Raises:
        ConfigError: for another precision.
    """

    summary: ClassVar[str] = "encoder and prompt-and-mask decoder for onnxruntime"
    extra: ClassVar[str] = "onnx"
    holds_head: ClassVar[bool] = True
    holds_class_tokens: ClassVar[bool] = True

    precision: Literal["fp32", "fp16", "int8"] = "fp32"

    def __post_init__(self) -> None:
        """Check the precision."""
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision must be {', '.join(PRECISIONS)}; got {self.precision!r}"
                f"{nearest(self.precision, PRECISIONS)}"
            )

    @property
    def limit(self) -> float | None:
        """Largest difference allowed, as a share of the largest logit (at least 1); None: any."""
        # Lower precision moves the logits, so the difference is then reported but not limited.
        return 1e-3 if self.precision == "fp32" else None

    def refusal(self, adapted: Adapted) -> str:
        """Refuse models that see several slices at once; accept everything else."""
        if recorded_stack(adapted.record) > 1:
            return "it sees stacks of slices, and the graph takes one image"
        return ""

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Trace both parts, and reduce the precision of the encoder if requested."""
        import torch

        from samadapt.export.onnx_decoder import ImageEmbedder, PromptAndMaskDecoder

        require_onnx()
        sam = merged_if_possible(adapted).float().cpu().eval()
        if adapted.record.head:
            return self._write_classes(sam, folder)
        image = torch.zeros(1, 3, sam.image_size, sam.image_size)
        embedder = ImageEmbedder(sam)
        trace(embedder, (image,), folder / ENCODER, ("input_image",), DECODER_INPUTS[:1])
        # The numbers of prompts and points and the size of the original image vary between calls.
        # The model's square is fixed.
        decoder = PromptAndMaskDecoder(sam)
        trace(
            decoder,
            decoder.example(),
            folder / DECODER,
            DECODER_INPUTS,
            DECODER_OUTPUTS if sam.class_tokens is None else (*DECODER_OUTPUTS, CLASS_OUTPUT),
            {
                "point_coords": {0: "num_prompts", 1: "num_points"},
                "point_labels": {0: "num_prompts", 1: "num_points"},
                "masks": {0: "num_prompts", 2: "height", 3: "width"},
                "iou_predictions": {0: "num_prompts"},
                "low_res_masks": {0: "num_prompts"},
            },
        )
        if self.precision != "fp32":
            shrink(folder / ENCODER, self.precision)
        side, rule = sam.image_size, sam.preprocessing
        note = (
            f"{ENCODER} takes input_image (1, 3, {side}, {side}): resized ({rule.resize} side), "
            f"normalised ({rule.normalization}) and zero-padded right and below; masks are logits "
            "of every mask token, the single mask first"
        )
        if sam.class_tokens is not None:
            note += (
                f"; {CLASS_OUTPUT} of {DECODER} are logits of the classes in order, which no "
                "prompt changes, and the background has the logit 0"
            )
        return [note]

    def _write_classes(self, sam: Sam, folder: Path) -> list[str]:
        """Trace the way from the picture to its classes."""
        from samadapt.export.onnx_dense import INPUTS, OUTPUTS, ClassPredictor

        predictor = ClassPredictor(sam)
        trace(predictor, predictor.example(), folder / CLASSES, INPUTS, OUTPUTS)
        if self.precision != "fp32":
            shrink(folder / CLASSES, self.precision)
        side, rule, head = sam.image_size, sam.preprocessing, predictor.head.settings
        note = (
            f"{CLASSES} takes input_image (1, 3, {side}, {side}): resized ({rule.resize} side), "
            f"normalised ({rule.normalization}) and zero-padded right and below; and picture "
            f"(1, {head.channels}, {head.side}, {head.side}): the same picture with values of 0 to "
            f"255, resized to {head.side} pixels and zero-padded; class_logits are those of the "
            "classes in order, and the background has the logit 0"
        )
        return [note]

    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel | ProbedClassModel:
        """Open the files with onnxruntime."""
        if adapted.record.head:
            return OnnxClassModel(folder)
        sam = adapted.sam
        return OnnxModel(folder, 4 * sam.embedding_size, sam.prompt_encoder.padding_points)

    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return code for onnxruntime."""
        return as_onnx(adapted.record, exported=True)


class OnnxModel:
    """The two files behind the calls of ``ProbedModel``."""

    def __init__(
        self, folder: Path, side: int, padding: Callable[[Prompts], int] | None = None
    ) -> None:
        """Open the files.

        Args:
            folder: where they are.
            side: side of a mask prompt.
            padding: ``PromptEncoder.padding_points`` of the model; None: that of the first SAM.
        """
        self.side, self.padding = side, padding or first_padding
        self.encoder, self.decoder = (session(folder / name) for name in (ENCODER, DECODER))

    def encode(self, images: Tensor) -> Tensor:
        """Embed one preprocessed image (1, 3, s, s)."""
        import torch

        (embeddings,) = self.encoder.run(None, {"input_image": images.cpu().numpy()})
        return torch.from_numpy(embeddings)

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> MaskOutput:
        """Decode p objects of one image."""
        import torch

        from samadapt.sam.types import MaskOutput

        coords, labels = as_points(prompts, self.padding(prompts))
        masks = prompts.masks  # of one object
        values = (
            embeddings,
            coords,
            labels,
            torch.zeros(1, 1, self.side, self.side) if masks is None else masks[0],
            torch.full((1,), float(masks is not None)),
            torch.tensor([32.0, 24.0]),  # any size, because only low_res_masks are compared
        )
        given = {n: v.numpy() for n, v in zip(DECODER_INPUTS, values, strict=True)}
        outputs = self.run_decoder(given, DECODER_OUTPUTS[1:])
        iou, low = (torch.from_numpy(out)[None] for out in outputs)
        # Token 0 is the single mask, and the others are the masks of a multimask output.
        chosen = slice(1, None) if multimask else slice(0, 1)
        return MaskOutput(logits=low[:, :, chosen], iou=iou[:, :, chosen])

    def run_decoder(self, values: dict[str, Any], outputs: tuple[str, ...]) -> list[Any]:
        """Return the named outputs of the decoder as arrays."""
        found: list[Any] = self.decoder.run(list(outputs), values)
        return found

    def decode_classes(self, embeddings: Tensor) -> MaskOutput:
        """Predict the classes of one image; what is prompted makes no difference."""
        import torch

        from samadapt.sam.types import MaskOutput

        values = (
            embeddings,
            torch.zeros(1, 1, 2),
            -torch.ones(1, 1),
            torch.zeros(1, 1, self.side, self.side),
            torch.zeros(1),
            torch.tensor([32.0, 24.0]),
        )
        given = {n: v.numpy() for n, v in zip(DECODER_INPUTS, values, strict=True)}
        (logits,) = self.run_decoder(given, (CLASS_OUTPUT,))
        found = torch.from_numpy(logits)[:, None]
        return MaskOutput(logits=found, iou=found.new_zeros(found.shape[:3]))


class OnnxClassModel:
    """The one file of a model with a dense head behind the call of ``ProbedClassModel``."""

    def __init__(self, folder: Path) -> None:
        """Open the file."""
        self.session = session(folder / CLASSES)

    def classify(self, image: Tensor, picture: Tensor) -> Tensor:
        """Return class logits (1, K, d, d)."""
        import torch

        given = {"input_image": image.cpu().numpy(), "picture": picture.cpu().numpy()}
        (logits,) = self.session.run(None, given)
        return torch.from_numpy(logits)


def merged_if_possible(adapted: Adapted) -> Sam:
    """Return the model with the adapter folded in as far as possible.

    If a bottleneck is combined with a LoRA, only the LoRA is folded, since peft's layers cannot be
    traced.
    """
    from samadapt.adapters.base_model import open_adapter
    from samadapt.adapters.store import merge_adapter
    from samadapt.methods import peft_library

    try:
        if adapted.injection.method.can_merge:
            merge_adapter(adapted.sam, adapted.injection)
        else:
            peft_library.merge_layers(adapted.sam)
    except AdapterError:  # cannot be merged; some layers may already be, so load it again
        return open_adapter(adapted.directory, adapted.checkpoint).sam
    return adapted.sam


def first_padding(prompts: Prompts) -> int:
    """Return how many padding points follow the prompts of an object in the first SAM."""
    return int(prompts.points is not None and prompts.boxes is None)


def as_points(prompts: Prompts, padding: int) -> tuple[Tensor, Tensor]:
    """Return the prompts of one image in the form of segment-anything's export.

    A box is two points labelled 2 and 3; padding points are labelled -1.

    Args:
        prompts: points, or boxes, or neither.
        padding: how many padding points follow; see ``PromptEncoder.padding_points``.

    Returns:
        Points (p, n, 2) in the model frame and labels (p, n).
    """
    import torch

    if prompts.boxes is not None:
        points = prompts.boxes[0].reshape(-1, 2, 2).float()
        labels = torch.tensor([2.0, 3.0]).expand(len(points), 2)
    elif prompts.points is not None and prompts.point_labels is not None:
        points, labels = prompts.points[0].float(), prompts.point_labels[0].float()
    else:
        points, labels = torch.zeros(1, 0, 2), torch.zeros(1, 0)
    padded = torch.cat([points, points.new_zeros(len(points), padding, 2)], dim=1)
    return padded, torch.cat([labels, -labels.new_ones(len(labels), padding)], dim=1)


def session(path: Path) -> Any:
    """Open a file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(
        path, sess_options=options, providers=["CPUExecutionProvider"]
    )


def require_onnx() -> None:
    """Raise ``MissingExtraError`` if onnx or onnxruntime is not installed."""
    from importlib.util import find_spec

    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "onnx")


def trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> None:
    """Write the graph of a module with torch's tracing exporter, which supports sizes as inputs."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about shapes, which are fixed here
        torch.onnx.export(
            module,
            example,
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=dynamic,
            opset_version=OPSET,
            dynamo=False,
        )


def shrink(path: Path, precision: str) -> None:
    """Convert the weights of a file to fp16, or those of its matrix products to int8."""
    if precision == "fp16":
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        # Inputs and outputs stay fp32, so callers need not know the precision.
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_suffix(".fp32.onnx")
    path.rename(whole)
    quantize_dynamic(whole, path, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    whole.unlink()
