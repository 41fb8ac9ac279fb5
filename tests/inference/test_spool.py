"""Tensors come back as they were put, from memory and from the file."""

from __future__ import annotations

import pytest
import torch

from samadapt.inference.spool import Spool


@pytest.mark.parametrize("limit", [1 << 20, 100])
def test_what_is_put_comes_back(limit):
    generator = torch.Generator().manual_seed(0)
    values = {
        ("a", 1): torch.randn(3, 4, generator=generator),
        ("a", 2): torch.randn(2, 1, 5, generator=generator).to(torch.bfloat16),
        7: torch.randn(4, 3, generator=generator).T,
        "grad": torch.ones(2, requires_grad=True),
    }
    with Spool(limit) as spool:
        for key, value in values.items():
            spool.put(key, value)
            assert torch.equal(spool.get(key), value.detach())
        assert 8 not in spool
        for key, value in values.items():
            assert key in spool
            again = spool.get(key)
            assert again.dtype == value.dtype
            assert torch.equal(again, value.detach())
