"""``compile=true``: the repeated parts of a model through ``torch.compile``.

Each part is compiled by itself, when it first runs: the attention blocks of the encoder, the
transformer of the mask decoder and what enlarges its image, or the dense head. Blocks of one kind
share their code, so a deep encoder takes no longer to compile than one of each kind. Everything
around the parts, such as stored features, prompts and losses, runs as without it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from samadapt.errors import ConfigError
from samadapt.sam.model import Sam

if TYPE_CHECKING:
    from torch import nn

    from samadapt.sam.segmentation_model import SegmentationModel

KINDS = 64
"""Most kinds of a part that are compiled: windows and whole images, with and without gradients, by
type and shape. torch keeps 8 by default, and all that follow would run uncompiled."""


def check_compile(device: torch.device) -> None:
    """Check that this machine can compile, by compiling a sum.

    torch writes C++ for CPUs and Triton or C++ for GPUs, so it needs a compiler or a package that
    may be missing.

    Raises:
        ConfigError: it cannot; says why.
    """
    number = time.time_ns() % 2**31  # a sum that no cache holds
    ones = torch.ones(2, device=device)
    try:
        torch.compile(lambda x: x + number, dynamic=False)(ones)
    # Each backend has errors of its own, which have no class in common but this.
    except Exception as error:
        raise ConfigError(
            f"compile=true: torch.compile does not work on {device.type} here: {_reason(error)}. "
            f"Install {'g++' if device.type == 'cpu' else 'g++ and triton'}, or use compile=false"
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line of the error behind an error of torch.compile, without its advice."""
    inner = getattr(error, "inner_exception", None) or error.__cause__ or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return (lines[0] if lines else type(inner).__name__).rstrip(".:")


def compile_parts(model: SegmentationModel) -> list[str]:
    """Compile the parts of a model, in place; call it when all layers are in the model.

    The names of its tensors stay as they are, and a deep copy of it is not compiled.

    Returns:
        The paths of the parts.

    Raises:
        ConfigError: the model has none of the parts.
    """
    names = [block.block for block in model.attention_blocks()]
    fixed: set[str] = set()
    if isinstance(model, Sam):
        # The blocks of Hiera have many shapes. Code for sizes that are symbols takes minutes for
        # each kind of block (sam2_t: over six in all), code for each shape 22 s for all blocks.
        fixed = set(names) if model.build.encoder == "hiera" else fixed
        names += ["mask_decoder.transformer", "mask_decoder.output_upscaling"]
    if model.dense_head is not None:
        names.append("dense_head")
    if not names:
        raise ConfigError("compile=true: this model has no parts that are compiled; leave it out")
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, KINDS)
    for name in names:
        part: nn.Module = model.get_submodule(name)
        part.compile(dynamic=False if name in fixed else None)
    return names
