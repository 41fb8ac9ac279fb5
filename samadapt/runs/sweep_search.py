"""Which trials a sweep makes: every combination of a small grid, or what a search proposes.

The search is TPE (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"): it models
where good trials lie and draws from there. What trial n tries follows from the seed, n and the
trials before it, so a resumed sweep goes on as one that was not stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt import console
from samadapt.config.compose import to_yaml
from samadapt.config.schema import Config
from samadapt.config.search_space import (
    LISTED,
    Choice,
    Dimension,
    Interval,
    combinations,
    count_product,
    used_by,
    uses,
)
from samadapt.config.sweep_arguments import SweepArguments
from samadapt.errors import ConfigError
from samadapt.runs.equal_size import size_for
from samadapt.runs.initial_adapter import with_initial_digest
from samadapt.runs.sweep_study import Proposal, import_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

LARGEST_GRID = 100
"""Without a number of trials, a grid of at most so many combinations is run."""

ATTEMPTS = 50
"""Draws of the search for one trial; if all are trials that there are, any other one is taken."""


@dataclass(frozen=True)
class TrialMaker:
    """Makes the configuration of a trial from its values.

    Attributes:
        arguments: the keys of the sweep.
        device, precision: those of all trials.
        longest_side: of the training pictures in pixels.
    """

    arguments: SweepArguments
    device: str
    precision: str
    longest_side: int

    def make(self, values: Mapping[str, str]) -> tuple[dict[str, str], Config]:
        """Return the values of a trial with those that follow from them, and its configuration.

        Raises:
            ConfigError: the values do not fit together, or not the number of parameters.
        """
        values = dict(values)
        target = self.arguments.equal_parameters
        if target is not None:
            config = self.arguments.trial(values)
            if config.baseline.name is None:
                values |= size_for(config, target, self.longest_side)
        config = self.arguments.trial(values)
        if config.init is not None:
            config = with_initial_digest(config)
        return values, replace(config, device=self.device, precision=self.precision)  # type: ignore[arg-type]


@dataclass
class Search:
    """What to try next.

    Attributes:
        maker: makes configurations.
        total: number of trials.
        grid: the combinations that are run one after the other; None: TPE proposes.
    """

    maker: TrialMaker
    total: int = 0
    grid: list[Proposal] | None = None
    _refused: set[str] = field(default_factory=set)

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The searched keys."""
        return self.maker.arguments.dimensions()

    def propose(self, trials: Sequence[FrozenTrial]) -> Proposal | None:
        """Return the next trial; None: there is none.

        Args:
            trials: all trials so far, in the order of their numbers.
        """
        taken = {str(trial.user_attrs["digest"]) for trial in trials}
        if self.grid is not None:
            return next((one for one in self.grid if one.digest not in taken), None)
        return self._draw(trials, taken) if len(trials) < self.total else None

    def _draw(self, trials: Sequence[FrozenTrial], taken: set[str]) -> Proposal | None:
        optuna = import_optuna()
        entropy = [self.maker.arguments.seed, len(trials)]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # Trials that run now count as bad ones, so that workers look in different places.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        memory = optuna.create_study(direction="maximize", sampler=sampler)
        memory.add_trials(trials)
        for _ in range(ATTEMPTS):
            trial = memory.ask()
            proposal = self._proposed(trial)
            if proposal is not None and proposal.digest not in taken:
                return proposal
            memory.tell(trial, state=optuna.trial.TrialState.FAIL)
        if not math.isfinite(count_product(self.dimensions)):
            return None
        rest = (self.proposal(values) for values in self.combinations())
        return next((one for one in rest if one and one.digest not in taken), None)

    def _proposed(self, trial: Trial) -> Proposal | None:
        """Return what the sampler chooses, key by key, where a key is used."""
        values: dict[str, str] = {}
        context = self.maker.arguments.context
        for key, one in self.dimensions.items():
            if not uses(values, key, context):
                continue
            if isinstance(one, Choice):
                several = len(one.values) > 1
                chosen = trial.suggest_categorical(key, one.values) if several else one.values[0]
                values[key] = str(chosen)
            elif one.whole:
                values[key] = str(trial.suggest_int(key, int(one.low), int(one.high), log=one.log))
            else:
                drawn = trial.suggest_float(key, one.low, one.high, log=one.log)
                values[key] = one.typed(drawn)
        return self.proposal(values)

    def proposal(self, values: Mapping[str, str]) -> Proposal | None:
        """Return a trial of these values; None, with a note, if they do not fit together."""
        try:
            full, config = self.maker.make(values)
        except ConfigError as error:
            if str(error) not in self._refused:
                self._refused.add(str(error))
                console.log(f"samadapt: note: not tried: {error}")
            return None
        params, distributions = as_parameters(values, self.dimensions)
        return Proposal(full, digest_of(config), params, distributions)

    def combinations(self) -> list[dict[str, str]]:
        """Return the combinations of the values of all keys, which are finite in number."""
        found = combinations(self.dimensions, self.maker.arguments.context)
        return list(itertools.islice(found, LISTED))


