"""The adapter directory: a PEFT directory plus ``samadapt.json``, written as a whole or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.combining import method_from_dict
from samadapt.adapters.injection import Injection, inject
from samadapt.adapters.record import (
    RECORD,
    AdapterRecord,
    check_weights,
    read_record,
    write_record,
)
from samadapt.adapters.verify import (
    check_finite,
    check_peft_config,
    check_tensors,
    read_json,
    read_weights,
    write_json,
)
from samadapt.errors import AdapterError, ConfigError
from samadapt.methods import peft_library
from samadapt.methods.base import PeftLayers
from samadapt.prompts.policy import AUTO
from samadapt.sam.watershed import INSTANCE_HEAD, WATERSHED_KEYS, Watershed
from samadapt.system import atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samadapt.sam.dense_head import HeadSettings
    from samadapt.sam.model import Sam

WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
CARD = "README.md"


def save_adapter(directory: Path, sam: Sam, injection: Injection, record: AdapterRecord) -> None:
    """Write an adapter directory. An existing one is replaced when the new one is complete.

    Args:
        directory: the folder to create, with its parents.
        sam: the adapted model.
        injection: what ``inject`` returned.
        record: the entries of ``samadapt.json``; ``method`` is filled in here, and ``versions`` if
            it is empty.

    Raises:
        AdapterError: when a weight is not finite, or the record contradicts the model.
        WriteError: when the directory cannot be written; an existing one then stays as it is.
    """
    from safetensors.torch import save_file
    from torch import contiguous_format

    from samadapt.adapters.card import base_name, fits_plain_base, model_card

    if record.num_masks != sam.build.num_multimask:
        raise AdapterError(
            f"{directory / RECORD}: num_masks: the model has {sam.build.num_multimask}; got "
            f"{record.num_masks}"
        )
    tokens = 0 if sam.class_tokens is None else sam.class_tokens.count
    if record.class_tokens != tokens:
        raise AdapterError(
            f"{directory / RECORD}: class_tokens: the model has {tokens}; got {record.class_tokens}"
        )
    if record.makes_prompts != (sam.prompt_generator is not None):
        raise AdapterError(
            f"{directory / RECORD}: prompt: the kind {AUTO} belongs to a model with a prompt "
            f"generator; got {record.prompt.get('kind')!r}"
        )
    if record.input_channels != sam.input_channels:
        raise AdapterError(
            f"{directory / RECORD}: input_channels: the model has {sam.input_channels}; got "
            f"{record.input_channels}"
        )
    state = stored_tensors(sam, injection)
    # safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        key: value.detach().cpu().clone(memory_format=contiguous_format)
        for key, value in state.items()
    }
    check_finite(tensors, directory / WEIGHTS)
    record = replace(
        record,
        method=injection.method.to_dict(),
        versions=record.versions or package_versions(),
    )
    needed = sum(value.nbytes for value in tensors.values())
    with atomic.folder(directory, needed) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        config = {**_peft_config(injection), "base_model_name_or_path": base_name(record)}
        write_json(fresh / PEFT_CONFIG, config)
        # This comes after the weights, because the record holds the sha256 of their file.
        write_record(fresh, record, fresh / WEIGHTS)
        plain_peft = injection.plain_peft and fits_plain_base(record)
        card = model_card(record, injection.trainable, plain_peft=plain_peft)
        atomic.write_text(fresh / CARD, card)


def load_into(directory: Path, sam: Sam, record: AdapterRecord | None = None) -> Injection:
    """Load an adapter directory into a freshly loaded base.

    The record and the base are checked before the model is changed. If the weights are refused
    later, the model must be loaded again.

    Args:
        directory: written by ``save_adapter``.
        sam: the base, as ``load_sam`` returned it; changed in place.
        record: the directory's ``samadapt.json``, if the caller has read it already.

    Returns:
        The injection; its parameters can be trained further.

    Raises:
        AdapterError: naming the file. It is missing or broken; belongs to another base, image size
            or method; has a changed rank or alpha, missing or unexpected keys, wrong shapes or NaN.
    """
    record = record or read_record(directory)
    try:
        method = method_from_dict(record.method)
    except ConfigError as error:
        raise AdapterError(f"{directory / RECORD}: {error}") from error
    _check_base(directory / RECORD, record, sam)
    tensors = read_weights(directory / WEIGHTS)
    config = read_json(directory / PEFT_CONFIG)
    # These change the base, so they come after its hash was compared.
    if record.num_masks != sam.build.num_multimask:
        sam.resize_mask_tokens(record.num_masks)
    if record.class_tokens:
        background = record.prompt.get("background_token") is True
        sam.add_class_tokens(record.class_tokens, background=background)
    if record.makes_prompts:
        sam.add_prompt_generator(len(record.classes))
    if record.input_channels > 3:
        sam.add_input_projection(record.input_channels)
    if record.head:
        sam.add_dense_head(len(record.classes), *_head_settings(directory / RECORD, record))
    try:
        injection = inject(sam, method)
    except ConfigError as error:
        raise AdapterError(f"{directory / RECORD}: {error}") from error
    check_peft_config(directory / PEFT_CONFIG, config, _peft_config(injection))
    check_tensors(directory / WEIGHTS, tensors, stored_tensors(sam, injection))
    check_weights(directory, directory / WEIGHTS, record)
    try:
        restore_tensors(sam, injection, tensors)
    except AdapterError as error:
        raise AdapterError(f"{directory / WEIGHTS}: {error}") from error
    if record.quantize:
        from samadapt.adapters.four_bits import round_frozen  # it imports torch

        round_frozen(sam, injection.exact)
    return injection


def merge_adapter(sam: Sam, injection: Injection) -> None:
    """Fold the adapter into the base weights; afterwards the model is a plain, frozen ``Sam``.

    Raises:
        AdapterError: when the method cannot be merged.
    """
    if injection.method.can_merge:
        peft_library.merge_layers(sam)
    # If the method cannot be merged, this raises, and nothing has changed yet.
    injection.method.merge(sam, injection.attention_blocks)
    sam.fold_memory()
    sam.adapter_names = ()
    sam.requires_grad_(False)


def trainable_state(sam: nn.Module, injection: Injection) -> dict[str, Tensor]:
    """Return copies of the trained parameters on the CPU, by their name in the model."""
    parameters = dict(sam.named_parameters())
    return {name: parameters[name].detach().cpu().clone() for name in injection.parameters}


def load_trainable_state(sam: nn.Module, injection: Injection, state: Mapping[str, Tensor]) -> None:
    """Load what ``trainable_state`` returned.

    Raises:
        AdapterError: when names or shapes differ.
    """
    import torch

    own = {name: p for name, p in sam.named_parameters() if name in injection.parameters}
    check_tensors(Path("trainable state"), state, own)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def stored_tensors(sam: Sam, injection: Injection) -> dict[str, Tensor]:
    """Return the stored tensors: what peft saves for its layers, and all other trained ones."""
    stored: dict[str, Tensor] = {}
    for layers, tuner in injection.peft:
        stored |= peft_library.read_state(tuner, layers)
    by_peft = tuple(f"{name}." for layers, _ in injection.peft for name in layers.names)
    state = sam.state_dict()
    others = [
        name
        for name in injection.parameters
        if not name.startswith(by_peft) or ".base_layer." in name  # a bias trained beside peft
    ]
    return stored | {peft_library.PREFIX + name: state[name] for name in others}


def restore_tensors(sam: Sam, injection: Injection, tensors: Mapping[str, Tensor]) -> None:
    """Load what ``stored_tensors`` returned, after keys and shapes have been checked."""
    left = dict(tensors)
    for layers, tuner in injection.peft:
        keys = peft_library.read_state(tuner, layers)
        peft_library.write_state(tuner, {key: left.pop(key) for key in keys})
    plain = {key.removeprefix(peft_library.PREFIX): value for key, value in left.items()}
    # Not strict, because only the trained tensors are given. The caller has compared their names.
    sam.load_state_dict(plain, strict=False)


def _peft_config(injection: Injection) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``."""
    from peft.utils.constants import DUMMY_TARGET_MODULES

    method = injection.method
    if not injection.plain_peft:
        return {
            # peft does not know this type, so it refuses the directory.
            "peft_type": f"SAMADAPT_{method.name.upper()}",
            "library_name": "samadapt",
            "note": "no kind of peft's; load it with samadapt.load_adapter",
            "method": method.to_dict(),
        }
    more: dict[str, Any] = {"inference_mode": True}
    if method.decoder == "full":
        more["modules_to_save"] = ["mask_decoder"]
    layers = injection.peft[0][0] if injection.peft else PeftLayers("LORA", ())
    if not layers.names:
        # Only the decoder is trained, and peft demands a target. This word stands for no layer.
        more |= {"r": 1, "lora_alpha": 1, "target_modules": DUMMY_TARGET_MODULES}
    config = peft_library.peft_config(layers, **more).to_dict()
    plain: dict[str, Any] = json.loads(json.dumps(config, default=_as_list))
    return {
        key: sorted(v) if key == "target_modules" and isinstance(v, list) else v
        for key, v in plain.items()
    }


