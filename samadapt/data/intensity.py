"""Intensity rules: map the values of a file to 0-255. The CT windows are here.

- CT: a fixed window in Hounsfield units. It never depends on the extremes of the volume, so the
  same tissue has the same grey in every case.
- MRI and others: percentiles of the volume's non-zero voxels, because MRI values have no unit and 0
  is the background.
- Microscopy: percentiles of all pixels, because a camera's offset keeps its background above 0.
- Pictures: 8-bit values stay as they are.

The model needs three channels. A grey slice fills them with three equal ones, with the results of
three rules (``ct:soft_tissue+lung+bone``), or with its neighbouring slices (``neighbours``). An
image with several channels (``data.channel=[flair,t1,t2]``) has one rule for each channel. Three
channels become red, green and blue; of two, the mean becomes blue. The rule is a small dictionary
that is recorded with the adapter and applied again at prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from samadapt.data.types import Volume
from samadapt.errors import ConfigError, DataError, nearest
from samadapt.system.arrays import Array

WINDOWS = {
    "soft_tissue": (-160.0, 240.0),  # W 400, L 40
    "lung": (-1350.0, 150.0),  # W 1500, L -600
    "bone": (-500.0, 1300.0),  # W 1800, L 400
    "brain": (0.0, 80.0),  # W 80, L 40
    "liver": (-45.0, 105.0),  # W 150, L 30
}
"""CT windows as (lowest, highest) HU: level L minus and plus half of the width W."""

MRI_PERCENTILES = (0.5, 99.5)
"""The percentiles that MedSAM's preprocessing uses (Ma et al. 2024)."""
MICROSCOPY_PERCENTILES = (1.0, 99.8)
"""The percentiles of StarDist (Schmidt et al. 2018), for few bright objects on dark ground."""

EXAMPLES = (
    "mri, ct:soft_tissue, ct:-160,240, ct:soft_tissue+lung+bone, percentile:1,99, microscopy, rgb"
)
_NAMES = ("auto", "mri", "ct", "percentile", "microscopy", "rgb", *(f"ct:{n}" for n in WINDOWS))
_PERCENTILES = {"mri": MRI_PERCENTILES, "microscopy": MICROSCOPY_PERCENTILES}
_KINDS = ("window", "percentile", "all_percentile", "rgb")

Kind = Literal["window", "percentile", "all_percentile", "rgb", "channels", "inputs"]


