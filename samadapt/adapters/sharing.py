"""Several adapted models that share the tensors of one base in memory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


def share(base: Sam) -> Sam:
    """Return a model for an adapter that shares the tensors of the base.

    If an adapter later loads values over tensors of the base, such as a trained decoder, these
    tensors are copied first. The base and the other models on it do not change.

    Args:
        base: a plain model, which is not changed.
    """
    from torch import nn

    # deepcopy takes these objects from the memo instead of copying them.
    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    memo |= {id(tensor): tensor for tensor in base.memory.values()}  # nothing trains them
    # Parameters are new objects over the same memory, so each model has its own ``requires_grad``.
    memo |= {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    twin = copy.deepcopy(base, memo)
    twin.register_load_state_dict_pre_hook(_copy_first)  # type: ignore[no-untyped-call]
    return twin


def _copy_first(module: Any, state_dict: dict[str, Any], *_: Any) -> None:
    """Copy the memory of parameters and buffers that are about to be loaded; a pre-hook."""
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, tensor in tensors:
            if name in state_dict:
                tensor.data = tensor.data.clone()
