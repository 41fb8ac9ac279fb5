"""Layers that train parts of a matrix are that one matrix in a state dict."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from samadapt.methods.matrix_layer import MatrixLayer
from samadapt.methods.pissa_layer import Paired
from samadapt.methods.qkv_layer import SlicedProjection

LAYERS: dict[str, Callable[[], MatrixLayer]] = {
    "sliced": lambda: SlicedProjection(("k", "q"), 3, 8, 2, torch.zeros(1)),
    "paired a": lambda: Paired(torch.randn(3, 8), torch.randn(3, 8), dim=0),
    "paired b": lambda: Paired(torch.randn(8, 3), torch.randn(8, 3), dim=1),
}


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Callable[[], MatrixLayer]:
    """``make()``: a layer of each kind in turn."""
    return LAYERS[request.param]


def test_the_matrix_comes_back(make: Callable[[], MatrixLayer]) -> None:
    torch.manual_seed(0)
    one, other = make(), make()
    for parameter in one.parameters():
        torch.nn.init.normal_(parameter)
    assert list(one.state_dict()) == ["weight"]
    assert not torch.equal(one.weight, other.weight)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)
    x = torch.randn(5, one.weight.shape[1])
    torch.testing.assert_close(other(x), x @ one.weight.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, r"Missing key\(s\) in state_dict: \"weight\""),
        (lambda state: {"weight": torch.zeros(3, 3)}, r"weight: expected \(\d+, \d+\); got \(3, 3"),
        (lambda state: {**state, "other": torch.zeros(1)}, r"Unexpected key\(s\).*\"other\""),
    ],
)
def test_a_wrong_state_is_refused(
    make: Callable[[], MatrixLayer],
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
) -> None:
    layer = make()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(change(dict(layer.state_dict())))
