"""VeRA (Kopiczko et al. 2024): one frozen random pair for all linears, and a vector for each side.

"VeRA: Vector-based Random Matrix Adaptation". The random matrices are stored with the adapter, so
that it does not hang on a random number generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import register, require, require_count
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole


@register("vera")
@dataclass(frozen=True)
class VeRA(LinearMethod):
    """``W + diag(b) B diag(d) A`` with A and B frozen and shared; b is zero at the start.

    Attributes:
        rank: of the shared pair: the length of d.
        seed: of the shared pair.
    """

    summary: ClassVar[str] = "two vectors a linear around one frozen random low-rank pair"
    lr: ClassVar[float] = 3e-2
    kind: ClassVar[str] = "VERA"

    rank: Whole = Field(default=256, description="rank of the shared random pair", ge=1)
    seed: Whole = Field(default=0, description="of the shared random pair", ge=0)

    def validate(self) -> None:
        """Check rank and seed."""
        require_count("rank", self.rank)
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        require(whole and self.seed >= 0, f"peft.seed must be an integer from 0; got {self.seed!r}")

    def arguments(self) -> Mapping[str, Any]:
        """Return rank and seed; the projections are saved."""
        return {"r": self.rank, "projection_prng_key": self.seed, "save_projection": True}

    def size(self, inputs: int, outputs: int) -> int:
        """Return rank + outputs."""
        del inputs
        return self.rank + outputs
