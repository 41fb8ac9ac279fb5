"""``to=hf``: the merged model as a directory of transformers, with its processor.

It is a ``SamModel``, a ``Sam2Model`` (``hf_sam2.py``) or a ``Sam3TrackerModel`` (``hf_sam3.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from samadapt.adapters.snippets import BOX, Snippet, picture_lines
from samadapt.errors import MissingExtraError, RunError
from samadapt.export.hf_sam2 import sam2_model, sam2_processor
from samadapt.export.hf_sam3 import sam3_model, sam3_processor
from samadapt.export.target import Target, merge_refusal, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from samadapt.adapters.base_model import Adapted
    from samadapt.export.probe import ProbedModel
    from samadapt.sam.model import Sam
    from samadapt.sam.types import MaskOutput, Prompts


PIXEL_LIMIT = 3.0
"""Largest accepted difference in grey levels of 255. transformers resizes with torchvision,
samadapt with Pillow."""


@register("hf")
@dataclass(frozen=True)
class HuggingFace(Target):
    """A directory for ``SamModel.from_pretrained`` and the mask-generation pipeline."""

    summary: ClassVar[str] = "a SamModel, Sam2Model or Sam3TrackerModel of transformers"
    extra: ClassVar[str] = "hf"
    merges: ClassVar[bool] = True

    def refusal(self, adapted: Adapted) -> str:
        """Refuse adapters that cannot be merged, and encoders that transformers does not have."""
        if adapted.record.trains_memory:
            return (
                "it trains the memory of SAM 2 (peft.memory=full), and transformers' Sam2Model for "
                "still images has none"
            )
        return no_such_encoder(adapted) or merge_refusal(adapted)

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Merge, rename, and save model and processor."""
        from samadapt.adapters.store import merge_adapter

        require_transformers()
        sam = adapted.sam
        merge_adapter(sam, adapted.injection)
        transformers_model(sam).save_pretrained(folder)
        processor(sam).save_pretrained(folder)
        notes = [processor_note(sam, folder)]
        if sam.build.version != "1":
            notes.append("the model is for still images: the memory of a video is left out")
        return notes

    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel:
        """Load the directory with ``from_pretrained``."""
        import transformers

        name = f"{_prefix(adapted.sam)}Model"
        return TransformersModel(getattr(transformers, name).from_pretrained(folder))

    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return code for transformers."""
        prefix = _prefix(adapted.sam)
        lines = [
            f"from transformers import {prefix}Model, {prefix}Processor",
            f'model = {prefix}Model.from_pretrained(".")  # the folder of this page',
            f'processor = {prefix}Processor.from_pretrained(".")',
        ]
        rule, side = adapted.sam.preprocessing, adapted.sam.image_size
        if rule.normalization == "min_max":
            resize = f".resize(({side}, {side}), Image.BILINEAR)" if rule.resize == "squash" else ""
            lines += [
                "# as in training; prompts and masks are in the pixels of this image",
                f'image = Image.open("image.png").convert("RGB"){resize}',
                'pixels = numpy.asarray(image, dtype="float32")',
                "pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min())",
                'inputs = processor(pixels, do_rescale=False, return_tensors="pt")',
            ]
            lines[:1] = ["import numpy", "from PIL import Image", lines[0]]
        elif prefix == "Sam":
            lines[:1] = ["import numpy", "import torch", "from PIL import Image", lines[0]]
            lines += ["", *picture_lines(adapted.record), *_BOX_LINES]
        text = "`pip install transformers`, without samadapt."
        return Snippet("With transformers", text, "\n".join(lines))


_BOX_LINES = (
    f'inputs = processor(image, input_boxes=[[{list(map(float, BOX))}]], return_tensors="pt")',
    "with torch.no_grad():",
    "    outputs = model(**inputs, multimask_output=False)",
    "masks = processor.image_processor.post_process_masks(",
    '    outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]',
    ")",
    "mask = masks[0][0, 0].numpy()",
    'Image.fromarray(255 * mask.astype("uint8")).save("mask.png")',
)


class TransformersModel:
    """A ``SamModel`` of transformers behind the calls of ``ProbedModel``."""

    def __init__(self, model: Any) -> None:
        """Keep the model in evaluation mode."""
        self.model = model.eval()

    def encode(self, images: Tensor) -> Tensor:
        """Embed preprocessed images (b, 3, s, s)."""
        embeddings: Tensor = self.model.get_image_embeddings(images)
        return embeddings

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> MaskOutput:
        """Decode p objects in each image."""
        from samadapt.sam.types import MaskOutput

        output = self.model(
            image_embeddings=embeddings,
            input_points=prompts.points,
            input_labels=prompts.point_labels,
            input_boxes=prompts.boxes,
            input_masks=None if prompts.masks is None else prompts.masks[:, 0],  # of one object
            multimask_output=multimask,
        )
        return MaskOutput(logits=output.pred_masks, iou=output.iou_scores)


def require_transformers() -> None:
    """Raise ``MissingExtraError`` if transformers is not installed."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf")


def no_such_encoder(adapted: Adapted) -> str:
    """Return why transformers' ``SamModel`` cannot hold this model; empty if it can."""
    if adapted.sam.build.encoder != "tiny_vit":
        return ""
    return f"transformers' SamModel has no TinyViT, the encoder of {adapted.record.base}"


def _prefix(sam: Sam) -> str:
    """Return what the names of transformers' classes for a model begin with."""
    return {"1": "Sam", "3": "Sam3Tracker"}.get(sam.build.version, "Sam2")


