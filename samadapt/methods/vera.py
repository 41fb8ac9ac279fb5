"""VeRA (Kopiczko et al. 2024): one frozen random pair for all linears, two trained vectors.

"VeRA: Vector-based Random Matrix Adaptation". The random matrices are stored with the adapter, so
loading it does not depend on a random number generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.methods.base import register
from samadapt.methods.peft_method import LinearMethod
from samadapt.system.settings import Whole


@register("vera")
@dataclass(frozen=True)
class VeRA(LinearMethod):
    """``W + diag(b) B diag(d) A`` with frozen, shared A and B; b starts at zero.

    Attributes:
        rank: rank of the shared pair, which is the length of d.
        seed: seed of the shared pair.
    """

    summary: ClassVar[str] = "two vectors for each linear around one frozen random low-rank pair"
    lr: ClassVar[float] = 3e-2
    kind: ClassVar[str] = "VERA"

    rank: Whole = Field(default=256, description="rank of the shared random pair", ge=1)
    seed: Whole = Field(default=0, description="of the shared random pair", ge=0)

    def arguments(self) -> Mapping[str, Any]:
        """Return rank and seed, and let peft save the random matrices."""
        return {"r": self.rank, "projection_prng_key": self.seed, "save_projection": True}

    def size(self, inputs: int, outputs: int) -> int:
        """Return rank + outputs."""
        del inputs
        return self.rank + outputs
