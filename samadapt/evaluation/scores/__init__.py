"""The scores of one class in one case. Each file holds a family of scores and registers them.

The scores of a new file appear in every summary, table and ``per_case.csv`` without further code.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from samadapt.evaluation.scores.base import OVERLAP, SCORES, ClassMasks, Score, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["OVERLAP", "SCORES", "ClassMasks", "Score", "register"]
