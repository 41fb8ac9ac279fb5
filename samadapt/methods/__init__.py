"""What is injected into a frozen SAM: one file a method, each registering itself.

Importing this package imports neither torch nor peft: the configuration schema reads the option
dataclasses here. Files whose name begins with an underscore hold modules and are imported late.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from samadapt.methods.base import METHODS, Method, register, select_blocks
from samadapt.methods.injection import Injection, inject
from samadapt.methods.peft_others import register_others

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")
register_others()

__all__ = ["METHODS", "Injection", "Method", "inject", "register", "select_blocks"]
