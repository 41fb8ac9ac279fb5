"""The keys of ``samadapt plan``: those of a run, and how much of it is tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings, resolved, stored_values
from samadapt.config.schema import Config


@dataclass(frozen=True)
class PlanArguments(Config):
    """The keys of ``samadapt plan``."""

    quick: bool = Field(
        default=False,
        description="train with one and two slices alone, and conclude from them what a batch "
        "needs; for batches that may not fit into memory",
    )

    def configuration(self) -> Config:
        """Return the keys of the run.

        Raises:
            ConfigError: as ``compose.resolved``.
        """
        return resolved(Config(**{item.name: getattr(self, item.name) for item in fields(Config)}))


def plan_arguments(arguments: Sequence[str]) -> PlanArguments:
    """Return the keys of a command line that names ``recipe=`` or ``resume=``.

    Raises:
        ConfigError: as ``compose.from_arguments``.
    """
    path, base, others = stored_values(arguments)
    return parse_settings(PlanArguments, others, base, origin=str(path))
