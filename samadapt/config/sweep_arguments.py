"""The keys of ``samadapt sweep``: those of a run, which of them are searched, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings, resolved, stored_values, to_dict
from samadapt.config.keys import flatten
from samadapt.config.launcher import JobLauncher
from samadapt.config.schema import Config
from samadapt.config.search_space import (
    Dimension,
    in_order,
    read_dimension,
    short_key,
    split_space,
    typed_value,
)
from samadapt.config.train import STEPS
from samadapt.errors import ConfigError
from samadapt.system.settings import List, Whole

SIZES = ("rank", "hidden", "tokens")
"""Options that decide how many parameters a method trains; a method has one of them, or none."""

OF_EVERY_METHOD = {"peft.decoder", "peft.decoder_rank", "peft.memory"}
"""Options of the method that every method has; ``compose`` keeps a recipe's for all of them."""


@dataclass(frozen=True, kw_only=True)
class SweepArguments(Config):
    """The keys of ``samadapt sweep``."""

    trials: Whole | None = Field(
        default=None,
        ge=1,
        description="number of trials; null: every combination of the values, up to 100",
    )
    workers: Whole = Field(
        default=1,
        ge=1,
        description="trials that run at the same time on this machine; they share its cores",
    )
    threads: Whole | None = Field(
        default=None,
        ge=1,
        description="threads of each trial, on every machine; null: the cores of the machine that "
        "starts the sweep, divided by workers",
    )
    prune: bool = Field(
        default=True,
        description="stop trials early whose validation Dice is below the median of the finished "
        "ones at the same step",
    )
    equal_parameters: Whole | None = Field(
        default=None,
        ge=1,
        description="compare methods at equal size: each method's rank, hidden or tokens is chosen "
        "so that it trains about this many parameters of the encoder; null: sizes as given. For "
        "equal time give train.max_cpu_seconds or train.max_seconds",
    )
    seeds: Whole = Field(
        default=3,
        ge=1,
        le=100,
        description="number of seeds that the winner is trained with and scored on the held-out "
        "cases",
    )
    dry: bool = Field(default=False, description="print the plan and train nothing")
    space: dict[str, str] = Field(
        default_factory=dict,
        description="the searched keys and their values as typed; every key with several values "
        "on the command line is added",
    )
    fixed: List[str] = Field(
        default_factory=list,
        description="what was typed beside the searched keys, for the winner's command line",
    )

    def dimensions(self) -> dict[str, Dimension]:
        """Return the values of the searched keys; those that others depend on come first.

        Raises:
            ConfigError: a text is outside of the grammar.
        """
        found = {key: read_dimension(key, text) for key, text in self.space.items()}
        return {key: found[key] for key in in_order(found)}

    @property
    def shared(self) -> dict[str, Any]:
        """The keys of a run, the same for every trial where the sweep does not search them."""
        own = set(SweepArguments.__dataclass_fields__) - set(Config.__dataclass_fields__)
        return {key: value for key, value in to_dict(self).items() if key not in own}

    @property
    def context(self) -> dict[str, str]:
        """What holds where a trial names nothing; see ``search_space.uses``."""
        loss = self.loss.name
        if loss == "auto":
            loss = "dice_ce" if self.prompts.name == "semantic" else "sam"
        return {
            "baseline": self.baseline.name or "null",
            "peft": self.peft.name,
            "peft.decoder": self.peft.decoder,
            "head": self.head.name,
            "loss": loss,
        }

    def trial(self, values: Mapping[str, str]) -> Config:
        """Return the configuration of a trial, which leaves the held-out cases alone.

        Args:
            values: its values of the searched keys, as typed.

        Raises:
            ConfigError: a value does not fit its key, or the others.
        """
        # What was typed is given again, so that it holds whatever method a trial has.
        typed = [*self.fixed, *(f"{key}={text}" for key, text in values.items())]
        config = resolved(parse_settings(Config, typed, self.shared, origin="sweep"))
        cache = config.cache
        if self.limits_time and cache.where == "auto" and cache.dir is None:
            # With shared features the first trial would pay for those of all others.
            cache = replace(cache, where="memory")
        return replace(config, cache=cache, resume=None, eval=replace(config.eval, max_cases=0))

    @property
    def trial_steps(self) -> int:
        """Number of steps of a trial whose time is not limited."""
        return self.train.steps or STEPS

    @property
    def limits_time(self) -> bool:
        """Whether every trial has the same time."""
        return self.train.max_seconds is not None or self.train.max_cpu_seconds is not None


