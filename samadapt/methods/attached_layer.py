"""Attach new modules to modules of SAM, and run them in forward hooks.

A hook looks its module up on the host that it runs for. A deep copy of the model therefore uses the
copied modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from samadapt.sam.tiny_vit_blocks import NormMlp


def attach(
    host: nn.Module, name: str, child: nn.Module, hook: Callable[..., Any], *, before: bool = False
) -> None:
    """Add ``child`` to ``host``, on its device and in its type, and run ``hook`` in every forward.

    Args:
        host: a module of the frozen model.
        name: attribute of ``host`` that holds the child.
        child: the new module, whose parameters are trained.
        hook: a function for ``nn.Module.register_forward_hook``.
        before: register it as a forward pre-hook instead, which runs before ``host``.
    """
    like = next(host.parameters())
    host.add_module(name, child.to(like))
    register = host.register_forward_pre_hook if before else host.register_forward_hook
    # Not by setattr, so that torch does not look at it; ``detach`` needs the handle.
    object.__setattr__(child, "handle", register(hook))


def detach(host: nn.Module, name: str) -> None:
    """Remove a module that ``attach`` added, and its hook."""
    child: Any = host.get_submodule(name)
    child.handle.remove()
    delattr(host, name)


def bottleneck(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    """Return ``up(activation(down(x)))`` for x (..., width); its output starts at zero."""
    down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
    # Only ``up`` starts at zero. If ``down`` did too, neither matrix would get a gradient.
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(down, activation, up)


def add_after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the ``bottleneck`` of the module's output; a forward hook."""
    del inputs
    change: Tensor = module.bottleneck(output)
    return output + change


def add_beside(module: Any, inputs: tuple[Tensor, ...], output: Tensor, scale: float) -> Tensor:
    """Add ``scale`` times the ``bottleneck`` of the input of the MLP's first linear; a hook."""
    # In TinyViT the norm is part of the MLP; in SAM's ViT and the decoder it comes before.
    x = module.norm(inputs[0]) if isinstance(module, NormMlp) else inputs[0]
    change: Tensor = module.bottleneck(x)
    return output + scale * change
