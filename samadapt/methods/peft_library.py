"""Calls into the peft library: plan, inject, read, write and merge its layers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from samadapt.errors import AdapterError, ConfigError, nearest
from samadapt.methods.base import LowRank, Method, PeftLayers

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from torch import Tensor, nn

    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

ADAPTER = "default"
"""The name under which peft keeps the one adapter of a model."""

PREFIX = "base_model.model."
"""Prefix of stored names, which peft gives as seen from its own wrapper ``PeftModel``."""


def plan_layers(
    sam: Sam, method: Method, blocks: Sequence[AttentionBlock]
) -> tuple[PeftLayers, ...]:
    """Return what peft adds to a plain model: the method's layers, and LoRA in the decoder.

    If the method is a plain LoRA itself, the decoder's layers join its configuration, so that the
    adapter stays one that peft can load.
    """
    groups = list(method.peft_layers(sam, blocks))
    if method.decoder != "lora":
        return tuple(groups)
    names = decoder_linears(sam)
    for i, group in enumerate(groups):
        if group.kind == "LORA" and not group.options.get("use_dora"):
            rank = method.decoder_rank
            # Alpha is the rank, or its root for rslora, so that the scale is 1.
            layer = LowRank(rank, float(rank) ** (0.5 if group.options.get("use_rslora") else 1))
            ranks = {**group.ranks, **dict.fromkeys(names, layer)}
            groups[i] = replace(group, names=tuple(ranks), ranks=ranks)
            return tuple(groups)
    layer = LowRank(method.decoder_rank, float(method.decoder_rank))
    # Otherwise the decoder's LoRA is a second set of layers, with a configuration of its own.
    own = PeftLayers("LORA", tuple(names), ranks=dict.fromkeys(names, layer), reads_base=False)
    return (*groups, own)


def count_decoder_parameters(sam: Sam, method: Method) -> int:
    """Return how many parameters of a plain model's decoder the method trains."""
    if method.decoder == "full":
        return sum(parameter.numel() for parameter in sam.mask_decoder.parameters())
    if method.decoder == "own":
        return method.count_own_decoder_parameters(sam)
    if method.decoder == "frozen":
        return 0
    weights = [sam.get_parameter(f"{name}.weight") for name in decoder_linears(sam)]
    return sum(method.decoder_rank * sum(weight.shape) for weight in weights)


def linears(sam: Sam, root: str) -> list[str]:
    """Return the paths of the linear layers of a plain model at or below ``root``."""
    from torch import nn

    found = sam.get_submodule(root).named_modules(prefix=root)
    return [name for name, module in found if isinstance(module, nn.Linear)]


def decoder_linears(sam: Sam) -> list[str]:
    """Return the paths of the decoder's linears that take layers.

    SAM 2's head of the object's score is left out, because its last linear has one output, fewer
    than most ranks. The loss of the score trains the layers whose token it reads.
    """
    every = linears(sam, "mask_decoder")
    return [name for name in every if not name.startswith("mask_decoder.pred_obj_score_head.")]


def norms(sam: Sam, root: str) -> list[str]:
    """Return the paths of the layer norms of a plain model below ``root``."""
    from torch import nn

    found = sam.get_submodule(root).named_modules(prefix=root)
    return [name for name, module in found if isinstance(module, nn.LayerNorm)]


