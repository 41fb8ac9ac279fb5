"""A run with ``compile=true`` that is stopped goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod

import pytest
import torch
from torch import nn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.usefixtures("unchecked_shapes"),  # a graph cannot hold the checks
]


@pytest.fixture(autouse=True)
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Record graphs and their gradients, but run PyTorch's operators: no C++ is compiled."""
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", partialmethod(compile, backend="aot_eager"))
    monkeypatch.setattr("samadapt.runs.context.check_compile", lambda device: None)
    yield
    torch._dynamo.reset()


def test_it_goes_on_bit_for_bit(make_pictures, resumes_bit_equal) -> None:
    resumes_bit_equal(make_pictures(), ["compile=true"], ["adapter/adapter_model.safetensors"])
