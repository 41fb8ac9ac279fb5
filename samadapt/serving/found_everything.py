"""The masks of everything in a picture that a client sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samadapt.inference.automatic import MaskFinder
from samadapt.inference.mask_options import MaskOptions
from samadapt.inference.segmenter import Segmenter
from samadapt.sam.mask_tools import decode_mask

if TYPE_CHECKING:
    from samadapt.serving.served_image import ImageView
    from samadapt.system.arrays import Array


def find_everything(
    view: ImageView, points_per_side: int, min_area: int
) -> list[tuple[Array, float]]:
    """Return masks (h, w) and their predicted IoU, the highest first.

    Args:
        view: a picture as a model sees it. The thresholds are those that fit this model.
        points_per_side: of the grid that prompts it.
        min_area: islands and holes below this many pixels are dropped.

    Raises:
        AdapterError: the model finds its classes, and takes no prompts.
    """
    model = view.model
    segmenter = Segmenter(model.bundle.sam, model.bundle.record, model.precision)
    options = MaskOptions(points_per_side=points_per_side, min_area=min_area)
    finder = MaskFinder(segmenter, options, is_adapted=not model.is_base)
    return [(decode_mask(one.runs), one.iou) for one in finder.in_picture(view.pictures(0))]
