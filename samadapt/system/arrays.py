"""The type of a NumPy array whose shape and dtype a docstring states."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
