"""AdaLoRA's pruning, done by peft's own allocator; ``adalora.py`` has the method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator

from samadapt.methods.peft_library import ADAPTER

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn import Parameter

MEANS = ("exp_avg_ipt", "exp_avg_unc")
"""The allocator's running means of the importances and of their uncertainties, by parameter."""


def is_part(name: str, parts: str = "ABE") -> bool:
    """Whether a parameter is an A, B or E of AdaLoRA. Those of a LoRA have longer names."""
    return name.endswith(tuple(f".lora_{part}.{ADAPTER}" for part in parts))


class _Triplets:
    """A model that shows only its AdaLoRA parameters, for peft's allocator."""

    def __init__(self, sam: nn.Module) -> None:
        self.sam = sam

    def named_parameters(self, parts: str = "ABE") -> Iterator[tuple[str, Parameter]]:
        return ((name, p) for name, p in self.sam.named_parameters() if is_part(name, parts))


def allocate(
    sam: nn.Module, first_rank: int, rank: int, step: int, total: int, *, start: int, settle: int
) -> None:
    """Update importances from the gradients, and zero the directions that exceed the budget.

    The allocator keeps running means, so it stays on the model.

    Args:
        sam: the model, whose gradients are still there.
        first_rank: rank of every linear at the start.
        rank: mean rank at the end.
        step: steps done, from 1.
        total: steps of the whole run.
        start: steps before pruning begins.
        settle: steps at the end in which the ranks no longer change.
    """
    if step == 1 or "rank_allocator" not in vars(sam):
        vars(sam)["rank_allocator"] = _new_allocator(sam, first_rank, rank)
    allocator: RankAllocator = vars(sam)["rank_allocator"]
    config, triplets = allocator.peft_config, _Triplets(sam)
    vars(config).update(tinit=start, tfinal=settle, total_step=total)
    # The budget falls until step ``last``, which prunes to the final budget in any case. After that
    # the same directions are zeroed in each step, because the optimizer changes them again.
    last = total - settle
    if step <= last or config.rank_pattern is None:
        forced = step >= last
        if forced and not allocator.ipt:
            # peft measures no importances in step ``last``. If it is the first one, this does.
            allocator.update_ipt(triplets)
        _, pattern = allocator.update_and_allocate(triplets, min(step, last), force_mask=forced)
        config.rank_pattern = pattern if forced else None
    else:
        allocator.mask_using_rank_pattern(triplets, config.rank_pattern)


def allocator_state(sam: nn.Module) -> dict[str, Tensor]:
    """Return the allocator's running means, and which directions it has kept once that is final.

    The keys are ``exp_avg_ipt.NAME`` and ``exp_avg_unc.NAME`` for each parameter, and ``kept.NAME``
    (rank,) bool for each E.
    """
    allocator: RankAllocator | None = vars(sam).get("rank_allocator")
    if allocator is None:
        return {}
    state = {f"{kind}.{name}": x for kind in MEANS for name, x in getattr(allocator, kind).items()}
    pattern = allocator.peft_config.rank_pattern or {}
    return state | {f"kept.{name}": torch.tensor(mask) for name, mask in pattern.items()}


def restore_allocator(
    sam: nn.Module, first_rank: int, rank: int, state: Mapping[str, Tensor]
) -> None:
    """Restore the allocator of a stopped training.

    Without a state the running means start anew, and the kept directions are those whose E is not
    zero, which is exact once the ranks are settled.

    Raises:
        ValueError: when the tensors are not those of this model's AdaLoRA.
    """
    vars(sam)["rank_allocator"] = allocator = _new_allocator(sam, first_rank, rank)
    triplets = _Triplets(sam)
    parameters, diagonals = (dict(triplets.named_parameters(parts)) for parts in ("ABE", "E"))
    means = {f"{kind}.{name}": p.shape for kind in MEANS for name, p in parameters.items()}
    kept = {f"kept.{name}": p.shape[:1] for name, p in diagonals.items()}
    shapes = {key: value.shape for key, value in state.items()}
    # The means come with the first step, and the kept directions when the ranks are settled. A run
    # whose checkpoint had no state may have the latter alone.
    if shapes not in ({}, means, kept, means | kept):
        raise ValueError("the importances do not fit the parameters of AdaLoRA")
    if means.keys() <= state.keys():
        for name, parameter in parameters.items():
            for kind in MEANS:
                getattr(allocator, kind)[name] = state[f"{kind}.{name}"].to(parameter.device)
            # A parameter without an entry here is new to peft, which would set its means to zero.
            allocator.ipt[name] = torch.zeros_like(parameter)
    if kept.keys() <= state.keys():
        masks = {name: state[f"kept.{name}"] for name in diagonals}
    elif not state:
        masks = {name: p.detach().flatten() != 0 for name, p in diagonals.items()}
    else:
        return
    allocator.peft_config.rank_pattern = {name: mask.tolist() for name, mask in masks.items()}


def _new_allocator(sam: nn.Module, first_rank: int, rank: int) -> RankAllocator:
    """Return an allocator without importances. ``allocate`` sets its schedule."""
    config = AdaLoraConfig(init_r=first_rank, target_r=rank, total_step=1)
    return RankAllocator(_Triplets(sam), config, ADAPTER)
