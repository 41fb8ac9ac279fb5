"""AdaptFormer's parallel bottleneck computes the equation of its paper."""

from __future__ import annotations

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.methods.adaptformer import AdaptFormer


def test_the_block_is_the_papers_equation(tiny_sam, perturb):
    """``mlp(norm(x)) + scale * up(relu(down(norm(x)))) + x``, behind the attention."""
    perturb(inject(tiny_sam, AdaptFormer(hidden=5, scale=0.3)))
    site = tiny_sam.attention_blocks()[0]
    block = tiny_sam.get_submodule(site.block)
    x = torch.randn(2, 8, 8, site.width)
    middle = x + block.attn(block.norm1(x))
    normed = block.norm2(middle)
    mlp = block.mlp.lin2(torch.nn.functional.gelu(block.mlp.lin1(normed)))
    down, _, up = block.mlp.bottleneck
    beside = up((normed @ down.weight.T + down.bias).clamp(min=0))
    torch.testing.assert_close(block(x), middle + mlp + 0.3 * beside)


def test_tiny_vits_bottleneck_sees_normed_tokens(tiny_t_sam, perturb):
    perturb(inject(tiny_t_sam, AdaptFormer(hidden=5, scale=0.3)))
    site = tiny_t_sam.attention_blocks()[1]
    mlp = tiny_t_sam.get_submodule(site.mlp)
    x = torch.randn(2, 7, 5, site.width)
    normed = mlp.norm(x)
    plain = mlp.fc2(torch.nn.functional.gelu(mlp.fc1(normed)))
    torch.testing.assert_close(mlp(x), plain + 0.3 * mlp.bottleneck(normed))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 0}, r"peft\.hidden.*got 0"), ({"scale": -1.0}, r"peft\.scale.*got -1\.0")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AdaptFormer(**options)
