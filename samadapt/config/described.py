"""Keys that describe the option chosen for a group, such as the files of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class DescribesOption:
    """Marks a key that describes the option chosen for a group, such as the files of a data set.

    Attributes:
        group: a recipe's value of the key is dropped when the command line chooses another option
            for this group, such as ``data=NAME``.
    """

    group: str


OfModel = Annotated[T, DescribesOption("model")]
OfMethod = Annotated[T, DescribesOption("peft")]
OfDataSet = Annotated[T, DescribesOption("data")]
OfPrompts = Annotated[T, DescribesOption("prompts")]
