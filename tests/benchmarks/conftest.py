"""``benchmarks`` is no package and its root must stay off the path: name its folder alone."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

_spec = ModuleSpec("benchmarks", None, is_package=True)
_spec.submodule_search_locations = [str(Path(__file__).parents[2] / "benchmarks")]
sys.modules["benchmarks"] = module_from_spec(_spec)
