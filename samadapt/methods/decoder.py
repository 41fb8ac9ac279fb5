"""The decoder alone: the image encoder stays as it is."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import EVERYTHING, Decoder, Method, register, require


@register("decoder")
@dataclass(frozen=True)
class DecoderOnly(Method):
    """Train the mask decoder alone, all of it or by a LoRA.

    The whole encoder is frozen, so every image is encoded once in a run.
    """

    summary: ClassVar[str] = "the mask decoder alone; the image encoder stays as it is"
    plain_peft: ClassVar[bool] = True
    not_in_decoder: ClassVar[str] = "has no layers of its own"
    changes: ClassVar[frozenset[str]] = EVERYTHING

    decoder: Decoder = Field(
        default="full", description="how the mask decoder trains: full or lora"
    )

    def check_options(self) -> None:
        """Refuse a frozen decoder."""
        require(
            self.decoder != "frozen",
            "peft=decoder with peft.decoder=frozen trains nothing; use peft=none for the zero-shot "
            "baseline",
        )
