"""``to=anylabeling``: a model for AnyLabeling and X-AnyLabeling, which fix names and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import yaml

from samadapt.adapters.snippets import Snippet
from samadapt.export.onnx import (
    DECODER,
    DECODER_INPUTS,
    DECODER_OUTPUTS,
    ENCODER,
    merged_if_possible,
    require_onnx,
    shrink,
    trace,
)
from samadapt.export.target import register
from samadapt.export.web import Web, WebModel, prompt_rules
from samadapt.system import atomic

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.adapters.base_model import Adapted
    from samadapt.export.probe import ProbedModel
    from samadapt.sam.model import Sam

SIDE, MASK_SIDE = 1024, 256
"""Side of the square that these programs scale points to, and of the mask prompt that they give."""

CONFIG = "config.yaml"


@register("anylabeling")
@dataclass(frozen=True)
class AnyLabeling(Web):
    """Encoder, decoder and ``config.yaml``.

    Attributes:
        precision: precision of the encoder's weights, as in ``Onnx``.
    """

    summary: ClassVar[str] = "a model for AnyLabeling and X-AnyLabeling"

    def refusal(self, adapted: Adapted) -> str:
        """Refuse what these programs would give a wrong input, since they would not notice."""
        if reason := super().refusal(adapted):
            return reason
        sam, record = adapted.sam, adapted.record
        if record.prompt.get("kind") in ("semantic", "auto") and not record.keeps_prompts:
            return "it finds classes without prompts, and AnyLabeling prompts objects"
        if sam.image_size != SIDE or 4 * sam.embedding_size != MASK_SIDE:
            return (
                f"AnyLabeling scales pictures to {SIDE} px and gives mask prompts of {MASK_SIDE} "
                f"px; this adapter sees {sam.image_size} px and takes {4 * sam.embedding_size} px"
            )
        if sam.preprocessing.resize != "longest":
            return "AnyLabeling keeps the aspect of pictures, and this base stretches them"
        return ""

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Write the graphs and the configuration."""
        import torch

        from samadapt.export.anylabeling_graphs import FrameDecoder, FrameEncoder

        require_onnx()
        sam = merged_if_possible(adapted).float().cpu().eval()
        sizes = {"input_image": {0: "height", 1: "width"}}
        frame = 255 * torch.rand(sam.image_size * 2 // 3, sam.image_size, 3)
        names = ("input_image",), DECODER_INPUTS[:1]
        trace(FrameEncoder(sam), (frame,), folder / ENCODER, *names, sizes)
        if self.precision != "fp32":
            shrink(folder / ENCODER, self.precision)
        rules = prompt_rules(adapted.record)
        decoder = FrameDecoder(
            sam,
            several_for_points=rules["several_for_points"],
            several_for_boxes=rules["several_for_boxes"],
            threshold=adapted.record.threshold,
        )
        dynamic = {name: {1: "num_points"} for name in ("point_coords", "point_labels")}
        dynamic["masks"] = {2: "height", 3: "width"}
        given = decoder.example(), folder / DECODER, DECODER_INPUTS, DECODER_OUTPUTS
        trace(decoder, *given, dynamic)
        title = ", ".join(adapted.record.classes) or "objects"
        values = {
            "type": "segment_anything",
            "name": f"samadapt-{adapted.record.weights_sha256[:12]}",
            "display_name": f"{title} (samadapt)",
            "encoder_model_path": ENCODER,
            "decoder_model_path": DECODER,
            "input_size": SIDE,
            "max_width": SIDE,
            "max_height": 682,
        }
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        atomic.write_text(folder / CONFIG, text)
        notes = [
            "AnyLabeling fits pictures into 1024 x 684 pixels, so other shapes are seen smaller",
            "for other programs use to=onnx: these graphs take raw pictures",
        ]
        if rules["clicks_in_turn"]:
            notes.append("all clicks on an object are answered at once, without its last mask")
        return notes

    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel:
        """Open the graphs with onnxruntime."""
        return FrameModel(folder, adapted.sam)

    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return how to load it."""
        text = (
            f"In AnyLabeling or X-AnyLabeling choose Load Custom Model and open `{CONFIG}` of this "
            "folder. Prompts are points and rectangles. Open pictures with the values that the row "
            "Intensity says, as 8 bits. ISAT loads no ONNX files; see `to=sam`."
        )
        return Snippet("In AnyLabeling and X-AnyLabeling", text)


class FrameModel(WebModel):
    """The graphs behind the calls of ``ProbedModel``: the encoder takes pixels before the rule."""

    def __init__(self, folder: Path, sam: Sam) -> None:
        """Open the files."""
        super().__init__(folder, 4 * sam.embedding_size)
        self.rule = sam.preprocessing

    def encode(self, images: Tensor) -> Tensor:
        """Embed one preprocessed image (1, 3, s, s)."""
        import torch

        image = images[0].cpu()
        if self.rule.normalization == "min_max":
            raw = 255 * image
        else:
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.rule.mean, self.rule.std))
            raw = image * std + mean
        frame = raw.permute(1, 2, 0).contiguous().numpy()
        (embeddings,) = self.encoder.run(None, {"input_image": frame})
        return torch.from_numpy(embeddings)
