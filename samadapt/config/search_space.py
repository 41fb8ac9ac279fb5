"""What `samadapt sweep` searches: the values of each key, and which keys a trial has.

A key with several values, ``peft.rank=4,8``, ``choice(...)``, ``range(...)`` or
``interval(low,high)`` in Hydra's grammar, is searched. All others are the same for every trial.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samadapt.adapters.combining import find_method
from samadapt.config.keys import groups_of, keys_of
from samadapt.config.schema import Config
from samadapt.errors import ConfigError
from samadapt.system.settings import takes_text
from samadapt.training.losses import loss_keys

LOG_RATIO = 10
"""An interval whose ends are at least this many times apart is searched on a logarithmic scale."""

LISTED = 10_000
"""Combinations of values that are looked at, to count those that differ."""

DECIDING = ("baseline", "model", "peft", "peft.decoder", "head", "loss")
"""Keys on whose value it depends whether others are used."""

_FUNCTIONS = re.compile(r"\s*(choice|range|interval|tag|sort|shuffle|int|float)\s*\(")
_PLAIN = re.compile(r"[A-Za-z_./][\w.:/+-]*")

_ALONE = {
    "seed": "the winner is trained with several seeds instead (seeds=3)",
    "folds": "every trial is one training",
    "recipe": "a sweep has one recipe",
}
_SAME_CASES = "every trial must be chosen by the same cases and questions"
_NO_RESULT = "it changes no result, or only how it is measured"
_OTHERS = {
    "train.validate_cases": _SAME_CASES,
    "train.validate_every": "more validations give a trial more chances to be the best",
    "train.max_seconds": "give one time to all trials",
    "train.max_cpu_seconds": "give one time to all trials",
    "train.checkpoint_every": _NO_RESULT,
    "cache.variants": "",
    "data.intensity": "",
    "data.channel": "",
    "data.neighbours": "",
}
"""Why a key cannot be searched; empty: it can, though others of its group cannot."""
_GROUPS = {
    "data": _SAME_CASES,
    "prompts": _SAME_CASES,
    "eval": _NO_RESULT,
    "cache": _NO_RESULT,
    "output": _NO_RESULT,
}

HOLDS_COMMAS = {"data.intensity", "data.channel"}
"""Searched keys whose single values may hold commas, such as ``ct:-160,240``."""


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Attributes:
        values: each as it is typed, ``KEY=VALUE``.
    """

    values: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.values)


@dataclass(frozen=True)
class Interval:
    """A number between two others.

    Attributes:
        low, high: both ends can be drawn.
        log: search on a logarithmic scale.
        whole: whole numbers only.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def __str__(self) -> str:
        kind = ", whole numbers" if self.whole else ""
        return f"{self.low:g} to {self.high:g}{kind}{', logarithmic scale' if self.log else ''}"

    def typed(self, value: float) -> str:
        """Return a drawn number as it is typed: three digits are enough to find it again."""
        if self.whole:
            return str(round(value))
        return f"{min(self.high, max(self.low, float(f'{value:.3g}'))):.6g}"


Dimension = Choice | Interval


def short_key(key: str) -> str:
    """Return ``peft`` for ``peft.name``, as it is typed."""
    group, _, last = key.partition(".")
    return group if last == "name" and group in groups_of(Config) else key


def split_space(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Divide the arguments of a sweep into the keys that it searches and all others.

    Returns:
        The searched keys with their values as typed, and the other arguments.

    Raises:
        ConfigError: for several values of a key that cannot be searched.
    """
    space: dict[str, str] = {}
    others = []
    for argument in arguments:
        name, sign, text = argument.partition("=")
        key = short_key(name)
        if sign and _has_values(key, text):
            space[key] = text
        else:
            others.append(argument)
    return space, others


def _has_values(key: str, text: str) -> bool:
    """Return whether an argument names several values; refuse it for keys without a search."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    called = _FUNCTIONS.match(text)
    if not called and ("," not in text or key in HOLDS_COMMAS):
        return False
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        return False  # whoever reads the key says what is wrong with it
    if not override.is_sweep_override():
        return False
    if (reason := _why_not(key)) is None:
        return True
    keys = keys_of(Config)
    known = keys.get(key, keys.get(f"{key}.name"))
    if not called and (known is None or takes_text(known.annotation)):
        return False  # a text with commas, or an unknown key, which its reader reports
    raise ConfigError(f"{key}={text}: a sweep cannot search it: {reason}")


def _why_not(key: str) -> str | None:
    """Return why a key cannot be searched; None: it can."""
    if key in _OTHERS:
        return _OTHERS[key] or None
    group, dot, _ = key.partition(".")
    if not dot and group not in groups_of(Config):
        return _ALONE.get(key, "it is the same for all trials")
    return _GROUPS.get(group)


def read_dimension(key: str, text: str) -> Dimension:
    """Return the values of a searched key.

    Args:
        key: as typed, such as ``peft.rank``.
        text: ``4,8``, ``choice(...)``, ``range(...)``, ``interval(low,high)``, also inside
            ``tag(log, ...)`` or ``tag(linear, ...)``; or one value.

    Raises:
        ConfigError: the text is outside of the grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        raise ConfigError(f"{key}: cannot read {text[:60]!r} as values to search") from error
    if not found.is_sweep_override():
        return Choice((text,))
    value = found.value()
    tags = {str(tag) for tag in getattr(value, "tags", ())}
    if tags - {"log", "linear"} or (tags and not isinstance(value, IntervalSweep)):
        raise ConfigError(f"{key}: tag takes log or linear, for an interval; got {text[:60]!r}")
    if isinstance(value, IntervalSweep):
        return _interval(key, value.start, value.end, tags)
    if not isinstance(value, ChoiceSweep | RangeSweep):
        raise ConfigError(
            f"{key}: expected a,b, choice(a,b), range(start,stop,step) or interval(low,high); got "
            f"{text[:60]!r}"
        )
    values = [typed_value(one) for one in found.sweep_iterator()]
    return Choice(tuple(dict.fromkeys(values)))


