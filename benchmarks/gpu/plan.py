"""Which rows are measured, those of most worth first."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu import attention_forms, models, whole_runs
from benchmarks.gpu.contest import Device
from benchmarks.harness import Row

QUICK_SHAPES = {"tiny, window": (5, 16, 2), "tiny, global": (8, 16, 2)}
QUICK_CHOICES = {
    "points_per_side": 4,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}
CPU_SHAPES = {
    "ViT-B, window, 2 heads": (14, 64, 2),
    "ViT-B, global at 512 pixels, 2 heads": (32, 64, 2),
    "ViT-H, window, 2 heads": (14, 80, 2),
    "ViT-H, global at 512 pixels, 2 heads": (32, 80, 2),
}
"""What attends on a CPU, where fp16 at the size of a GPU takes minutes a row."""


def rows(device: Device, *, quick: bool = False) -> Iterator[Row]:
    """Yield the rows in the order in which they are measured.

    Args:
        device: ``"cuda"``, or ``"cpu"``, which takes hours without ``quick``.
        quick: tiny models, whose rows take seconds: a trial of the rows, not of the device.
    """
    yield from _quick(device) if quick else _whole(device)


def _whole(device: Device) -> Iterator[Row]:
    shapes, grid = (attention_forms.SHAPES, 64) if device == "cuda" else (CPU_SHAPES, 32)
    attention = list(attention_forms.rows(device, shapes, grid))
    first = [row for row in attention if "global" in row.name and "backward" in row.name]
    yield from first
    yield attention_forms.kernels(device, shapes, grid)
    for precision in ("bf16", "fp32", "tf32", "fp16"):
        yield models.encoder_row("vit_b", 1024, precision, 1, device)
    yield models.encoder_row("vit_h", 1024, "bf16", 8, device)
    yield models.encoder_row("vit_b", 1024, "bf16", 8, device)
    for images in (1, 4):
        yield models.step_row("vit_b", 1024, "bf16", images, device)
    yield models.step_row("vit_b", 1024, "bf16", 4, device, last=3)
    yield whole_runs.medical_row(device)
    for precision in ("bf16", "fp32"):
        for backward in (False, True):
            yield models.decoder_row("vit_b", 1, 64, precision, device, backward=backward)
    yield whole_runs.automatic_masks_row("lite_medsam", device)
    yield models.step_row("vit_h", 1024, "bf16", 1, device)
    for build in ("vit_b", "vit_l", "vit_h"):
        for images in (1, 2, 4, 8, 16):
            if (build, images) not in (("vit_b", 1), ("vit_b", 8), ("vit_h", 8)):
                yield models.encoder_row(build, 1024, "bf16", images, device)
    yield models.decoder_row("vit_b", 8, 8, "bf16", device, backward=True)
    yield from (row for row in attention if row not in first)


def _quick(device: Device) -> Iterator[Row]:
    yield from attention_forms.rows(device, QUICK_SHAPES, grid=8)
    yield attention_forms.kernels(device, QUICK_SHAPES, grid=8)
    for precision in ("fp32", "bf16"):
        yield models.encoder_row("tiny", 64, precision, 2, device)
    yield models.step_row("tiny", 64, "fp32", 2, device)
    yield models.step_row("tiny", 64, "fp32", 1, device, last=2)
    for backward in (False, True):
        yield models.decoder_row("tiny", 2, 3, "fp32", device, backward=backward)
    yield whole_runs.automatic_masks_row("tiny", device, QUICK_CHOICES, step=2)
    yield whole_runs.medical_row(
        device, ["train.steps=2", "train.batch_size=2", "data.slice_step=8", "eval.overlays=0"]
    )
