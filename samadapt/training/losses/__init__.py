"""The losses by their names in ``loss=NAME``. Each is one file that registers itself.

The configuration reads the keys of all losses, also for ``samadapt --help``, so importing this
package must not import torch or MONAI. A loss imports them where it computes. What the losses share
is in ``training/mask_losses.py``.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from samadapt.training.losses.base import LOSSES, NamedLoss, loss_keys, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["LOSSES", "NamedLoss", "loss_keys", "register"]
