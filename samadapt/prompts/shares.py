"""The shares of the kinds of prompts in ``prompts=mixed``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from samadapt.errors import nearest

MIXED = "mixed"

LARGEST = 1e6
"""Largest share that can be given: far above what anybody needs, and sums of it stay exact."""

DEFAULT_SHARES = {
    "box": 1.0,
    "point": 1.0,
    "scribble": 0.0,
    "mask": 1.0,
    "interactive": 1.0,
    "semantic": 1.0,
}
"""The kinds that a mixture can have, in the order of tables, and their default shares. A scribble
is much like several clicks and takes time to simulate, so it is left to those who ask for it."""


def check_shares(shares: Mapping[str, float]) -> Mapping[str, float]:
    """Return shares as they are if they make a mixture.

    Raises:
        ValueError: for an unknown kind, a share that is no number from 0 on, or fewer than two
            kinds with a share above 0.
    """
    known = ", ".join(DEFAULT_SHARES)
    for kind, share in shares.items():
        if kind not in DEFAULT_SHARES:
            raise ValueError(
                f"expected kinds of prompts among {known}; got {kind!r}"
                f"{nearest(str(kind), DEFAULT_SHARES)}"
            )
        _check_share(kind, share)
    if sum(share > 0 for share in shares.values()) < 2:
        raise ValueError(
            f"expected at least two kinds with a share above 0, such as {{box: 1, semantic: 1}}; "
            f"got {dict(shares)!r}. For one kind alone use prompts=KIND"
        )
    return shares


FIRST_KINDS = ("box", "point", "mask")
"""Kinds of prompts on the first slice of a clip, those with which SAM 2 was trained."""


def check_first_shares(first: str | Mapping[str, float]) -> str | Mapping[str, float]:
    """Return the kind of a clip's first prompt, or the shares of several kinds, as they are.

    Raises:
        ValueError: for an unknown kind, a share that is no number from 0 on, or none above 0.
    """
    shares = {first: 1.0} if isinstance(first, str) else first
    known = ", ".join(FIRST_KINDS)
    for kind, share in shares.items():
        if kind not in FIRST_KINDS:
            raise ValueError(
                f"expected kinds of prompts among {known}; got {kind!r}"
                f"{nearest(str(kind), FIRST_KINDS)}"
            )
        _check_share(kind, share)
    if not any(shares.values()):
        raise ValueError(f"expected a share above 0 for one of {known}; got {dict(shares)!r}")
    return first


def _check_share(kind: str, share: object) -> None:
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 <= share <= LARGEST:  # type: ignore[operator]
        raise ValueError(f"{kind}: expected a share from 0 to {LARGEST:g}; got {share!r}")


def normalised(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the shares above 0, which add up to 1, in the order of ``DEFAULT_SHARES``."""
    total = math.fsum(shares.values())
    return {
        kind: shares[kind] / total for kind in DEFAULT_SHARES if shares.get(kind, 0) / total > 0
    }