def transformers_model(sam: Sam) -> Any:
    """Return a model of transformers with the weights of one of ours, which has no adapter."""
    import transformers

    if sam.build.version == "3":
        return sam3_model(sam)
    if sam.build.version != "1":
        return sam2_model(sam)
    model = transformers.SamModel(configuration(sam))
    state = sam.state_dict()
    # Strict: each of their weights gets one of ours. Two of their names, both of the position
    # matrix, map to the same one.
    model.load_state_dict({theirs: state[ours] for theirs, ours in names(model).items()})
    return model


def configuration(sam: Sam) -> Any:
    """Return transformers' ``SamConfig`` for a model with SAM's ViT."""
    import transformers

    build = sam.build
    vision = transformers.SamVisionConfig(
        hidden_size=build.embed_dim,
        output_channels=build.prompt_width,
        num_hidden_layers=build.depth,
        num_attention_heads=build.num_heads,
        image_size=sam.image_size,
        patch_size=build.patch_size,
        window_size=build.window,
        global_attn_indexes=list(build.global_blocks),
        num_pos_feats=build.prompt_width // 2,  # each feature has a sine and a cosine
        mlp_dim=int(build.mlp_ratio * build.embed_dim),
    )
    prompt = transformers.SamPromptEncoderConfig(
        hidden_size=build.prompt_width,
        image_size=sam.image_size,
        patch_size=build.patch_size,
        mask_input_channels=build.mask_channels,
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=build.prompt_width,
        mlp_dim=build.decoder_mlp,
        num_hidden_layers=build.decoder_depth,
        num_attention_heads=build.decoder_heads,
        num_multimask_outputs=build.num_multimask,
        iou_head_hidden_dim=build.iou_width,
        layer_norm_eps=1e-5,  # segment-anything's; transformers' default is 1e-6
    )
    return transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )


def processor(sam: Sam) -> Any:
    """Return transformers' processor with the sizes and, if possible, the scaling of the model."""
    import transformers

    if sam.build.version == "3":
        return sam3_processor(sam)
    if sam.build.version != "1":
        return sam2_processor(sam)
    side, low = sam.image_size, 4 * sam.embedding_size
    scaled = sam.preprocessing.normalization == "mean_std"
    images = transformers.SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        mask_size={"longest_edge": low},
        mask_pad_size={"height": low, "width": low},
        # transformers scales pixels to [0, 1] first, and our means are of 0 to 255. With min_max, a
        # mean of 0 and a deviation of 1 leave the values in [0, 1] as they are.
        image_mean=[v / 255 for v in sam.preprocessing.mean] if scaled else [0.0] * 3,
        image_std=[v / 255 for v in sam.preprocessing.std] if scaled else [1.0] * 3,
    )
    return transformers.SamProcessor(images)


def processor_note(sam: Sam, folder: Path) -> str:
    """Run the saved processor on a picture and describe how much its pixels differ from ours.

    Raises:
        RunError: the difference is larger than rounding in the resize explains.
    """
    import numpy as np
    import transformers

    from samadapt.sam.geometry import make_frame, resize_image

    kind = getattr(transformers, f"{_prefix(sam)}Processor")
    loaded = kind.from_pretrained(folder)
    picture = _picture(sam.image_size)
    rule = sam.preprocessing
    if rule.normalization == "mean_std":
        levels = _levels(sam, picture, loaded(picture, return_tensors="pt")["pixel_values"])
        note = f"the processor's pixels differ from ours by at most {levels:.2g} of 255 grey levels"
    else:
        plain = _levels(sam, picture, loaded(picture, return_tensors="pt")["pixel_values"])
        frame = make_frame(picture.shape[:2], sam.image_size, rule.resize)
        squashed = resize_image(picture, frame) if rule.resize == "squash" else picture
        low, high = float(squashed.min()), float(squashed.max())
        scaled = (squashed.astype(np.float32) - low) / (high - low)
        given = loaded(scaled, do_rescale=False, return_tensors="pt")["pixel_values"]
        levels = _levels(sam, picture, given)
        squash = ", nor squeeze it to a square" if rule.resize == "squash" else ""
        note = (
            "the processor cannot scale an image to [0, 1] by its own extremes"
            f"{squash}, as these weights need it: do so first and say do_rescale=False, as the "
            f"card shows; its pixels then differ from ours by at most {levels:.2g} of 255 grey "
            f"levels (a picture given as it is: by {plain:.3g}), so the mask-generation pipeline, "
            "which does neither, gives other masks"
        )
    if levels > PIXEL_LIMIT:
        raise RunError(f"to=hf: the processor does not prepare images as this model does: {note}")
    return note


def _picture(side: int) -> NDArray[np.uint8]:
    """Return a picture with unequal sides and a narrow range of values, larger than the model's."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 200, (12, 20, 3), dtype=np.uint8))
    return np.array(coarse.resize((side * 5 // 4, side * 3 // 4), Image.Resampling.BILINEAR))


def _levels(sam: Sam, picture: NDArray[np.uint8], pixels: Tensor) -> float:
    """Return the largest difference of pixels (1, 3, s, s) from ours, in grey levels of 255."""
    import torch

    from samadapt.sam.embed import to_pixels

    rule = sam.preprocessing
    apart = (to_pixels(sam, [picture]).cpu() - pixels).abs().amax((0, 2, 3))
    # One grey level is 1 / std after mean_std, and 1 / 255 of the range after min_max.
    step = torch.tensor(rule.std) if rule.normalization == "mean_std" else 255
    return float((apart * step).max())


def names(model: Any) -> dict[str, str]:
    """Map the state-dict names of a ``SamModel`` to ours."""
    from samadapt.sam.weights.names import hugging_face_names

    return hugging_face_names(model.state_dict())
