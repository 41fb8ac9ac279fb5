"""``to=sam``: one weights file as the base is published, with the adapter folded in.

For SAM 2 that is sam2's ``{"model": ...}`` with the memory of a video, the trained one if the
adapter has one, so that sam2 loads it strictly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from samadapt.adapters.injection import CLASSES
from samadapt.adapters.snippets import Snippet, merged
from samadapt.export.target import Target, merge_refusal, register

if TYPE_CHECKING:
    from samadapt.adapters.base_model import Adapted
    from samadapt.export.probe import ProbedModel

TORCH_FILE = "model.pth"
SAFE_FILE = "model.safetensors"


@register("sam")
@dataclass(frozen=True)
class SamFile(Target):
    """``model.pth``, and the same tensors as ``model.safetensors``."""

    summary: ClassVar[str] = "merged weights in the format of segment-anything, or of sam2"
    merges: ClassVar[bool] = True
    holds_memory: ClassVar[bool] = True

    def refusal(self, adapted: Adapted) -> str:
        """Refuse adapters that cannot be merged, and SAM 3, whose file holds much more."""
        if adapted.sam.build.version == "3":
            return (
                "Meta's file of SAM 3 also holds its detector and memory, which this model has "
                "not; to=hf writes a Sam3TrackerModel of transformers"
            )
        return merge_refusal(adapted)

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Merge, and save under the names of the published files."""
        import torch
        from safetensors.torch import save_file

        from samadapt.adapters.store import merge_adapter
        from samadapt.sam.weights.names import published_key
        from samadapt.sam.weights.sam2_names import published_sam2_key

        merge_adapter(adapted.sam, adapted.injection)
        # The first SAM's names are ours; MobileSAM, LiteMedSAM and SAM 2 use others.
        rename: dict[str, Callable[[str], str]]
        rename = {"vit": str, "tiny_vit": published_key, "hiera": published_sam2_key}
        published = rename[adapted.sam.build.encoder]
        state = {
            published(name): value
            for name, value in adapted.sam.state_dict().items()
            if not name.startswith(CLASSES)
        } | adapted.sam.memory
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        is_first = adapted.sam.build.version == "1"
        torch.save(tensors if is_first else {"model": tensors}, folder / TORCH_FILE)
        save_file(tensors, folder / SAFE_FILE, metadata={"format": "pt"})
        return _notes(adapted)

    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel:
        """Load the ``.pth`` strictly, tensors only, and check that both files are equal."""
        from samadapt.errors import RunError
        from samadapt.sam.weights.loading import base_hash, load_sam

        name, size = adapted.record.base, adapted.record.image_size
        sam = load_sam(name, folder / TORCH_FILE, size)
        if base_hash(sam) != base_hash(load_sam(name, folder / SAFE_FILE, size)):
            raise RunError(f"{TORCH_FILE} and {SAFE_FILE} differ")
        return sam

    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return code for segment-anything if it has this build, else for samadapt."""
        if adapted.record.base in SAM2_CONFIGS and not _notes(adapted):
            code = _with_sam2(adapted.record.base, adapted.record.image_size)
            text = "The package sam2 of Meta, without samadapt. Run it in the folder of this page."
            return Snippet("With sam2", f"{text} {in_isat(adapted)}", code)
        use = merged(adapted.record, TORCH_FILE)
        return replace(use, text=f"{use.text} {in_isat(adapted)}")


def in_isat(adapted: Adapted) -> str:
    """Return how ISAT loads the file, or why it cannot.

    ISAT tells the model by the file name, builds it at 1024 px, and prepares pictures as SAM does.
    """
    sam, base = adapted.sam, adapted.record.base
    names = {"vit_t": "mobile_sam_NAME.pt"}
    names |= {f"vit_{size}": f"sam_vit_{size}_NAME.pth" for size in "blh"}
    words = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}
    for version in ("2", "2.0"):
        family = "sam2.1" if version == "2" else "sam2"
        names |= {
            f"sam{version}_{k}": f"{family}_hiera_{word}_NAME.pt" for k, word in words.items()
        }
    if base not in names:
        return f"ISAT cannot load it: it does not prepare pictures as {base} needs them."
    if sam.image_size != 1024 or _notes(adapted):
        return f"ISAT cannot load it: it builds {base} at 1024 px with its own number of masks."
    return f"For ISAT, name a copy of the file `{names[base]}` in its folder of checkpoints."


SAM2_CONFIGS = {
    f"{name}_{size}": f"configs/{family}/{family}_hiera_{size}.yaml"
    for name, family in (("sam2", "sam2.1"), ("sam2.0", "sam2"))
    for size in ("t", "s", "b+", "l")
}
"""The configuration that sam2 builds each model from."""


def _with_sam2(name: str, side: int) -> str:
    """Return code for sam2, whose predictor has the sizes of 1024 pixels written into it."""
    more = f'hydra_overrides_extra=["++model.image_size={side}"]'
    lines = [
        "from sam2.build_sam import build_sam2",
        "from sam2.sam2_image_predictor import SAM2ImagePredictor",
        f'sam = build_sam2("{SAM2_CONFIGS[name]}", "{TORCH_FILE}", {more})',
        "predictor = SAM2ImagePredictor(sam)",
    ]
    if side != 1024:
        sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]
        lines.append(f"predictor._bb_feat_sizes = {sizes}  # else those of 1024 pixels")
    return "\n".join(lines)


def _notes(adapted: Adapted) -> list[str]:
    """Return notes where the file differs from what the published code reads."""
    from samadapt.sam.weights.builds import BUILDS

    build = BUILDS[adapted.record.base]
    notes = []
    if build.version != "1" and not adapted.sam.memory:
        notes.append(
            "the base had no memory of a video, as transformers' Sam2Model has none, so sam2 does "
            "not load this file strictly; samadapt does"
        )
    if adapted.sam.image_size != build.image_size and build.encoder == "vit":
        notes.append(
            f"position tables are for {adapted.sam.image_size} px; segment-anything's registry "
            f"builds {build.image_size} px: give its ImageEncoderViT that img_size"
        )
    if adapted.sam.build.num_multimask != build.num_multimask:
        notes.append(
            f"{adapted.sam.build.num_multimask} mask outputs, one per class; segment-anything's "
            f"registry builds {build.num_multimask}: give its MaskDecoder that number"
        )
    return notes
