"""No adaptation: the zero-shot baseline."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import EVERYTHING, Decoder, Method, register


@register("none")
@dataclass(frozen=True)
class NoAdaptation(Method):
    """Train nothing and score the model as it is.

    Adapters of version 0.1 may hold this method with ``decoder`` "full" or "lora", from before
    ``peft=decoder`` existed, so the option stays.
    """

    summary: ClassVar[str] = (
        "nothing: the base model as it is (zero-shot); peft=decoder trains the decoder alone"
    )
    plain_peft: ClassVar[bool] = True
    not_in_decoder: ClassVar[str] = "has no layers of its own"
    changes: ClassVar[frozenset[str]] = EVERYTHING

    decoder: Decoder = Field(default="frozen", description="how the mask decoder trains")
