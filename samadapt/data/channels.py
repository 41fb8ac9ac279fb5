"""Which channels of an image are used: one, or several that become the model's colours.

A channel is named by its index from 0, or by a name that the file pattern (``{channel}``) or
``dataset.json`` knows. Three channels are red, green and blue. Two are red and green, and their
mean is blue, so that an image whose channels are equal looks grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samadapt.data.findings import Finding, FindingError, fault
from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

Channel = int | str
Choice = Channel | tuple[Channel, ...] | None
"""One channel, several, or None: the file has one."""
Indices = int | tuple[int, ...] | None

MOST = 3
"""SAM's input has three channels."""

MANY = 64
"""Channels that a trained projection (``model.input_channels``) may bring to three."""


class ChannelError(FindingError):
    """The chosen channel does not fit a file; ``count`` is how many it has."""

    def __init__(self, path: Path, count: int, channel: Choice) -> None:
        """Say what the file has and what was asked for."""
        has = "one channel" if count == 1 else f"{count} channels"
        if channel is None:
            asked = "no channel is chosen"
        elif isinstance(channel, tuple):
            asked = f"channels {', '.join(map(str, channel))} are asked for"
        else:
            asked = f"channel {channel} is asked for"
        fix = (
            f"choose one with data.channel=0..{count - 1}, or up to three, data.channel=[0,1]"
            if count > 1
            else "where each channel is a file, write {channel} into data.image (predict: input="
            "'NAME_{channel}.nii.gz', or the case's folder; with channel=[0,1] where the names of "
            "the files end in numbers)"
        )
        message = f"the file has {has} and {asked}"
        super().__init__(Finding("channel_choice", "error", str(path), message, fix))
        self.count = count


def parse_channel(value: Channel | Sequence[Channel] | None, most: int = MOST) -> Choice:
    """Return ``data.channel`` as one channel, several, or None.

    Args:
        value: as the user wrote it; a list of one is that one.
        most: how many channels the model takes.

    Raises:
        ConfigError: an empty list, too many, or an index below 0.
    """
    names = [value] if value is None or isinstance(value, int | str) else list(value)
    if not names or len(names) > most:
        raise ConfigError(
            f"data.channel: the model takes 1 to {most} channels; got {len(names)}: "
            f"{', '.join(map(str, names)) or 'an empty list'}"
            + ("" if most > MOST else ". More need a trained projection: model.input_channels=n")
        )
    for name in names:
        if isinstance(name, int) and name < 0:
            raise ConfigError(f"data.channel: an index counts from 0; got {name}")
    return names[0] if len(names) == 1 else tuple(n for n in names if n is not None)


def check_channels(channel: Channel | Sequence[Channel] | None, input_channels: int | None) -> None:
    """Refuse channels that do not fit the model.

    Args:
        channel: as the user chose.
        input_channels: of a trained projection; None: the model takes up to three.

    Raises:
        ConfigError: too many, or another number than the projection has.
    """
    count = len(listed_channels(parse_channel(channel, MANY if input_channels else MOST)))
    if input_channels and count != input_channels:
        raise ConfigError(
            f"model.input_channels={input_channels} needs as many channels in data.channel; it "
            f"names {count}"
        )


def listed_channels(choice: Choice) -> tuple[Channel, ...]:
    """Return a choice as a tuple: none, one or several."""
    if choice is None:
        return ()
    return choice if isinstance(choice, tuple) else (choice,)


def pick(path: Path, values: Array, channel: Indices) -> Array:
    """Return one channel of (..., channel), or several as the last axis.

    Raises:
        FindingError: there are several and none is chosen, or one that is not there.
    """
    count = values.shape[-1]
    wanted = listed_channels(0 if channel is None and count == 1 else channel)
    if not wanted or not all(0 <= int(one) < count for one in wanted):
        raise ChannelError(path, count, channel)
    if isinstance(channel, tuple):
        return np.ascontiguousarray(values[..., list(channel)])
    return np.asarray(values[..., int(wanted[0])])


def need_one(path: Path, channel: Indices) -> None:
    """Refuse several channels of a file that has none to choose from; raises ``FindingError``."""
    if isinstance(channel, tuple):
        raise ChannelError(path, 1, channel)


def mask_with_channels(path: Path, count: int) -> FindingError:
    """Return the error of a mask that has several numbers a voxel."""
    message = (
        f"the mask has {count} channels (one-hot labels?), where one number a voxel is expected"
    )
    fix = (
        "save one number a voxel: numpy.argmax(mask, axis=-1) where channel 0 is background, "
        f"numpy.max(mask * numpy.arange(1, {count + 1}), axis=-1) where none is; "
        "data.channel chooses channels of images, not of masks"
    )
    return fault("mask_channels", path, message, fix)