@dataclass(frozen=True)
class IntensityRule:
    """How values become 0-255, and how slices become the three channels of the model.

    Attributes:
        kind: ``"window"``: ``low`` and ``high`` are values of the file (HU);
            ``"percentile"``: they are percentiles of the volume's non-zero, finite voxels;
            ``"all_percentile"``: they are percentiles of all finite voxels;
            ``"rgb"``: 8-bit values stay, deeper ones are scaled by their 0.5-99.5 percentiles;
            ``"channels"``: see ``channels``; ``"inputs"``: see ``inputs``.
        low: value or percentile that becomes 0.
        high: value or percentile that becomes 255.
        channels: three rules, for red, green and blue; empty: one rule for all three.
        neighbours: n: the slices i - n, i and i + n of the volume become red, green and blue; at
            the ends the outermost slice is repeated. n counts slices of the file, whatever their
            spacing in mm is. 0: slice i fills all three.
        inputs: one rule for each channel of an image with several channels; empty: it has one.
    """

    kind: Kind
    low: float = 0.0
    high: float = 255.0
    channels: tuple[IntensityRule, ...] = ()
    neighbours: int = 0
    inputs: tuple[IntensityRule, ...] = ()

    def __call__(self, image: Volume | Array) -> Array:
        """Return the image as uint8; percentiles are those of this volume.

        Args:
            image: (h, w, d), (h, w, 3) for a colour picture or (h, w, d, c), as ``Volume.image``.

        Returns:
            uint8 in the same shape. ``channels`` adds an axis of three. An image (..., c) with two
            or three channels becomes (..., 3), with more channels it stays (..., c). ``picture``
            then makes the image of one slice.

        Raises:
            DataError: the volume has no neighbouring slices, has colours already, or has another
                number of channels than the rule.
        """
        if isinstance(image, Volume):
            self._check(image)
        values = image.image if isinstance(image, Volume) else np.asarray(image)
        if self.inputs:
            return _colours([rule(values[..., i]) for i, rule in enumerate(self.inputs)])
        if self.channels:
            return np.stack([rule(values) for rule in self.channels], axis=-1)
        # 8-bit pictures are what the model was trained on.
        if self.kind == "rgb" and values.dtype == np.uint8:
            return values
        low, high = self.bounds(values)
        if high <= low:
            return np.zeros(values.shape, dtype=np.uint8)
        # In place, since a CT volume of 512 x 512 x 300 voxels takes 315 MB as float32.
        scaled = values.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            scaled -= np.float32(low)
            scaled /= np.float32(high - low)
            scaled *= np.float32(255)
        # NaN (and 0 / 0) becomes black; infinite values become the nearest end of the scale.
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        np.clip(scaled, 0, 255, out=scaled)
        return np.rint(scaled).astype(np.uint8)

    def picture(self, values: Array, index: int, *, is_color: bool = False) -> Array:
        """Return the image of one slice for the model: (h, w, 3) uint8.

        Args:
            values: the result of calling the rule for the volume: (h, w, d), (h, w, d, 3) with
                ``channels`` or several inputs, or (h, w, 3) for a colour picture.
            index: the slice.
            is_color: ``values`` is a colour picture, which has one slice.
        """
        if is_color:
            return to_rgb(values)
        if self.inputs:
            return np.ascontiguousarray(values[:, :, index])
        if self.neighbours:
            return np.stack([values[:, :, at] for at in self._near(index, values)], axis=-1)
        return to_rgb(values[:, :, index])

    def fitted(self, volume: Volume) -> IntensityRule:
        """Return a rule with fixed bounds that gives each slice what this rule gives the volume.

        The percentiles are computed once for the volume, so that ``picture_of`` can work on one
        slice at a time.

        Raises:
            DataError: as calling the rule.
        """
        self._check(volume)
        if self.inputs:
            parts = enumerate(self.inputs)
            return replace(self, inputs=tuple(r._fixed(volume.image[..., i]) for i, r in parts))
        if self.channels:
            return replace(
                self, channels=tuple(rule._fixed(volume.image) for rule in self.channels)
            )
        return self._fixed(volume.image)

    def picture_of(self, values: Array, index: int, *, is_color: bool = False) -> Array:
        """Return ``picture`` of a slice from the values of the file; the rule must be ``fitted``.

        Args:
            values: ``Volume.image``.
            index: the slice.
            is_color: ``values`` is a colour picture, which has one slice.
        """
        if is_color:
            return to_rgb(self(values))
        if self.inputs:
            return self(values[:, :, index])
        if self.neighbours:
            return self(np.stack([values[:, :, at] for at in self._near(index, values)], axis=-1))
        return to_rgb(self(values[:, :, index]))

    def bounds(self, values: Array) -> tuple[float, float]:
        """Return the values of the file that become 0 and 255; (0, 0) if no voxel counts."""
        if self.kind == "window":
            return self.low, self.high
        percentiles = MRI_PERCENTILES if self.kind == "rgb" else (self.low, self.high)
        finite = np.isfinite(values)
        # 0 is the background of MRI and would pull the low percentile down.
        chosen = values[finite if self.kind == "all_percentile" else finite & (values != 0)]
        if chosen.size == 0:
            return 0.0, 0.0
        low, high = np.percentile(chosen.astype(np.float32, copy=False), percentiles)
        if low == high:  # an image of two values, 0 and another: they become 0 and 255
            return (0.0, float(high)) if high > 0 else (float(low), 0.0)
        return float(low), float(high)

    def with_neighbours(self, distance: int) -> IntensityRule:
        """Return this rule with neighbouring slices as red and blue.

        Args:
            distance: to the neighbours, in slices; 0 leaves the rule as it is.

        Raises:
            ConfigError: rules or channels of the image fill the three channels already, or the
                rule has another distance.
        """
        if distance in (0, self.neighbours):
            return self
        if self.inputs:
            raise ConfigError(
                f"data.neighbours={distance} and several channels (data.channel) both fill the "
                "model's three channels; choose one of the two"
            )
        if self.channels:
            raise ConfigError(
                f"data.neighbours={distance} and three rules in data.intensity both fill the "
                "model's three channels; choose one of the two"
            )
        if self.neighbours:
            raise ConfigError(
                f"data.neighbours={distance}, but data.intensity records {self.neighbours}; name "
                "one of them"
            )
        return replace(self, neighbours=distance)

    def for_channels(self, count: int) -> IntensityRule:
        """Return the rule for images with this number of channels, by repeating a single rule.

        Raises:
            ConfigError: it has another number of rules, or it fills the three channels from one
                channel of the image (``channels``, ``neighbours``, ``rgb``).
        """
        own = len(self.inputs) or 1
        if own == count or (own == 1 and count == 1):
            return self
        if self.inputs:
            raise ConfigError(
                f"data.intensity has {own} rules and the images have {count} channels; give one "
                "rule, or one for each of data.channel"
            )
        if self.channels or self.neighbours or self.kind == "rgb":
            what = "three rules joined by +" if self.channels else "data.neighbours"
            raise ConfigError(
                f"data.channel names {count} channels, which fill the model's colours; "
                f"{'data.intensity=rgb' if self.kind == 'rgb' else what} cannot be used with them"
            )
        return IntensityRule("inputs", inputs=(self,) * count)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as a dictionary, which ``make_intensity`` reads back."""
        if self.inputs:
            return {"inputs": [rule.to_dict() for rule in self.inputs]}
        if self.channels:
            return {"channels": [rule.to_dict() for rule in self.channels]}
        record: dict[str, Any] = {"kind": self.kind, "low": self.low, "high": self.high}
        return record | ({"neighbours": self.neighbours} if self.neighbours else {})

    def _fixed(self, values: Array) -> IntensityRule:
        if self.kind == "window" or (self.kind == "rgb" and values.dtype == np.uint8):
            return self
        low, high = self.bounds(values)
        return replace(self, kind="window", low=low, high=high)

    def _near(self, index: int, values: Array) -> list[int]:
        last = values.shape[2] - 1
        return [min(max(index + step * self.neighbours, 0), last) for step in (-1, 0, 1)]

    def _check(self, volume: Volume) -> None:
        wanted = len(self.inputs) or 1
        if (volume.channels != wanted) and (self.inputs or not volume.is_color):
            raise DataError(
                f"expected an image of {wanted} channel{'s' * (wanted > 1)}, one for each "
                f"intensity rule; it has {volume.channels}: choose channels with data.channel "
                "(predict: channel=)"
            )
        if self.neighbours and volume.shape[2] == 1:
            raise DataError(
                f"neighbouring slices are needed (data.neighbours={self.neighbours}), but this "
                "image has one slice: give a volume"
            )
        if self.channels and volume.is_color:
            raise DataError(
                "three intensity rules make the channels of grey images, and this one has colours: "
                "convert it to grey, or use one rule (data.intensity=rgb)"
            )


def make_intensity(spec: str | Sequence[str] | Mapping[str, Any]) -> IntensityRule:
    """Return the rule that a specification describes.

    Args:
        spec: one of

            - ``"mri"``, or ``"percentile:LOW,HIGH"`` of the non-zero voxels;
            - ``"microscopy"``, or ``"microscopy:LOW,HIGH"`` with percentiles of all voxels;
            - ``"ct"`` (soft tissue), ``"ct:WINDOW"``, or ``"ct:LOW,HIGH"`` in HU;
            - ``"rgb"``;
            - three of them except ``rgb`` joined by ``+`` for red, green and blue, where a prefix
              such as ``ct:`` need not be repeated;
            - a list of them, one for each channel of the images;
            - the dictionary of ``to_dict``.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(spec, Mapping):
        return _from_dict(spec)
    if not isinstance(spec, str):
        return _of_inputs([make_intensity(part) for part in spec], spec)
    if "+" not in str(spec):
        return _one(str(spec).strip(), spec)
    names: list[str] = []
    for part in (part.strip() for part in str(spec).split("+")):
        if not part:
            raise _bad_spec(spec)
        # "lung" in "ct:soft_tissue+lung" takes the prefix of the part before it.
        inherits = names and ":" not in part and part not in _NAMES
        names.append(f"{names[-1].partition(':')[0]}:{part}" if inherits else part)
    return _joined([_one(name, spec) for name in names], spec)


