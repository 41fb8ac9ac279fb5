"""Modules that hang on modules of SAM and run in their hooks.

A hook finds its module on the one that it runs for, so a deep copy uses its own. Imports torch; the
methods import this file when they inject.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from samadapt.sam.tiny_vit_blocks import NormMlp


def attach(
    host: nn.Module, name: str, child: nn.Module, hook: Callable[..., Any], *, before: bool = False
) -> None:
    """Hang ``child`` on ``host``, in its device and type, and run ``hook`` in every forward pass.

    Args:
        host: a module of the frozen model.
        name: of the child in it.
        child: its parameters are trained.
        hook: as ``nn.Module.register_forward_hook`` takes it.
        before: run it before ``host`` instead, as a forward pre-hook.
    """
    like = next(host.parameters())
    host.add_module(name, child.to(like))
    register = host.register_forward_pre_hook if before else host.register_forward_hook
    object.__setattr__(child, "handle", register(hook))


def detach(host: nn.Module, name: str) -> None:
    """Undo ``attach``."""
    child: Any = host.get_submodule(name)
    child.handle.remove()
    delattr(host, name)


def bottleneck(width: int, hidden: int, activation: nn.Module) -> nn.Sequential:
    """Make ``up(activation(down(x)))``, zero at the start for any x (..., width)."""
    down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(down, activation, up)


def add_after(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add the module's ``bottleneck`` of its output."""
    del inputs
    change: Tensor = module.bottleneck(output)
    return output + change


def add_beside(module: Any, inputs: tuple[Tensor, ...], output: Tensor, scale: float) -> Tensor:
    """Add ``scale`` times the MLP's ``bottleneck`` of what its first linear sees.

    TinyViT's MLP has its norm inside.
    """
    x = module.norm(inputs[0]) if isinstance(module, NormMlp) else inputs[0]
    change: Tensor = module.bottleneck(x)
    return output + scale * change