def make_search(maker: TrialMaker) -> Search:
    """Return the search of a sweep: a grid where it is small and finite, else TPE.

    Raises:
        ConfigError: values do not fit their keys or together, or the number of trials is missing.
    """
    search = Search(maker)
    used_by(search.dimensions, maker.arguments.context)  # refuse keys that no trial has
    _check_each_value(search)
    asked, product = maker.arguments.trials, count_product(search.dimensions)
    found = _grid(search) if product <= LISTED else None
    limit = LARGEST_GRID if asked is None else asked
    if found is not None and len(found) <= limit:
        search.grid, search.total = found, len(found)
        return search
    if asked is None:
        how_many = f"{len(found):,}" if found is not None else "too many"
        how_many = "infinitely many" if math.isinf(product) else how_many
        raise ConfigError(f"trials: the values have {how_many} combinations; give trials=30")
    search.total = asked
    return search


def _grid(search: Search) -> list[Proposal]:
    """Return every combination of values that fit together, each run once."""
    found: dict[str, Proposal] = {}
    for values in search.combinations():
        if (proposal := search.proposal(values)) is not None:
            found.setdefault(proposal.digest, proposal)
    return list(found.values())


def _check_each_value(search: Search) -> None:
    """Check every value and both ends of every interval, with each method that has the key.

    Raises:
        ConfigError: for a value that fits neither the first nor the last values of the other keys.
    """
    texts = {key: _ends(one) for key, one in search.dimensions.items()}
    context = search.maker.arguments.context

    def refusal(values: Mapping[str, str]) -> ConfigError | None:
        kept = {key: text for key, text in values.items() if uses(values, key, context)}
        try:
            search.maker.make(kept)
        except ConfigError as error:
            return error
        return None

    for method in texts.get("peft", [context["peft"]]):
        named = {"peft": method} if "peft" in texts else {}
        for key, text in _each_value(texts):
            first, last = ({one: ends[at] for one, ends in texts.items()} for at in (0, -1))
            error = refusal({**first, key: text, **named})
            if error is not None and refusal({**last, key: text, **named}) is not None:
                raise error


def _each_value(texts: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return every value with its key."""
    return [(key, text) for key, values in texts.items() for text in values]


def _ends(one: Dimension) -> list[str]:
    return (
        list(one.values) if isinstance(one, Choice) else [one.typed(one.low), one.typed(one.high)]
    )


def as_parameters(
    values: Mapping[str, str], dimensions: Mapping[str, Dimension]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return the values of a trial for optuna, and what they were chosen from.

    Keys with one value are left out: there was nothing to choose.
    """
    given = import_optuna().distributions
    params: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for key, one in dimensions.items():
        if key not in values:
            continue
        if isinstance(one, Interval):
            kind = given.IntDistribution if one.whole else given.FloatDistribution
            number = int if one.whole else float
            params[key] = number(values[key])
            distributions[key] = kind(number(one.low), number(one.high), log=one.log)
        elif len(one.values) > 1:
            params[key] = values[key]
            distributions[key] = given.CategoricalDistribution(one.values)
    return params, distributions


def digest_of(config: Config) -> str:
    """Return a hash of all keys of a trial: of two trials with the same one, only one is run."""
    return hashlib.sha256(to_yaml(config).encode("utf-8")).hexdigest()
