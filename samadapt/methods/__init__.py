"""The PEFT methods: one file each, registering itself; its layers lie in ``<method>_layer.py``.

Importing this package imports neither torch nor peft: the configuration schema reads the option
dataclasses here. Files whose name ends with ``_layer`` hold torch modules and are imported late.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from samadapt.methods.base import METHODS, Method, register, select_blocks
from samadapt.methods.peft_others import register_others

for _module in iter_modules(__path__):
    if not _module.name.endswith("_layer"):
        import_module(f"{__name__}.{_module.name}")
register_others()

__all__ = ["METHODS", "Method", "register", "select_blocks"]
