"""``to=web``: a folder with a page that segments pictures in the browser, without a server program.

The page of ``samadapt/export/page`` runs encoder and decoder with onnxruntime-web, which is in that
folder too; nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from samadapt.adapters.snippets import Snippet, is_volume
from samadapt.errors import AdapterError, RunError
from samadapt.export.onnx import (
    CLASS_OUTPUT,
    DECODER,
    DECODER_INPUTS,
    ENCODER,
    Onnx,
    OnnxModel,
    merged_if_possible,
    require_onnx,
    shrink,
    trace,
)
from samadapt.export.target import register
from samadapt.system.download import file_checksum

if TYPE_CHECKING:
    from samadapt.adapters.base_model import Adapted
    from samadapt.adapters.record import AdapterRecord
    from samadapt.export.probe import ProbedModel

PAGE = Path(__file__).parent / "page"
RUNTIME = "onnxruntime-web"
MAX_ENCODER_MB = 200
"""Largest encoder for a page: a browser loads it at every visit and holds it in memory twice."""

OUTPUTS = ("iou_predictions", "low_res_masks")


@register("web")
@dataclass(frozen=True)
class Web(Onnx):
    """A static page with both graphs.

    Attributes:
        precision: precision of the encoder's weights, as in ``Onnx``.
    """

    summary: ClassVar[str] = "a page that segments pictures in the browser, without a server"
    holds_head: ClassVar[bool] = False

    def refusal(self, adapted: Adapted) -> str:
        """Refuse what the page cannot prompt as in training."""
        if reason := super().refusal(adapted):
            return reason
        if adapted.sam.build.version != "1":
            return "the page cannot prompt SAM 2 or SAM 3 yet; to=onnx writes the graphs"
        prompt = adapted.record.prompt
        if prompt.get("click_disks"):
            return "it wants clicks drawn into the mask prompt, which the page does not do"
        if prompt.get("kind") in ("mask", "scribble"):
            return f"it is prompted with a {prompt['kind']}, and the page has clicks and boxes"
        return ""

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Write the graphs, ``model.json`` and the page.

        Raises:
            AdapterError: the encoder is too large for a browser.
            RunError: a file of onnxruntime-web is not the one that was vendored.
        """
        import torch

        from samadapt.export.web_decoder import WebDecoder

        require_onnx()
        sam = merged_if_possible(adapted).float().cpu().eval()
        image = torch.zeros(1, 3, sam.image_size, sam.image_size)
        trace(sam.image_encoder, (image,), folder / ENCODER, ("input_image",), DECODER_INPUTS[:1])
        if self.precision != "fp32":
            shrink(folder / ENCODER, self.precision)
        self._check_size(folder / ENCODER)
        decoder = WebDecoder(sam)
        names = OUTPUTS if sam.class_tokens is None else (*OUTPUTS, CLASS_OUTPUT)
        points = {name: {1: "num_points"} for name in ("point_coords", "point_labels")}
        trace(decoder, decoder.example(), folder / DECODER, DECODER_INPUTS[:-1], names, points)
        values = page_values(adapted.record, sam.embedding_size)
        (folder / "model.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
        copy_page(folder)
        notes = ["start serve.py in the folder: threads in browsers need two headers that it sends"]
        if is_volume(adapted.record):
            notes.append("the page opens pictures; slices of volumes must be saved as such first")
        return notes

    def _check_size(self, path: Path) -> None:
        megabytes = path.stat().st_size / 1e6
        if megabytes > MAX_ENCODER_MB:
            smaller = "" if self.precision == "int8" else "; try precision=fp16 or precision=int8"
            raise AdapterError(
                f"to=web: expected an encoder of at most {MAX_ENCODER_MB} MB, which a browser can "
                f"hold; got {megabytes:.0f} MB (precision={self.precision}){smaller}, or "
                "`samadapt serve`, which encodes on your machine"
            )

    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel:
        """Open the graphs with onnxruntime."""
        return WebModel(folder, 4 * adapted.sam.embedding_size)

    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return how to start the page."""
        text = (
            "Run this in the folder and open the address that it prints. Pictures stay in the "
            "browser.\n\n```bash\npython serve.py\n```\n\nAny other static server works too; "
            "without the headers Cross-Origin-Opener-Policy: same-origin and "
            "Cross-Origin-Embedder-Policy: require-corp the page runs on one thread, and says so. "
            "To use the model in a page of your own, see `worker.mjs`."
        )
        return Snippet("In the browser", text)


class WebModel(OnnxModel):
    """The graphs for one object at a time; that of the page has no masks of the picture's size."""

    def run_decoder(self, values: dict[str, Any], outputs: tuple[str, ...]) -> list[Any]:
        """Decode one object after another, with the inputs that the graph has."""
        import numpy as np

        inputs = [item.name for item in self.decoder.get_inputs()]
        values = {name: values[name] for name in inputs}
        count = len(values["point_coords"])
        found = []
        for row in range(count):
            one = {k: v[row : row + 1] if k.startswith("point") else v for k, v in values.items()}
            found.append(self.decoder.run(list(outputs), one))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def page_values(record: AdapterRecord, grid: int) -> dict[str, Any]:
    """Return what the page must know of a model, the content of ``model.json``.

    Args:
        record: the record of the adapter.
        grid: cells along a side of the image embedding.
    """
    from samadapt.data.intensity import describe_intensity
    from samadapt.prompts.policy import PromptPolicy

    policy = PromptPolicy.from_dict(record.prompt)
    prompts = not policy.is_semantic or record.keeps_prompts
    rule = record.intensity or {"kind": "rgb"}
    names = ", ".join(record.classes) or "objects"
    return {
        "title": f"Segment {names}",
        "about": f"Trained on {record.data or 'data that are not recorded'}. Input: "
        f"{describe_intensity(rule) if record.intensity else 'rgb'}; open pictures of such values.",
        "image_size": record.image_size,
        "grid": grid,
        **{key: record.preprocessing[key] for key in ("normalization", "resize", "mean", "std")},
        # Rules of several channels make the colours of a picture before it is opened here.
        "intensity": rule if "kind" in rule and not rule.get("neighbours") else {"kind": "rgb"},
        "threshold": record.threshold,
        "classes": record.classes,
        "prompts": prompts,
        "finds_classes": policy.finds_classes and not record.head,
        "background_token": bool(record.prompt.get("background_token")),
        **prompt_rules(record),
    }


def prompt_rules(record: AdapterRecord) -> dict[str, bool | None]:
    """Return how a program without samadapt answers prompts as samadapt does.

    Args:
        record: the record of the adapter.

    Returns:
        Whether the best of several masks answers (None: an object with a single prompt), and
        whether each further click also sees the last mask.
    """
    from samadapt.prompts.policy import PromptPolicy

    policy = with_points = with_boxes = PromptPolicy.from_dict(record.prompt)
    if policy.is_mixed or policy.finds_classes:
        with_points, with_boxes = policy.answering(points=True), policy.answering(points=False)
    return {
        "several_for_points": with_points.multimask,
        "several_for_boxes": with_boxes.multimask,
        "clicks_in_turn": with_points.is_interactive,
    }


def copy_page(folder: Path) -> None:
    """Copy the page and onnxruntime-web, whose files are compared with their digests.

    Raises:
        RunError: a file differs from the one that was vendored; names it.
    """
    vendored = json.loads((PAGE / RUNTIME / "VENDORED.json").read_text(encoding="utf-8"))
    for name, digest in vendored["sha256"].items():
        found = file_checksum(PAGE / RUNTIME / name, "sha256:")
        if found != f"sha256:{digest}":
            raise RunError(
                f"{PAGE / RUNTIME / name}: expected sha256 {digest}, from {RUNTIME} "
                f"{vendored['version']}; got {found}. Install samadapt again"
            )
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=ignored)
