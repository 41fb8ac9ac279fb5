"""The folder for everything that samadapt downloads, and for what it knows about data sets.

The variable ``SAMADAPT_CACHE`` names it; the default is ``~/.cache/samadapt``::

    weights/     pretrained weights under their published file names
    datasets/    one folder for each data set card
    index/       what was found in the files of each data set; see ``data/case_index.py``
    plans/       what a run of each kind needs on this machine; see ``runs/plan.py``

Features that a run stores belong to the run: see the keys ``cache.where`` and ``cache.dir``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

VARIABLE = "SAMADAPT_CACHE"


def cache_root() -> Path:
    """Return the folder that ``SAMADAPT_CACHE`` names, or the default."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "samadapt"


def cache_folder(kind: Literal["weights", "datasets", "index", "plans"]) -> Path:
    """Return the folder for one kind of file; it may not exist yet."""
    return cache_root() / kind
