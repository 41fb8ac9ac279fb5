"""The configuration of an evaluation: what the adapter records, under what the user asks for."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from samadapt.adapters.combining import method_from_dict
from samadapt.adapters.record import LOCAL_OPTIONS, AdapterRecord
from samadapt.config.compose import from_yaml
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.config.prompt_settings import PromptSettings
from samadapt.config.schema import Config, Head, Model
from samadapt.data.tiles import recorded_tiling
from samadapt.errors import ConfigError
from samadapt.prompts.policy import AUTO
from samadapt.prompts.shares import MIXED


def recorded_keys(adapter: Path, record: AdapterRecord) -> dict[str, Any]:
    """Return what an adapter says about data and prompts, as keys of ``samadapt evaluate``.

    The adapter itself names no file of any machine. If the run directory that trained it is still
    around it, the folder of the data set and the file of the base weights come from there.

    Args:
        adapter: the adapter directory.
        record: its ``samadapt.json``.

    Raises:
        ConfigError: when the ``config.yaml`` beside the adapter cannot be read.
    """
    data = dict(record.data_options) or {"name": record.data}
    data |= {"intensity": record.intensity}
    keys: dict[str, Any] = {}
    config_file = adapter.parent / "config.yaml"
    if config_file.is_file():
        config = from_yaml(config_file)
        keys |= {"checkpoint": config.model.checkpoint, "privacy": config.privacy}
        # The folders of another data set do not hold the data that the adapter records.
        if config.data.name == data["name"]:
            local = asdict(config.data).items()
            data |= {k: v for k, v in local if k in LOCAL_OPTIONS and k != "on_error"}
    known = {item.name for item in fields(PromptSettings)}  # the record holds further entries
    prompts = {key: value for key, value in record.prompt.items() if key in known}
    return {**keys, "data": data, "prompts": prompts | _recorded_kind(record)}


def _recorded_kind(record: AdapterRecord) -> dict[str, Any]:
    """Return the keys that say by which kinds of prompts an adapter was trained."""
    kind, clip = record.prompt.get("kind", "box"), record.prompt.get("clip")
    shares = record.prompt.get("shares")
    if clip is None:
        return {"name": kind, "shares": shares, "clip": None, "first": None}
    return {"name": "propagate", "shares": None, "clip": clip, "first": shares or kind}


def evaluation_config(arguments: EvaluateArguments, record: AdapterRecord) -> Config:
    """Return the configuration of an evaluation: the adapter's model on the user's data.

    Raises:
        ConfigError: for ``prompts=matrix`` with an adapter for more than three channels, for
            ``prompts=volume_clicks`` or ``one_slice`` with one that takes no prompts, and for
            ``data.train_cases`` and ``output.trackers``, which are for a training.
    """
    _check(arguments, record)
    many_channels = record.input_channels if record.input_channels > 3 else None
    prompts = {item.name: getattr(arguments.prompts, item.name) for item in fields(PromptSettings)}
    # These come beside the usual scores, which use the adapter's own kind of prompt.
    if prompts["name"] in ("matrix", "volume_clicks", "one_slice"):
        prompts |= _recorded_kind(record)
    # What the background is belongs to the adapter, and only matters where it finds classes.
    finds_classes = prompts["name"] in ("semantic", MIXED)
    prompts["background_token"] = finds_classes and record.prompt.get("background_token") is True
    # Naming another data set resets the keys that are bound to it. These belong to the adapter,
    # whatever data it is scored on.
    data = arguments.data
    data = replace(
        data,
        intensity=data.intensity or record.intensity or None,
        axis=data.axis if data.axis is not None else record.axis,
    )
    tiling = recorded_tiling(record.data_options)
    if data.tile is None and tiling is not None:
        data = replace(data, tile=tiling.side)
    # "inputs" holds one intensity rule for each channel, so the channels must be those of training.
    if data.channel is None and "inputs" in record.intensity:
        data = replace(data, channel=record.data_options.get("channel"))
    return Config(
        model=Model(
            record.base,
            arguments.checkpoint,
            record.image_size,
            many_channels,
            record.quantize or "none",
        ),
        peft=method_from_dict(record.method),
        data=data,
        prompts=PromptSettings(**prompts),
        head=_recorded_head(record),
        cache=arguments.cache,
        eval=arguments.eval,
        output=arguments.output,
        precision=arguments.precision,
        device=arguments.device,
        privacy=arguments.privacy,
        recipe="evaluate",
    )


def _check(arguments: EvaluateArguments, record: AdapterRecord) -> None:
    """Refuse keys that do not fit the adapter, an evaluation or each other.

    Raises:
        ConfigError: see ``evaluation_config``; and for ``propagate=memory`` without
            ``prompts=volume_clicks``.
    """
    if arguments.data.train_cases is not None:
        raise ConfigError(
            "data.train_cases chooses what a training uses, and an evaluation trains nothing: "
            "leave it out. unseen=true scores every case that the adapter was not trained on"
        )
    if arguments.output.trackers:
        raise ConfigError(
            f"output.trackers={arguments.output.trackers} follows a training, and an evaluation "
            "trains nothing: leave it out"
        )
    many_channels = record.input_channels if record.input_channels > 3 else None
    if many_channels and arguments.prompts.name == "matrix":
        raise ConfigError(
            "prompts=matrix also compares the models on photographs, which have three channels; "
            f"this adapter sees {record.input_channels}. Leave prompts out"
        )
    kind = record.prompt.get("kind", "box")
    given = {"volume_clicks": "gives a box and clicks", "one_slice": "prompts each object once"}
    if arguments.prompts.name in given and kind in ("semantic", AUTO):
        raise ConfigError(
            f"prompts={arguments.prompts.name} {given[arguments.prompts.name]}; this adapter was "
            "trained without prompts. Leave prompts out, or use prompts=matrix"
        )
    if arguments.propagate == "memory" and arguments.prompts.name != "volume_clicks":
        raise ConfigError(
            "propagate=memory carries objects through volumes for prompts=volume_clicks; got "
            f"prompts={arguments.prompts.name}. Leave one of them out"
        )


def _recorded_head(record: AdapterRecord) -> Head:
    """Return the keys of the head that the adapter was trained with."""
    values = {key: value for key, value in record.head.items() if key not in ("side", "channels")}
    return Head(size=record.head["side"], **values) if record.head else Head()