def _one(text: str, spec: object) -> IntensityRule:
    """Return the rule for one channel; ``spec`` is the whole specification, for messages."""
    name, _, argument = text.partition(":")
    if name == "rgb" and not argument:
        return IntensityRule("rgb")
    if name == "ct" and (argument or "soft_tissue") in WINDOWS:
        return IntensityRule("window", *WINDOWS[argument or "soft_tissue"])
    kind: Kind = "all_percentile" if name == "microscopy" else "percentile"
    if name in _PERCENTILES and not argument:
        return IntensityRule(kind, *_PERCENTILES[name])
    if name in ("ct", "percentile", "microscopy"):
        bounds = _numbers(argument)
        if bounds and (name == "ct" or 0 <= bounds[0] < bounds[1] <= 100):
            return IntensityRule("window" if name == "ct" else kind, *bounds)
    raise _bad_spec(spec)


def _joined(rules: list[IntensityRule], spec: object) -> IntensityRule:
    if len(rules) != 3 or any(rule.kind in ("rgb", "channels") for rule in rules):
        raise ConfigError(
            "data.intensity: the model has three channels, so join three rules with +, as "
            f"ct:soft_tissue+lung+bone, none of them rgb; got {spec!r}"
        )
    return IntensityRule("channels", channels=tuple(rules))


