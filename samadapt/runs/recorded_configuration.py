"""The configuration of an evaluation, from what the adapter records and the command line says."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from samadapt.adapters.record import LOCAL_OPTIONS, AdapterRecord, read_record
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.config.schema import Config, Model, Prompts, from_yaml
from samadapt.data.tiles import recorded_tiling
from samadapt.errors import ConfigError
from samadapt.methods.base import method_from_dict


def recorded(adapter: Path) -> dict[str, Any]:
    """Return what the adapter says about data and prompts, as the command line would.

    Raises:
        AdapterError: when there is no readable record.
    """
    record = read_record(adapter)
    data = dict(record.data_options) or {"name": record.data}
    data |= {"intensity": record.intensity}
    config_file = adapter.parent / "config.yaml"
    found: dict[str, Any] = {}
    if config_file.is_file():
        config = from_yaml(config_file)
        found |= {"checkpoint": config.model.checkpoint, "privacy": config.privacy}
        if config.data.name == data["name"]:  # the adapter itself names no file of this machine
            local = asdict(config.data).items()
            data |= {k: v for k, v in local if k in LOCAL_OPTIONS and k != "on_error"}
    keys = {item.name for item in fields(Prompts)}  # others are the adapter's alone
    prompts = {key: value for key, value in record.prompt.items() if key in keys}
    return {**found, "data": data, "prompts": {"name": record.prompt.get("kind", "box"), **prompts}}


def as_config(arguments: EvaluateArguments, record: AdapterRecord) -> Config:
    """Return the configuration of an evaluation: the record's model, the caller's data."""
    prompts = {item.name: getattr(arguments.prompts, item.name) for item in fields(Prompts)}
    if prompts["name"] == "matrix":
        prompts["name"] = record.prompt.get("kind", "box")
    data = arguments.data  # naming other data made these fall, but they are the adapter's
    cut = recorded_tiling(record.data_options)
    data = replace(
        data,
        intensity=data.intensity or record.intensity or None,
        axis=data.axis if data.axis is not None else record.axis,
    )
    if data.tile is None and cut is not None:
        data = replace(data, tile=cut.side)
    if data.channel is None and "inputs" in record.intensity:
        data = replace(data, channel=record.data_options.get("channel"))
    if record.input_channels > 3 and arguments.prompts.name == "matrix":
        raise ConfigError(
            "prompts=matrix also compares the models on photographs, which have three channels; "
            f"this adapter sees {record.input_channels}. Leave prompts out"
        )
    many = record.input_channels if record.input_channels > 3 else None
    return Config(
        model=Model(record.base, arguments.checkpoint, record.image_size, many),
        peft=method_from_dict(record.method),
        data=data,
        prompts=Prompts(**prompts),
        cache=arguments.cache,
        eval=arguments.eval,
        output=arguments.output,
        precision=arguments.precision,
        device=arguments.device,
        privacy=arguments.privacy,
        recipe="evaluate",
    )
