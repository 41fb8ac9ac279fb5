"""Choose the size of a method so that it trains a given number of parameters of the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch

from samadapt.config.schema import Config
from samadapt.config.sweep_arguments import SIZES
from samadapt.errors import ConfigError
from samadapt.methods.base import Method, method_for, select_blocks
from samadapt.sam.model import Sam, build_sam

LARGEST = 4096
"""The largest rank, width or number of tokens that is tried."""

TOLERANCE = 0.25
"""A method whose nearest size differs by more than this share is refused: the comparison would not
be at equal parameters. One rank more or less of a small LoRA is about a tenth."""


def size_for(config: Config, target: int, longest_side: int) -> dict[str, str]:
    """Return the options, as typed, with which a method trains about so many parameters.

    Args:
        config: the configuration of a trial; its method has a rank, a hidden width or tokens.
        target: number of trained parameters of the encoder.
        longest_side: of the training pictures in pixels, for ``peft.blocks=auto``.

    Returns:
        The options that differ; none for a method without a size.

    Raises:
        ConfigError: the method cannot come near the number.
    """
    has_head = config.head.name != "sam"
    method = method_for(config.peft, longest_side, has_head=has_head)
    sam = _shape_of(config.model.name)
    option = next((name for name in SIZES if name in {f.name for f in fields(method)}), None)
    if option is None:
        options: dict[str, Any] = {}
        found = count_trained(sam, method)
    else:
        size = _nearest(lambda size: count_trained(sam, _sized(method, option, size)), target)
        options = _options(method, option, size)
        found = count_trained(sam, replace(method, **options))
    if abs(found - target) > TOLERANCE * target:
        how = "it has no rank" if option is None else f"the nearest is peft.{option}={size}"
        raise ConfigError(
            f"equal_parameters={target}: peft={method.name} with peft.blocks={method.blocks} "
            f"trains {found} parameters of the encoder, and {how}; leave the method out, or give "
            "another number"
        )
    return {f"peft.{name}": str(value) for name, value in options.items()}


def count_trained(sam: Sam, method: Method) -> int:
    """Return how many parameters a method trains, those of a decoder that trains whole left out."""
    blocks = select_blocks(method.blocks, sam.attention_blocks())
    own = method.count_own_decoder_parameters(sam) if method.decoder == "own" else 0
    return method.count_parameters(sam, blocks) + own


def _sized(method: Method, option: str, size: int) -> Method:
    return replace(method, **_options(method, option, size))


def _options(method: Method, option: str, size: int) -> dict[str, Any]:
    """Return the options of a size; AdaLoRA starts at twice the rank and prunes to it."""
    first = {"first_rank": 2 * size} if hasattr(method, "first_rank") else {}
    return {option: size, **first}


def _nearest(count: Callable[[int], int], target: int) -> int:
    """Return the size whose count is nearest; counts grow with the size."""
    low, high = 1, 1
    while high < LARGEST and count(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    return min((low, high), key=lambda size: abs(count(size) - target))


@cache
def _shape_of(model: str) -> Sam:
    """Return a model without weights, whose layers have their sizes."""
    with torch.device("meta"):
        return build_sam(model)