def _of_inputs(rules: list[IntensityRule], spec: object) -> IntensityRule:
    """Return the rule for an image with several channels; a single rule is returned as it is."""
    if not rules or any(r.channels or r.inputs or r.neighbours or r.kind == "rgb" for r in rules):
        raise ConfigError(
            "data.intensity: a list has one rule for each of data.channel, none of them rgb or "
            f"joined by +; got {spec!r}"
        )
    return rules[0] if len(rules) == 1 else IntensityRule("inputs", inputs=tuple(rules))


def _colours(planes: list[Array]) -> Array:
    """Return channels as the last axis; the third of two is their mean, rounded half up."""
    if len(planes) == 2:
        mean = (planes[0].astype(np.uint16) + planes[1] + 1) // 2
        planes = [*planes, mean.astype(np.uint8)]
    return np.stack(planes, axis=-1)


def intensity_of_modality(modality: str) -> str:
    """Return the rule for a modality that a data set names: a window for CT, else percentiles."""
    return "ct:soft_tissue" if modality.strip().upper() == "CT" else "mri"


def describe_intensity(rule: dict[str, Any]) -> str:
    """Return the record of an intensity rule in words.

    Args:
        rule: as ``samadapt.json`` holds it.
    """
    if "channels" in rule:
        return " | ".join(
            f"{colour}: {describe_intensity(part)}"
            for colour, part in zip(("red", "green", "blue"), rule["channels"], strict=True)
        )
    if "inputs" in rule:
        return " | ".join(
            f"channel {number}: {describe_intensity(part)}"
            for number, part in enumerate(rule["inputs"])
        )
    if rule["kind"] == "rgb":
        return "rgb"
    bounds = f"{rule['low']:g} to {rule['high']:g}"
    text = {
        "window": f"window {bounds}",
        "percentile": f"percentiles {bounds} of the non-zero voxels",
        "all_percentile": f"percentiles {bounds} of all pixels",
    }[rule["kind"]]
    near = rule.get("neighbours", 0)
    return text + (f"; slices i - {near}, i, i + {near} as red, green, blue" if near else "")


def to_rgb(plane: Array) -> Array:
    """Return (h, w) or (h, w, 1) uint8 as (h, w, 3) with three equal channels."""
    if plane.ndim == 2:
        plane = plane[:, :, None]
    if plane.shape[2] == 1:
        plane = np.repeat(plane, 3, axis=2)
    return np.ascontiguousarray(plane)


def visible(image: Array) -> Array:
    """Return the first three channels of an image (h, w, c), for showing it to a person."""
    return np.ascontiguousarray(image[..., :3])


def _from_dict(spec: Mapping[str, Any]) -> IntensityRule:
    if set(spec) == {"channels"} and isinstance(spec["channels"], Sequence):
        parts = [part if isinstance(part, Mapping) else {} for part in spec["channels"]]
        if any("neighbours" in part for part in parts):
            raise _bad_spec(spec)
        return _joined([_from_dict(part) for part in parts], spec)
    if set(spec) == {"inputs"} and isinstance(spec["inputs"], Sequence):
        parts = [part if isinstance(part, Mapping) else {} for part in spec["inputs"]]
        return _of_inputs([_from_dict(part) for part in parts], spec)
    neighbours = spec.get("neighbours", 0)
    if set(spec) - {"neighbours"} != {"kind", "low", "high"} or spec["kind"] not in _KINDS:
        raise _bad_spec(spec)
    try:
        low, high = float(spec["low"]), float(spec["high"])
    except (TypeError, ValueError):
        raise _bad_spec(spec) from None
    if not low < high or type(neighbours) is not int or neighbours < 0:
        raise _bad_spec(spec)
    return IntensityRule(spec["kind"], low, high, neighbours=neighbours)


def _numbers(text: str) -> tuple[float, float] | None:
    try:
        low, high = (float(part) for part in text.strip("[]() ").split(","))
    except ValueError:
        return None
    return (low, high) if np.isfinite([low, high]).all() and low < high else None


def _bad_spec(spec: object) -> ConfigError:
    return ConfigError(
        f"data.intensity must be one of {EXAMPLES} (CT windows: {', '.join(WINDOWS)}; LOW below "
        f"HIGH); got {spec!r}{nearest(str(spec), _NAMES)}"
    )
