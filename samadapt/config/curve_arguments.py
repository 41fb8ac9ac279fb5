"""The keys of ``samadapt curve``: those of a run, and which runs the curve is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from samadapt.config.compose import parse_settings, stored_values
from samadapt.config.schema import Config
from samadapt.system.settings import Whole

ALL = "all"
"""The word for as many cases as there are."""


def _rising(text: str) -> str:
    """Return numbers of cases in rising order, each once, with ``all`` at the end."""
    words = [word.strip() for word in text.strip("[] ").split(",")]
    valid = [word == ALL or (word.isascii() and word.isdigit() and int(word) > 0) for word in words]
    if not all(valid):
        raise ValueError(
            "expected numbers of labelled cases of at least 1, with commas between them, and the "
            f"word all for as many as there are, such as 5,10,20,all; got {text[:60]!r}"
        )
    numbers = {int(word) for word in words if word != ALL}
    return ",".join([*map(str, sorted(numbers)), *([ALL] if ALL in words else [])])


@dataclass(frozen=True, kw_only=True)
class CurveArguments(Config):
    """The keys of ``samadapt curve``."""

    cases: Annotated[str, AfterValidator(_rising)] = Field(
        description="numbers of labelled cases to train with, such as 5,10,20,all; those that "
        "choose the best step are counted, held-out ones are not",
    )
    seeds: Whole = Field(
        default=1,
        ge=1,
        le=100,
        description="how often each number is trained, each time with other cases and another seed",
    )

    def sizes(self, available: int) -> list[int]:
        """Return the numbers of cases in rising order.

        Args:
            available: how many training cases there are; ``all`` stands for it.
        """
        words = self.cases.split(",")
        return sorted({available if word == ALL else int(word) for word in words})


def curve_from_arguments(arguments: Sequence[str]) -> CurveArguments:
    """Return the keys of a command line that names ``recipe=`` or ``resume=``.

    What follows from other keys, such as learning rates, is left open: it differs between arms.

    Raises:
        ConfigError: as ``compose.from_arguments``.
    """
    path, base, others = stored_values(arguments)
    return parse_settings(CurveArguments, others, base, origin=str(path))
