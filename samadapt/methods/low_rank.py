"""peft's LoRA layers in encoder and decoder: one configuration, injected, merged and described."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from samadapt.errors import AdapterError
from samadapt.methods.base import LowRank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from samadapt.methods.base import Method
    from samadapt.sam.model import Sam
    from samadapt.sam.types import BlockSite

ADAPTER = "default"
"""peft's name for the one adapter that a model carries here."""


def plan(sam: Sam, method: Method, sites: Sequence[BlockSite]) -> dict[str, LowRank]:
    """Return every linear of a plain model that gets a LoRA layer, by module path."""
    layers = method.low_rank(sites)
    if method.decoder == "lora":
        layer = LowRank(method.decoder_rank, float(method.decoder_rank))
        layers |= dict.fromkeys(_decoder_linears(sam), layer)
    return layers


def decoder_formula(sam: Sam, method: Method) -> int:
    """Return how many parameters of a plain model's decoder the method trains."""
    if method.decoder == "full":
        return sum(parameter.numel() for parameter in sam.mask_decoder.parameters())
    if method.decoder == "frozen":
        return 0
    weights = [sam.get_parameter(f"{name}.weight") for name in _decoder_linears(sam)]
    return sum(method.decoder_rank * sum(weight.shape) for weight in weights)


def _decoder_linears(sam: Sam) -> list[str]:
    from torch import nn

    return [
        f"mask_decoder.{name}"
        for name, module in sam.mask_decoder.named_modules()
        if isinstance(module, nn.Linear)
    ]


def peft_config(
    layers: Mapping[str, LowRank], dropout: float, modules_to_save: list[str] | None
) -> dict[str, Any]:
    """Return ``LoraConfig``'s arguments; ranks that differ from the commonest go into patterns.

    Args:
        layers: the linears by module path; empty is allowed (only ``modules_to_save``).
        dropout: before every layer.
        modules_to_save: modules that are trained and stored whole.
    """
    from peft.utils.constants import DUMMY_TARGET_MODULES

    ranks = Counter(layer.rank for layer in layers.values())
    alphas = Counter(layer.alpha for layer in layers.values())
    rank = ranks.most_common(1)[0][0] if ranks else 1
    alpha = alphas.most_common(1)[0][0] if alphas else 1.0
    return {
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "target_modules": sorted(layers) if layers else DUMMY_TARGET_MODULES,
        "lora_dropout": dropout,
        "rank_pattern": {name: x.rank for name, x in layers.items() if x.rank != rank},
        "alpha_pattern": {name: x.alpha for name, x in layers.items() if x.alpha != alpha},
        "modules_to_save": modules_to_save,
    }


def inject(sam: Sam, layers: Mapping[str, LowRank], dropout: float) -> None:
    """Let peft put LoRA layers on the named linears; its B is zero, so nothing changes yet."""
    from peft import LoraConfig, inject_adapter_in_model
    from torch import nn

    from samadapt.methods._fused import FusedLoraLinear

    config = LoraConfig(**peft_config(layers, dropout, None))
    config._register_custom_module({nn.Linear: FusedLoraLinear})
    inject_adapter_in_model(config, sam, ADAPTER)


def merge(sam: Sam) -> None:
    """Fold every LoRA layer into its linear and put the plain linear back.

    Raises:
        AdapterError: when training left the frozen weights in bf16.
    """
    from peft.tuners.lora import LoraLayer

    if any(parameter.dtype != sam.dtype for parameter in sam.parameters()):
        raise AdapterError(
            "the frozen weights were rounded to bf16 for training and cannot take the update; load "
            "base and adapter anew, then merge"
        )

    for name, layer in list(sam.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(sam.get_submodule(parent), child, layer.get_base_layer())
    if "peft_config" in vars(sam):
        del sam.peft_config
