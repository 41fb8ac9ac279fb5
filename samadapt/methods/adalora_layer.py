"""AdaLoRA's pruning, done by peft's own allocator. ``adalora`` imports this file when it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator
from torch.nn import Parameter

from samadapt.methods.peft_library import ADAPTER

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


def is_part(name: str, parts: str = "ABE") -> bool:
    """Whether a parameter is an A, B or E of AdaLoRA. Those of a LoRA have longer names."""
    return name.endswith(tuple(f".lora_{part}.{ADAPTER}" for part in parts))


class _Triplets:
    """A model that shows only its AdaLoRA parameters, for peft's allocator."""

    def __init__(self, sam: Sam) -> None:
        self.sam = sam

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return ((name, p) for name, p in self.sam.named_parameters() if is_part(name))


def allocate(
    sam: Sam, first_rank: int, rank: int, step: int, total: int, *, start: int, settle: int
) -> None:
    """Update importances from the gradients, and zero the directions that exceed the budget.

    The allocator keeps running means, so it stays on the model from the first step to the last.

    Args:
        sam: the model, whose gradients are still there.
        first_rank: rank of every linear at the start.
        rank: mean rank at the end.
        step: steps done, from 1.
        total: steps of the whole run.
        start: steps before pruning begins.
        settle: steps at the end in which the ranks no longer change.
    """
    kept = vars(sam)
    if "rank_allocator" not in kept:
        config = AdaLoraConfig(
            init_r=first_rank,
            target_r=rank,
            tinit=start,
            tfinal=settle,
            total_step=total,
        )
        kept["rank_allocator"] = RankAllocator(_Triplets(sam), config, ADAPTER)
    allocator: RankAllocator = kept["rank_allocator"]
    config, triplets = allocator.peft_config, _Triplets(sam)
    # The budget falls until step ``last``, which prunes to the final budget in any case. After that
    # the same directions are zeroed in each step, because the optimizer changes them again.
    last = total - config.tfinal
    if step <= last or config.rank_pattern is None:
        forced = step >= last
        _, pattern = allocator.update_and_allocate(triplets, min(step, last), force_mask=forced)
        config.rank_pattern = pattern if forced else None
    else:
        allocator.mask_using_rank_pattern(triplets, config.rank_pattern)
    if step == total:
        del kept["rank_allocator"]
