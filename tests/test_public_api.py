"""``import samadapt`` costs nothing, and ``__all__`` is what is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import samadapt
from samadapt import errors


@pytest.mark.parametrize("name", samadapt.__all__)
def test_public_name(name: str) -> None:
    value = getattr(samadapt, name)
    home = getattr(value, "__module__", "samadapt")
    assert home.startswith("samadapt") or name == "__version__"


def test_all_is_sorted_and_complete() -> None:
    assert samadapt.__all__ == sorted(samadapt.__all__)
    assert dir(samadapt) == samadapt.__all__
    public = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SamadaptError)
    }
    assert public <= set(samadapt.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_sm'"):
        _ = samadapt.load_sm


def test_import_is_lazy() -> None:
    code = "import samadapt, sys; print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    heavy = {"torch", "numpy", "hydra", "omegaconf", "pydantic", "rich"}
    assert not heavy & set(done.stdout.split())
