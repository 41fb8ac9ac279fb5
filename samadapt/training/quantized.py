"""Frozen weights of the image encoder in 4 bits, as in QLoRA (Dettmers et al., 2023).

bitsandbytes stores 64 weights at a time as numbers of a 4-bit type (NormalFloat, ``nf4``) and a
scale. Each product makes them whole again, in backward too, so a frozen weight takes a seventh of
fp32 in memory. What trains beside it keeps its own type.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from samadapt.adapters.four_bits import BLOCK, frozen_linears
from samadapt.errors import ConfigError

if TYPE_CHECKING:
    from samadapt.methods.base import Method


def check_quantize(setting: str, device: torch.device, method: Method) -> None:
    """Check that frozen weights can be stored as ``model.quantize`` asks.

    Raises:
        ConfigError: the device is no CUDA GPU, bitsandbytes is missing, or the method does not
            take such weights.
    """
    if setting == "none":
        return
    key = f"model.quantize={setting}"
    if not method.takes_quantized:
        raise ConfigError(
            f"{key}: peft={method.name} reads the frozen weights itself, or was not tried with 4 "
            "bits; use peft=lora or model.quantize=none"
        )
    if device.type != "cuda":
        raise ConfigError(
            f"{key} needs a CUDA GPU; this run computes on {device.type}. Use model.quantize=none "
            "and, to save memory here, precision=bf16 or memory=8GB"
        )
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{key} needs bitsandbytes: pip install 'samadapt[qlora]'")


def quantize_frozen(model: nn.Module, exact: Collection[str], dtype: torch.dtype) -> list[str]:
    """Store the frozen linears of the encoder in 4 bits; see ``frozen_linears``.

    Afterwards the model can be neither hashed nor merged.

    Args:
        model: the model on its device, changed in place.
        exact: paths of linears that keep their values.
        dtype: the type of products.

    Returns:
        The paths of the linears that were changed.

    Raises:
        ConfigError: there is no such linear.
    """
    layers: Any = import_module("bitsandbytes.nn")  # it has no types
    changed = frozen_linears(model, exact)
    for name in changed:
        linear = model.get_submodule(name)
        weight, bias = linear.get_parameter("weight"), linear._parameters["bias"]
        small = layers.Linear4bit(
            weight.shape[1],
            weight.shape[0],
            bias=bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            device="meta",
        )
        # One scale a block, in fp32: scales in 8 bits save 6 % more and could not be repeated
        # elsewhere without bitsandbytes.
        small.weight = layers.Params4bit(
            weight.detach(),
            requires_grad=False,
            quant_type="nf4",
            blocksize=BLOCK,
            compress_statistics=False,
        )
        small.bias = bias
        model.set_submodule(name, small.to(weight.device))
    return changed
