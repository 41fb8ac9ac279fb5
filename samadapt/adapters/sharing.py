"""Several adapted models over one base: each has modules of its own and the base's tensors."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


def share(base: Sam) -> Sam:
    """Return a model to inject into that holds the base's tensors without a copy.

    What an adapter loads over the base's own tensors, such as a trained decoder, is copied first,
    so that the base and the other models over it stay as they are.

    Args:
        base: a plain model; only read.
    """
    from torch import nn

    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    memo |= {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    twin = copy.deepcopy(base, memo)
    twin.register_load_state_dict_pre_hook(_copy_first)  # type: ignore[no-untyped-call]
    return twin


def _copy_first(module: Any, state_dict: dict[str, Any], *_: Any) -> None:
    """Give the named parameters and buffers memory of their own; they stay the same objects."""
    for tensors in (module.named_parameters(), module.named_buffers()):
        for name, tensor in tensors:
            if name in state_dict:
                tensor.data = tensor.data.clone()
