"""``to=sam``: one weights file in segment-anything's format, with the adapter folded in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from samadapt.adapters.injection import CLASSES
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

    summary: ClassVar[str] = "merged weights in segment-anything's format"
    merges: ClassVar[bool] = True

    def refusal(self, adapted: Adapted) -> str:
        """Refuse adapters that cannot be merged."""
        return merge_refusal(adapted)

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Merge, and save under the names of the published files."""
        import torch
        from safetensors.torch import save_file

        from samadapt.adapters.store import merge_adapter
        from samadapt.sam.weights.names import published_key

        merge_adapter(adapted.sam, adapted.injection)
        state = {
            # Meta's names are ours; MobileSAM and LiteMedSAM use others.
            published_key(name) if adapted.sam.build.encoder == "tiny_vit" else name: value
            for name, value in adapted.sam.state_dict().items()
            if not name.startswith(CLASSES)
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        torch.save(tensors, folder / TORCH_FILE)
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

    def how_to_load(self, adapted: Adapted) -> str:
        """Return code for segment-anything if it has this build, else for samadapt."""
        name = adapted.record.base
        registry = "vit_b" if name == "medsam" else name  # MedSAM is a ViT-B with other weights
        if registry in ("vit_b", "vit_l", "vit_h") and not _notes(adapted):
            return (
                "from segment_anything import SamPredictor, sam_model_registry\n"
                f'sam = sam_model_registry["{registry}"](checkpoint="{TORCH_FILE}")\n'
                "predictor = SamPredictor(sam)"
            )
        size = f", image_size={adapted.record.image_size}"
        return (
            "import samadapt\n"
            f'sam = samadapt.load_sam("{name}", "{TORCH_FILE}"{size})\n'
            "predictor = samadapt.SamPredictor(sam)"
        )


def _notes(adapted: Adapted) -> list[str]:
    """Return notes where the sizes of the model differ from those of the published code."""
    from samadapt.sam.weights.builds import BUILDS

    build = BUILDS[adapted.record.base]
    notes = []
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
