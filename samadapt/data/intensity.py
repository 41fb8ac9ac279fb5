"""Intensity rules: from the values of a file to 0-255.

CT: a window in Hounsfield units, fixed, never the volume's own extremes. MRI and others:
percentiles of the volume's non-zero voxels. Pictures: 8-bit values as they are. The rule is a
small dictionary that is recorded with the adapter and applied again at prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from samadapt.data.types import Array, Volume
from samadapt.errors import ConfigError, nearest

WINDOWS = {
    "soft_tissue": (-160.0, 240.0),  # W 400, L 40
    "lung": (-1350.0, 150.0),  # W 1500, L -600
    "bone": (-500.0, 1300.0),  # W 1800, L 400
    "brain": (0.0, 80.0),  # W 80, L 40
    "liver": (-45.0, 105.0),  # W 150, L 30
}
"""CT windows in HU."""

MRI_PERCENTILES = (0.5, 99.5)
EXAMPLES = "mri, ct:soft_tissue, ct:-160,240, percentile:1,99, rgb"
_NAMES = ("auto", "mri", "ct", "percentile", "rgb", *(f"ct:{name}" for name in WINDOWS))


@dataclass(frozen=True)
class IntensityRule:
    """How values become 0-255.

    Attributes:
        kind: ``"window"``: ``low`` and ``high`` are values of the file (HU);
            ``"percentile"``: they are percentiles of the volume's non-zero, finite voxels;
            ``"rgb"``: 8-bit values stay, deeper ones are scaled by 0.5-99.5 percentiles.
        low: becomes 0.
        high: becomes 255.
    """

    kind: Literal["window", "percentile", "rgb"]
    low: float = 0.0
    high: float = 255.0

    def __call__(self, image: Volume | Array) -> Array:
        """Return the image as uint8 in the same shape, the rule fitted to this one volume."""
        values = image.image if isinstance(image, Volume) else np.asarray(image)
        if self.kind == "rgb" and values.dtype == np.uint8:
            return values
        low, high = self.bounds(values)
        if high <= low:
            return np.zeros(values.shape, dtype=np.uint8)
        scaled = values.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            scaled -= np.float32(low)
            scaled /= np.float32(high - low)
            scaled *= np.float32(255)
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        np.clip(scaled, 0, 255, out=scaled)
        return np.rint(scaled).astype(np.uint8)

    def bounds(self, values: Array) -> tuple[float, float]:
        """Return the values of the file that become 0 and 255."""
        if self.kind == "window":
            return self.low, self.high
        percentiles = MRI_PERCENTILES if self.kind == "rgb" else (self.low, self.high)
        chosen = values[(values != 0) & np.isfinite(values)]
        if chosen.size == 0:
            return 0.0, 0.0
        low, high = np.percentile(chosen, percentiles)
        if low == high:  # two-valued image: zero and one other value
            return (0.0, float(high)) if high > 0 else (float(low), 0.0)
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``make_intensity`` reads back."""
        return asdict(self)


def make_intensity(spec: str | Mapping[str, Any]) -> IntensityRule:
    """Return the rule of a specification.

    Args:
        spec: ``"mri"``, ``"percentile:LOW,HIGH"``, ``"ct"`` (soft tissue), ``"ct:WINDOW"``,
            ``"ct:LOW,HIGH"`` in HU, ``"rgb"``, or the dictionary of ``to_dict``.

    Raises:
        ConfigError: not such a specification.
    """
    if isinstance(spec, Mapping):
        return _from_dict(spec)
    name, _, argument = str(spec).strip().partition(":")
    if name == "mri" and not argument:
        return IntensityRule("percentile", *MRI_PERCENTILES)
    if name == "rgb" and not argument:
        return IntensityRule("rgb")
    if name == "ct" and (argument or "soft_tissue") in WINDOWS:
        return IntensityRule("window", *WINDOWS[argument or "soft_tissue"])
    if name in ("ct", "percentile"):
        bounds = _numbers(argument)
        if bounds and (name == "ct" or 0 <= bounds[0] < bounds[1] <= 100):
            return IntensityRule("window" if name == "ct" else "percentile", *bounds)
    raise _bad_spec(spec)


def intensity_of_modality(modality: str) -> str:
    """Return the rule for a modality named by a data set: CT by window, others by percentile."""
    return "ct:soft_tissue" if modality.strip().upper() == "CT" else "mri"


def to_rgb(plane: Array) -> Array:
    """Return (h, w) or (h, w, 1) uint8 as (h, w, 3) with three equal channels."""
    if plane.ndim == 2:
        plane = plane[:, :, None]
    if plane.shape[2] == 1:
        plane = np.repeat(plane, 3, axis=2)
    return np.ascontiguousarray(plane)


def fitted(rule: IntensityRule, volume: Volume) -> IntensityRule:
    """Return a rule that does to each slice what ``rule`` does to the whole volume.

    The bounds are found once; the slices need not be in memory together afterwards.
    """
    if rule.kind == "window" or (rule.kind == "rgb" and volume.image.dtype == np.uint8):
        return rule
    low, high = rule.bounds(volume.image)
    return replace(rule, kind="window", low=low, high=high)


def _from_dict(spec: Mapping[str, Any]) -> IntensityRule:
    if set(spec) != {"kind", "low", "high"} or spec["kind"] not in ("window", "percentile", "rgb"):
        raise _bad_spec(spec)
    try:
        low, high = float(spec["low"]), float(spec["high"])
    except (TypeError, ValueError):
        raise _bad_spec(spec) from None
    if not low < high:
        raise _bad_spec(spec)
    return IntensityRule(spec["kind"], low, high)


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