def peft_config(layers: PeftLayers, **more: Any) -> PeftConfig:
    """Return peft's configuration object for some layers.

    Raises:
        ConfigError: for an option that this kind does not have, or a value that peft refuses.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[layers.kind]  # type: ignore[index]
    known = list(kind.__dataclass_fields__)
    for key in layers.options:
        if key not in known:
            raise ConfigError(
                f"peft.options: {key} is no option of peft's {kind.__name__}{nearest(key, known)}"
            )
    options: dict[str, Any] = {"target_modules": sorted(layers.names), **_ranks(layers.ranks)}
    try:
        return kind(**{**options, **layers.options, **more})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"peft refuses these options of {layers.kind}: {error}") from error


def _ranks(ranks: Mapping[str, LowRank]) -> dict[str, Any]:
    """Return ranks and alphas: the most common value, and patterns for modules that differ."""
    if not ranks:
        return {}
    rank = Counter(layer.rank for layer in ranks.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in ranks.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,  # an integer in peft
        "rank_pattern": {name: x.rank for name, x in ranks.items() if x.rank != rank},
        "alpha_pattern": {name: x.alpha for name, x in ranks.items() if x.alpha != alpha},
    }


def inject_layers(sam: Sam, layers: PeftLayers) -> BaseTuner:
    """Let peft replace the named modules by its layers; their new parameters are trainable.

    Raises:
        ConfigError: when peft refuses the options, or the layers change the output at the start.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from torch import nn

    from samadapt.methods.lora_layer import FusedLoraLinear

    config = peft_config(layers)
    if layers.fused:
        config._register_custom_module({nn.Linear: FusedLoraLinear})  # type: ignore[attr-defined]
    trained = [parameter for parameter in sam.parameters() if parameter.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tuner = PEFT_TYPE_TO_TUNER_MAPPING[layers.kind](sam, config, ADAPTER)  # type: ignore[index]
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"peft refuses {layers.kind} here: {error}") from error
    # peft would take what it left here for another adapter of the next kind of layer.
    del sam.peft_config
    for parameter in trained:  # peft has frozen what another kind added before
        parameter.requires_grad_(True)
    sam.eval()
    if layers.check_start:
        _check_start(sam, layers)
    return tuner


def _check_start(sam: Sam, layers: PeftLayers) -> None:
    """Compare every new layer with its base on random tokens."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name in layers.names:
        layer = sam.get_submodule(name)
        if not isinstance(layer, BaseTunerLayer):
            raise ConfigError(f"peft's {layers.kind} adds nothing at {name}; it works on no linear")
        base: Any = layer.get_base_layer()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 3, base.in_features, generator=generator).to(base.weight)
        for tokens in (x, x[0, 0, 0]):  # (b, h, w, c), and one padding token of TinyViT
            with torch.no_grad():
                expected = base(tokens)
                try:
                    found = layer(tokens)
                except (RuntimeError, ValueError, IndexError) as error:
                    raise ConfigError(
                        f"peft's {layers.kind} cannot take tokens {tuple(tokens.shape)}: {error}"
                    ) from error
            atol = 1e-4 * float(expected.abs().max())
            if not torch.allclose(found, expected, rtol=1e-4, atol=atol):
                raise ConfigError(
                    f"peft's {layers.kind} with these options changes the output of {name} before "
                    "any step; set the one of peft.options that starts it at the identity"
                )


def read_state(tuner: BaseTuner, layers: PeftLayers) -> dict[str, Tensor]:
    """Return the tensors that peft saves for these layers, under peft's names."""
    from peft import get_peft_model_state_dict

    view: Any = _view(tuner)
    # peft would look for a language model's embeddings, which SAM does not have.
    state = get_peft_model_state_dict(view, adapter_name=ADAPTER, save_embedding_layers=False)
    own = tuple(f"{PREFIX}{name}." for name in layers.names)
    # Names without the prefix belong to all layers at once, such as VeRA's random pair.
    return {k: v for k, v in state.items() if k.startswith(own) or not k.startswith(PREFIX)}


def write_state(tuner: BaseTuner, state: Mapping[str, Tensor]) -> None:
    """Load tensors that ``read_state`` returned."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(_view(tuner), dict(state), adapter_name=ADAPTER)


def _view(tuner: BaseTuner) -> nn.Module:
    """Return the tuner in a module that looks like peft's ``PeftModel``."""
    from torch import nn

    view = nn.Module()
    view.base_model = tuner
    view.peft_config = tuner.peft_config  # type: ignore[assignment]
    return view


def merge_layers(sam: Sam) -> None:
    """Fold every peft layer into its linear or norm, and restore the plain module.

    Raises:
        AdapterError: when the frozen weights are in bf16, or peft cannot merge this kind.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(parameter.dtype != sam.dtype for parameter in sam.parameters()):
        raise AdapterError(
            "the frozen weights were rounded to bf16 for training and cannot take the update; load "
            "base and adapter anew, then merge"
        )
    for name, layer in list(sam.named_modules()):  # a list: the loop replaces modules
        if isinstance(layer, BaseTunerLayer):
            try:
                layer.merge()
            except (NotImplementedError, ValueError, RuntimeError) as error:
                raise AdapterError(f"peft cannot merge {name}: {error}") from error
            parent, _, child = name.rpartition(".")
            setattr(sam.get_submodule(parent), child, layer.get_base_layer())