def _interval(key: str, low: Any, high: Any, tags: set[str]) -> Interval:
    """Return an interval; a key that takes whole numbers gets them.

    Raises:
        ConfigError: the ends are not finite numbers in order, or the scale does not fit.
    """
    low, high = float(low), float(high)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{key}: interval(low,high) needs low < high; got {low:g} and {high:g}")
    if "log" in tags and low <= 0:
        raise ConfigError(f"{key}: a logarithmic scale starts above 0; got {low:g}")
    log = "log" in tags or (not tags and low > 0 and high >= LOG_RATIO * low)
    return Interval(low, high, log, _takes_whole_numbers(key))


def _takes_whole_numbers(key: str) -> bool:
    """Return whether a key takes no fractions, by the type of its default or its declaration."""
    from samadapt.methods import METHODS

    methods = METHODS.values() if key.startswith("peft.") else [METHODS["lora"]]
    declared = [keys_of(Config, method) for method in methods]
    types = {str(keys[key].annotation) for keys in declared if key in keys}
    return bool(types) and not any("float" in text for text in types)


def typed_value(value: Any) -> str:
    """Return a plain value as it is typed on the command line, in Hydra's grammar."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, QuotedString):
        value = str(value.text)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        inner = ",".join(f"{typed_value(k)}:{typed_value(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(typed_value, value))}]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def combinations(
    dimensions: Mapping[str, Dimension], context: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """Yield the combinations of values that differ in the keys which they use.

    Args:
        dimensions: the searched keys; all of them are choices.
        context: see ``uses``.
    """
    choices = [one.values for one in dimensions.values() if isinstance(one, Choice)]
    seen = set()
    for values in itertools.islice(itertools.product(*choices), LISTED):
        given = dict(zip(dimensions, values, strict=True))
        kept = {key: text for key, text in given.items() if uses(given, key, context)}
        if tuple(kept.items()) not in seen:
            seen.add(tuple(kept.items()))
            yield kept


def count_product(dimensions: Mapping[str, Dimension]) -> float:
    """Return the number of combinations of all values; infinite with an interval."""
    return math.prod(
        len(one.values) if isinstance(one, Choice) else math.inf for one in dimensions.values()
    )


def in_order(dimensions: Mapping[str, Dimension]) -> list[str]:
    """Return the searched keys, those first on whose value it depends whether others are used."""
    first = [key for key in DECIDING if key in dimensions]
    return [*first, *(key for key in dimensions if key not in DECIDING)]


def used_by(dimensions: Mapping[str, Dimension], context: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which methods have each searched key.

    Raises:
        ConfigError: no trial has a key.
    """
    deciding = {key: one for key, one in dimensions.items() if key in DECIDING}
    found: dict[str, set[str]] = {key: set() for key in dimensions}
    for values in combinations(deciding, context) if deciding else [{}]:
        method = method_name(values.get("peft", context["peft"]))
        for key in dimensions:
            if key in values or uses(values, key, context):
                found[key].add(method)
    if unused := [key for key, methods in found.items() if not methods]:
        raise ConfigError(
            f"{unused[0]}: no trial has this key, or it changes nothing with the others; check its "
            f"name with `samadapt ls keys {unused[0].partition('.')[0]}`, or leave it out"
        )
    return found


def uses(values: Mapping[str, str], key: str, context: Mapping[str, str]) -> bool:
    """Return whether a trial has a key: a key that its method does not have is left out.

    Args:
        values: the values of the trial, as typed; those that decide must be among them.
        key: a searched key.
        context: what holds where a trial names nothing: baseline, peft, peft.decoder, head, loss.
    """
    chosen = {**context, **values}
    group, _, _ = key.partition(".")
    if chosen["baseline"] != "null":  # a U-Net trains in the place of SAM
        return group not in ("peft", "model")
    if group == "baseline" and key != "baseline":
        return False
    if group == "head" and key != "head":
        return chosen["head"] != "sam"
    if group == "loss" and key != "loss":
        known = loss_keys().get(key.removeprefix("loss."))
        return known is None or chosen["loss"] in known.losses
    return group != "peft" or key == "peft" or _has_option(chosen, key)


def _has_option(chosen: Mapping[str, str], key: str) -> bool:
    """Return whether the method of a trial has an option that does something."""
    name = method_name(chosen["peft"])
    if key == "peft.decoder_rank":
        return chosen["peft.decoder"] == "lora"
    if key == "peft.blocks" and name in ("none", "decoder"):  # they leave every block as it is
        return False
    return key in keys_of(Config, find_method(name))


def method_name(text: str) -> str:
    """Return the name of a method as typed: ``[lora,bias]`` is ``lora+bias``."""
    return "+".join(part.strip() for part in text.strip("[]").split(","))
