"""What one of several processes trains; ``test_several_processes.py`` starts them by torchrun.

    torchrun --nproc-per-node 2 several_processes.py FOLDER

Each case is a short training of a tiny model. The first process writes what came out of it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch.amp import GradScaler

from samadapt.sam.types import MaskOutput, Prompts
from samadapt.system import processes
from samadapt.training import loop
from samadapt.training.instance_distances import with_distances
from samadapt.training.loop import LoopOptions
from samadapt.training.losses import LOSSES
from samadapt.training.precision import Precision


@dataclass(frozen=True)
class Case:
    """One training."""

    kind: str
    method: str
    accumulate: int
    dtype: torch.dtype = torch.float64

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.method}-{self.accumulate}-fp{torch.finfo(self.dtype).bits}"


CASES = [
    Case(kind, method, accumulate, dtype)
    for kind in ("box", "point", "semantic", "interactive")
    for method in ("lora", "adalora")
    for accumulate in (1, 2)
    for dtype in (torch.float64, torch.float32)
    # Rounding moves the clicks of the interactive training, so it agrees in fp64 alone.
    if dtype == torch.float64 or (method == "lora" and accumulate == 1 and kind != "interactive")
]

# The weights are in fp32; products and their gradients in fp16.
CASES.append(Case("box", "lora", 2, torch.float16))

NAN_CASE = Case("semantic", "lora", 1)

LOSS_CASES = [
    (name, target, weighted)
    for name, loss in LOSSES.items()
    for target in ("classes", "regions")
    for weighted in (False, True)
    if target in loss.fits
]


def _tools():
    path = Path(__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("training_tools", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder: Path, case: Case, nan_at: int = 0) -> dict[str, torch.Tensor]:
    """Train five steps; the slices have one to three objects each, so prompts are uneven.

    With ``nan_at`` the loss of the last process is NaN in this step.
    """
    tools, gradients = _tools(), []
    weights = torch.float32 if case.dtype == torch.float16 else case.dtype
    samples = [tools.make_sample(index, objects=1 + index % 3) for index in range(7)]
    training = tools.make_training(
        folder / f"{case.name}-{processes.place().rank}",
        method=case.method,
        kind=case.kind,
        samples=samples,
        batch_size=3,  # which two processes share unevenly
        dtype=weights,
    )
    if weights != case.dtype:
        training.precision, training.scaler = Precision("fp16", ""), GradScaler("cpu", 2.0**12)
    add_up, right, calls = loop.sum_over_processes, training.loss, []

    def loss(output, targets):
        terms = right(output, targets)
        calls.append(1)
        is_last = processes.place().rank == processes.count() - 1
        if is_last and len(calls) == nan_at:
            return replace(terms, total=terms.total * float("nan"))
        return terms

    training.loss = loss

    def listening(parameters, numbers):
        told = add_up(parameters, numbers)
        if not gradients:
            own = [p.grad for p in parameters if p.grad is not None]
            gradients.append(torch.cat([one.flatten() for one in own]))
        return told

    options = LoopOptions(steps=5, accumulate=case.accumulate, validate_every=2, warmup_steps=1)
    with patch.object(loop, "sum_over_processes", listening):
        state = loop.train(training, options, None)
    sam, parameters = training.sam, training.injection.parameters
    features = training.features([samples[0].image])
    embedding = loop.TrainableTail(sam, training.injection.first_trainable_block)(features)
    box = torch.tensor([[[2.0, 2.0, 30.0, 30.0]]], dtype=weights)
    with torch.no_grad():
        masks = sam.decode(embedding, Prompts(boxes=box), multimask=True).logits
    return {
        "weights": torch.cat([p.detach().flatten() for p in parameters.values()]),
        "gradient": gradients[0],
        "masks": masks,
        "step": torch.tensor([state.step, state.skipped]),
    }


def loss_of(name: str, target: str, weighted: bool) -> dict[str, torch.Tensor]:
    """The loss of five images with three classes, and its gradient; partly unknown."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(5, 1, 9, 16, 16, generator=generator, dtype=torch.float64)
    shape = (5, 16, 16) if target == "classes" else (5, 3, 16, 16)
    targets = torch.randint(-1, 4 if target == "classes" else 2, shape, generator=generator)
    targets[0], targets[2, ..., :9] = 0, -1  # an image without any class
    weights = [0.5, 1.0, 2.0, 3.0] if weighted else None
    measure = with_distances(LOSSES[name]().build(target, 3, weights), 3)
    planes = targets[:, None] if targets.ndim == 3 else targets
    distances = torch.rand(5, 6, 16, 16, generator=generator) * 2 - 1
    wanted = torch.cat([planes.float(), torch.where(distances < -0.5, -1.0, distances.abs())], 1)
    rows = processes.share(range(5))
    own = logits[rows].requires_grad_()
    found = measure(MaskOutput(own, own.new_zeros(len(rows), 1, 9)), wanted[rows]).total
    found.backward()
    gradient = torch.stack(processes.shares_joined([list(g) for g in processes.gather(own.grad)]))
    return {"loss": sum(processes.gather(found.detach())), "gradient": gradient}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for _ in range(2):  # a program may run several runs, one after another
        with processes.together():
            processes.wait()
    with processes.together():
        for case in LOSS_CASES:
            found = loss_of(*case)
            if processes.is_first():
                torch.save(found, folder / f"loss-{'-'.join(map(str, case))}.pt")
        for case in CASES:
            found = results(folder, case)
            if processes.is_first():
                torch.save(found, folder / f"{case.name}.pt")
        for rank, found in enumerate(processes.gather(results(folder, NAN_CASE, nan_at=2))):
            if processes.is_first():
                torch.save(found, folder / f"nan-{rank}.pt")
        processes.wait()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
