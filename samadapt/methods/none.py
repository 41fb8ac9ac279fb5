"""Nothing in the encoder: the zero-shot baseline, or the decoder alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import EVERYTHING, Decoder, Method, register


@register("none")
@dataclass(frozen=True)
class NoAdaptation(Method):
    """The encoder stays as it is; ``decoder`` is frozen too unless asked for."""

    summary: ClassVar[str] = "the encoder untouched; zero-shot unless the decoder is trained"
    plain_peft: ClassVar[bool] = True
    not_in_decoder: ClassVar[str] = "has no layers of its own"
    changes: ClassVar[frozenset[str]] = EVERYTHING

    decoder: Decoder = Field(default="frozen", description="how the mask decoder trains")
