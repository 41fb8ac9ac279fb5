"""Which channels of an image are used: one, or several that become the three of the model.

A channel is named by its index from 0, or by a name from the file pattern (``{channel}``) or from
``dataset.json``. Three channels become red, green and blue. Two channels become red and green, and
their mean becomes blue, so that an image with two equal channels looks grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samadapt.data.findings import FindingError, error_finding, fault
from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

Channel = int | str
Choice = Channel | tuple[Channel, ...] | None
"""One channel, several, or None where the file has only one."""
Indices = int | tuple[int, ...] | None

MOST = 3
"""Channels of SAM's input."""

MANY = 64
"""Largest number of channels that a trained projection (``model.input_channels``) maps to three."""


class ChannelError(FindingError):
    """The chosen channel does not fit a file; ``count`` is the number of channels in the file."""

    def __init__(self, path: Path, count: int, channel: Choice) -> None:
        """State what the file has and what was asked for."""
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
        super().__init__(error_finding("channel_choice", path, message, fix))
        self.count = count


def parse_channel(value: Channel | Sequence[Channel] | None, most: int = MOST) -> Choice:
    """Return ``data.channel`` as one channel, several, or None.

    Args:
        value: as the user wrote it. A list of one channel means that channel.
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
    """Refuse a number of channels that does not fit the model.

    Args:
        channel: the user's choice.
        input_channels: inputs of a trained projection; None: the model takes up to three.

    Raises:
        ConfigError: there are too many, or the projection has another number of inputs.
    """
    count = len(listed_channels(parse_channel(channel, MANY if input_channels else MOST)))
    if input_channels and count != input_channels:
        raise ConfigError(
            f"model.input_channels={input_channels} needs the same number of channels in "
            f"data.channel, which names {count}"
        )


def listed_channels(choice: Choice) -> tuple[Channel, ...]:
    """Return a choice as a tuple of zero, one or several channels."""
    if choice is None:
        return ()
    return choice if isinstance(choice, tuple) else (choice,)


def pick(path: Path, values: Array, channel: Indices) -> Array:
    """Return one channel of an image, or several as its last axis.

    Args:
        path: the file, named in errors.
        values: (..., c).
        channel: index or indices into the last axis; None: it has one.

    Returns:
        (...) for one channel, (..., n) for a tuple of n.

    Raises:
        FindingError: the file has several channels and none is chosen, or the chosen one does not
            exist.
    """
    count = values.shape[-1]
    # A file with one channel needs no choice.
    wanted = listed_channels(0 if channel is None and count == 1 else channel)
    if not wanted or not all(0 <= int(one) < count for one in wanted):
        raise ChannelError(path, count, channel)
    if isinstance(channel, tuple):
        return np.ascontiguousarray(values[..., list(channel)])
    return np.asarray(values[..., int(wanted[0])])


def need_one(path: Path, channel: Indices) -> None:
    """Refuse a choice of several channels for a file with one.

    Raises:
        FindingError: naming the file.
    """
    if isinstance(channel, tuple):
        raise ChannelError(path, 1, channel)


def mask_with_channels(path: Path, count: int) -> FindingError:
    """Return the error for a mask with several numbers for each voxel."""
    message = (
        f"the mask has {count} channels (one-hot labels?); one number for each voxel is expected"
    )
    fix = (
        "save one number for each voxel: numpy.argmax(mask, axis=-1) if channel 0 is background, "
        f"numpy.max(mask * numpy.arange(1, {count + 1}), axis=-1) if no channel is; "
        "data.channel chooses channels of images, not of masks"
    )
    return fault("mask_channels", path, message, fix)