def _as_list(value: object) -> list[Any]:
    if isinstance(value, set | frozenset):
        # peft holds names in sets, whose order differs from run to run.
        return sorted(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def _head_settings(path: Path, record: AdapterRecord) -> tuple[HeadSettings, Watershed | None]:
    """Return the sizes of the dense head that the record describes, and how it separates objects.

    Raises:
        AdapterError: the entry ``head`` describes no head.
    """
    from samadapt.sam.dense_head import HEAD_NAME, HeadSettings  # it imports torch

    values = dict(record.head)
    name = values.pop("name", None)
    if name not in (HEAD_NAME, INSTANCE_HEAD):
        raise AdapterError(
            f"{path}: head: expected the name {HEAD_NAME} or {INSTANCE_HEAD}; got {name!r}"
        )
    watershed = read_watershed(path, record)
    sizes = {
        key: value for key, value in values.items() if key not in WATERSHED_KEYS or not watershed
    }
    try:
        return HeadSettings(**sizes), watershed
    except ConfigError as error:
        raise AdapterError(f"{path}: head: {error}") from error


def read_watershed(path: Path, record: AdapterRecord) -> Watershed | None:
    """Return how the model of a record separates the objects of a class; None: it does not.

    Raises:
        AdapterError: an entry is missing or out of range; names the file.
    """
    if not record.separates_objects:
        return None
    try:
        return Watershed(**{key: record.head[key] for key in WATERSHED_KEYS})
    except KeyError as error:
        raise AdapterError(f"{path}: head: {error} is missing") from error
    except ConfigError as error:
        raise AdapterError(f"{path}: head: {error}") from error


def _check_base(path: Path, record: AdapterRecord, sam: Sam) -> None:
    """Refuse a base other than the one that the adapter was trained on."""
    from samadapt.sam.weights.loading import base_hash

    # The hash depends on the image size, so this cause of a mismatch is named first.
    if record.image_size != sam.image_size:
        raise AdapterError(
            f"{path}: trained at image_size {record.image_size}; the model has {sam.image_size}. "
            f"Load the base with image_size={record.image_size}"
        )
    if sam.adapter_names:
        raise AdapterError("this model already carries an adapter; load a fresh base")
    # The name is not enough: MedSAM has tensors of the same names and shapes as ViT-B.
    found = base_hash(sam)
    if found != record.base_sha256:
        raise AdapterError(
            f"{path}: trained on base {record.base} with sha256 {record.base_sha256}; the model "
            f"given is {sam.build.name} with sha256 {found}. Load the weights that it names"
            + (f" ({record.checkpoint})" if record.checkpoint else "")
        )


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that train an adapter."""
    found = {}
    for package in ("samadapt", "torch", "peft", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
