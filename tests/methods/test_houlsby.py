"""Houlsby's bottlenecks follow the attention and the MLP in series."""

from __future__ import annotations

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.methods.houlsby import Houlsby


def test_the_bottlenecks_are_in_series(fresh, perturb):
    sam, plain = fresh(), fresh()
    site = sam.attention_blocks()[0]
    perturb(inject(sam, Houlsby(hidden=5)))
    x = torch.randn(2, 3, 4, site.width)
    for path in (site.attn, site.mlp):
        host, before = sam.get_submodule(path), plain.get_submodule(path)(x)
        down, up = host.bottleneck[0], host.bottleneck[2]
        hidden = torch.nn.functional.gelu(before @ down.weight.T + down.bias)
        assert hidden.shape[-1] == 5
        torch.testing.assert_close(host(x), before + hidden @ up.weight.T + up.bias)


def test_a_wrong_width_is_refused():
    with pytest.raises(ConfigError, match=r"peft\.hidden.*got 0"):
        Houlsby(hidden=0)
