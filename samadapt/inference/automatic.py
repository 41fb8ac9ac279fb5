"""Find the masks of everything in pictures and volumes, with an adapter or a base model.

The image takes the way of every prediction: the intensity rule, then the model's own frame. A grid
of prompts takes the place of the user (``sam/automatic_masks.py``). A volume is seen slice by
slice; a mask belongs to one slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from samadapt.adapters.record import AdapterRecord
from samadapt.data.intensity import make_intensity
from samadapt.errors import AdapterError
from samadapt.inference.files import PlannedImage, PredictionPlan, each_planned, read_planned
from samadapt.inference.mask_outputs import check_fits, draw_preview, preview_file, write_masks
from samadapt.inference.segmenter import Segmenter, load_adapter
from samadapt.inference.volumes import Progress, SlicePictures
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.mask_tools import area_of
from samadapt.sam.model import Sam
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.training.compilation import check_compile, compile_parts
from samadapt.training.precision import choose_device, choose_precision

if TYPE_CHECKING:
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.data.types import Volume
    from samadapt.inference.mask_options import MaskOptions
    from samadapt.inference.mask_store import MaskStore
    from samadapt.sam.automatic_masks import FoundMask, SamAutomaticMaskGenerator
    from samadapt.system.arrays import Array


def open_segmenter(
    adapter: str | Path | Sequence[str | Path] | None,
    model: str | None,
    *,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    intensity: str | None = None,
    axis: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
) -> Segmenter:
    """Load an adapter, several, or a base model without one.

    Args:
        adapter: see ``load_adapter``; None: the base model that ``model`` names.
        model: name of the build of a base model.
        checkpoint: file of the base weights; None: they are found by the name.
        image_size: see ``base_segmenter``.
        intensity: the rule of a base model; None: ``rgb``.
        axis: see ``base_segmenter``.
        device: see ``load_adapter``.
        precision: see ``load_adapter``.
        compile: see ``load_adapter``.

    Raises:
        UserError: as ``load_adapter`` and ``base_segmenter``.
    """
    if adapter is not None:
        return load_adapter(
            adapter, checkpoint=checkpoint, device=device, precision=precision, compile=compile
        )
    return base_segmenter(
        str(model),
        checkpoint=checkpoint,
        image_size=image_size,
        intensity=intensity or "rgb",
        axis=axis,
        device=device,
        precision=precision,
        compile=compile,
    )


def base_segmenter(
    model: str,
    *,
    checkpoint: str | Path | None,
    image_size: int | None,
    intensity: str,
    axis: str | None,
    device: str,
    precision: str,
    compile: bool = False,
) -> Segmenter:
    """Load a base model without an adapter.

    Args:
        model: name of the build.
        checkpoint: file of its weights; None: they are found by the name.
        image_size: side of the model's square in pixels; None: that of the weights.
        intensity: the rule that maps the values of the files to 0..255.
        axis: the axis that the slices of a volume cut; None: the reader's choice.
        device: see ``load_adapter``.
        precision: see ``load_adapter``.
        compile: see ``load_adapter``.

    Raises:
        ConfigError: the intensity rule or the size is not valid, or there is no such device, or it
            cannot compile.
        WeightsError: the weights are not found or are of another kind.
    """
    rule = make_intensity(intensity)
    target = choose_device(device)
    if compile:
        check_compile(target)
    file = None if checkpoint is None else Path(checkpoint).expanduser()
    sam = load_sam(model, file, image_size).to(target)
    record = AdapterRecord(
        base=model,
        base_sha256=base_hash(sam),
        image_size=sam.image_size,
        preprocessing=asdict(sam.preprocessing),
        intensity=rule.to_dict(),
        classes=["object"],
        prompt=PromptPolicy("point").to_dict(),
        axis=axis,
    )
    if compile:
        compile_parts(sam)
    return Segmenter(sam, record, choose_precision(precision, target))


class MaskFinder:
    """Finds the masks of everything in an image.

    Args:
        segmenter: the adapter in use, or a base model of ``base_segmenter``.
        options: how the image is prompted, and which masks are kept.
        is_adapted: whether the segmenter has an adapter.

    Attributes:
        options: the options with values that fit the model.
        category: name of the only class of the adapter, or ``"object"``.

    Raises:
        AdapterError: the adapter predicts classes and takes no prompts, sees stacks of slices, or
            several adapters are in use.
        PromptError: the options contradict each other.
    """

    def __init__(self, segmenter: Segmenter, options: MaskOptions, *, is_adapted: bool) -> None:
        model = segmenter.sam
        is_unprompted = segmenter.policy.is_semantic and not segmenter.record.keeps_prompts
        if not isinstance(model, Sam) or is_unprompted:
            raise AdapterError(
                "masks without prompts prompt the model with a grid, and this adapter was trained "
                "without prompts: it finds its classes by itself. Use samadapt predict (with "
                "objects=true for a list of the objects), or an adapter that was trained with "
                "prompts=box, prompts=point or prompts.keep_promptable=true"
            )
        if segmenter.stack > 1:
            raise AdapterError(
                f"masks without prompts look at single slices, and this adapter sees "
                f"{segmenter.stack} neighbouring slices together (peft.depth)"
            )
        if segmenter.member_count > 1:
            raise AdapterError(
                f"masks without prompts come from one model, and {segmenter.member_count} adapters "
                "are in use; give one adapter"
            )
        self.segmenter, self.sam = segmenter, model
        self.options = options.fitted(model, segmenter.policy, is_adapted=is_adapted)
        self.generator: SamAutomaticMaskGenerator = self.options.generator(model)
        classes = segmenter.classes
        self.category = classes[0] if len(classes) == 1 else "object"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the masks of an image: the model, the adapter and the options."""
        record = self.segmenter.record
        options = asdict(self.options).items()
        return {
            "base": record.base,
            "base_sha256": record.base_sha256,
            "adapter_sha256": record.weights_sha256,
            "image_size": record.image_size,
            "intensity": record.intensity,
            "axis": record.axis,
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options},
        }

    def candidates(self, picture: Array) -> list[FoundMask]:
        """Return all masks of a picture (h, w, 3) uint8 above the thresholds, with duplicates."""
        with self.segmenter.precision.autocast(self.sam.device), torch.no_grad():
            found = self.generator.candidates(picture)
        return [mask for mask in found if area_of(mask.runs)]

    def in_picture(self, picture: Array) -> list[FoundMask]:
        """Return the masks of a picture (h, w, 3) uint8, the highest predicted IoU first."""
        found = self.generator.select(self.candidates(picture))
        return sorted((mask for mask in found if area_of(mask.runs)), key=lambda one: -one.iou)

    def in_volume(self, volume: Volume, progress: Progress | None = None) -> list[list[FoundMask]]:
        """Return the masks of each slice of a volume; a picture has one slice."""
        pictures = SlicePictures(volume, self.segmenter.intensity, None)
        count, found = volume.shape[2], []
        for index in range(count):
            found.append(self.in_picture(pictures(index)))
            if progress is not None:
                progress(index + 1, count)
        return found


