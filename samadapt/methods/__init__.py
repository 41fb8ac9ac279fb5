"""The PEFT methods. Each is one file that registers itself; layers are in ``<method>_layer.py``.

The configuration reads the options of all methods, also for ``samadapt --help``, so importing this
package must not import torch or peft. Files ending in ``_layer`` do import them. Methods therefore
import these files inside functions.
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