@dataclass(frozen=True, kw_only=True)
class SweepCommand(SweepArguments):
    """What can be typed after ``samadapt sweep``: its keys, and where it runs."""

    launcher: JobLauncher = field(default_factory=JobLauncher)


MAY_CHANGE = {"workers", "resume", "dry", "output", "cache"}
"""Keys that a sweep may be resumed with: how many trials run here, and where they work."""


def sweep_from_arguments(arguments: Sequence[str]) -> SweepArguments:
    """Return the keys of a command line that names ``recipe=`` or ``resume=``.

    Raises:
        ConfigError: as ``compose.from_arguments``; for values that cannot be searched, for nothing
            to search, and for a resumed sweep that differs.
    """
    path, base, others = stored_values(arguments)
    typed, fixed = split_space(others)
    resumed = next((a for a in others if a.startswith("resume=") and a != "resume=null"), None)
    if resumed is not None:
        return _resumed(path, base, typed, fixed)
    space = {**base.get("space", {}), **typed}
    space = _with_shared_options(space, fixed, base)
    fixed = [argument for argument in fixed if short_key(argument.partition("=")[0]) not in space]
    own = set(SweepArguments.__dataclass_fields__) - set(Config.__dataclass_fields__)
    told = [argument for argument in fixed if argument.partition("=")[0] not in own]
    values = {**base, "space": space, "fixed": told}
    asked = parse_settings(SweepArguments, fixed, values, origin=str(path))
    _check(asked)
    return asked


def _with_shared_options(
    space: Mapping[str, str], fixed: Sequence[str], base: Mapping[str, Any]
) -> dict[str, str]:
    """Return the space with what holds for all methods of a sweep that has the key.

    These are options of the method that were typed with one value, and the recipe's blocks, since
    depth decides cost and score more than the method does.
    """
    full = dict(space)
    if "peft" not in space:
        return full
    for argument in fixed:
        key, _, text = argument.partition("=")
        if key.startswith("peft.") and key not in {"peft.name", *OF_EVERY_METHOD}:
            full[key] = text
    blocks = flatten(base, SweepArguments).get("peft.blocks")
    if blocks is not None and "peft.blocks" not in full:
        full["peft.blocks"] = typed_value(blocks)
    return full


def _resumed(
    path: Path, base: Mapping[str, Any], space: Mapping[str, str], fixed: Sequence[str]
) -> SweepArguments:
    """Return the keys of a stored sweep with those that may change.

    Raises:
        ConfigError: other keys are given, or the folder holds no sweep.
    """
    if "space" not in base:
        raise ConfigError(f"{path}: expected the configuration of a sweep; got one without space")
    names = [argument.partition("=")[0] for argument in fixed]
    changed = [*space, *(name for name in names if name.partition(".")[0] not in MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"resume={path.parent}: its trials do not fit {', '.join(changed)}; leave these out, "
            f"or start a new sweep. {', '.join(sorted(MAY_CHANGE - {'resume'}))} may change"
        )
    return parse_settings(SweepArguments, fixed, base, origin=str(path))


def _check(asked: SweepArguments) -> None:
    """Refuse a sweep that cannot choose.

    Raises:
        ConfigError: naming the key.
    """
    if not asked.space:
        raise ConfigError(
            "a sweep searches keys with several values, and got none: 'peft=lora,dora', "
            "'peft.rank=4,8,16', 'train.lr=interval(1e-4,1e-2)'"
        )
    if asked.folds is not None:
        raise ConfigError(
            f"folds={asked.folds}: every trial of a sweep is one training; leave it out"
        )
    if asked.train.validate_cases == 0:
        raise ConfigError(
            "train.validate_cases=0: a sweep chooses by the validation cases; give at least 1"
        )
    if asked.eval.max_cases == 0:
        raise ConfigError(
            "eval.max_cases=0: a sweep leaves the held-out cases alone until the winner is known, "
            "and then scores them; use data.val_every=0 to hold out nothing"
        )
    size = [f"peft.{option}" for option in SIZES]
    named = {*asked.space, *(argument.partition("=")[0] for argument in asked.fixed)}
    if asked.equal_parameters is not None and (given := [key for key in size if key in named]):
        raise ConfigError(
            f"equal_parameters={asked.equal_parameters} chooses {given[0]} itself; leave one out"
        )