def find_planned(
    finder: MaskFinder,
    plan: PredictionPlan,
    how: ReaderOptions,
    store: MaskStore,
    *,
    sa1b: bool,
    preview: bool,
    progress: Callable[[str], Progress] | None = None,
) -> list[dict[str, Any]]:
    """Find the masks of the images of a plan and write them.

    Args:
        finder: finds the masks.
        plan: from ``plan_prediction``; of a part of a folder, with the images of the part.
        how: how images are read.
        store: what is written already; these images are skipped.
        sa1b: a ``.json`` output is that of SA-1B, one for each picture, and not COCO's.
        preview: also draw the masks over each image.
        progress: called with the name of each image; returns what is called after each slice.

    Returns:
        One row per image: ``"output"``, ``"shape"`` [h, w, d], ``"masks"``, their number, and
        ``"preview"``; or ``"skipped": True``; and in a folder ``"input"``, and ``"error"`` for an
        image that failed.

    Raises:
        UserError: the single image of a plan cannot be done.
    """

    def find(planned: PlannedImage, target: Path, show: Progress | None) -> dict[str, Any]:
        volume = read_planned(planned.image, how)
        check_fits(volume, planned.path, target)
        found = finder.in_volume(volume, show)
        count = sum(len(masks) for masks in found)
        row: dict[str, Any] = {"output": str(target), "shape": list(volume.shape), "masks": count}
        if preview:
            # Before the output, whose existence says that the image is done.
            place = preview_file(planned.path, target, shared=store.coco is not None)
            pictures = SlicePictures(volume, finder.segmenter.intensity, None)
            busiest = max(range(len(found)), key=lambda index: len(found[index]))
            draw_preview(pictures(busiest), found[busiest], place)
            row["preview"] = str(place)
        source, coco = planned.path, store.coco
        write_masks(found, volume, source, target, finder.category, sa1b=sa1b, coco=coco)
        if volume.findings:
            row["warnings"] = [str(finding) for finding in volume.findings]
        return row

    rows = each_planned(plan, find, progress, command="masks", done=store.done_rows(plan))
    store.finish(rows)
    return rows
