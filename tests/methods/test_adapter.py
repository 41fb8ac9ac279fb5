import pytest
import torch

from samadapt.errors import ConfigError
from samadapt.methods import METHODS, inject
from samadapt.methods.adapter import Adapter


def test_the_bottlenecks_do_what_they_say(fresh, perturb):
    sam, plain = fresh(), fresh()
    site = sam.sites()[0]
    perturb(inject(sam, Adapter(scale=0.3, hidden=5)))
    mlp, before = sam.get_submodule(site.mlp), plain.get_submodule(site.mlp)
    x = torch.randn(2, 9, site.width)

    def bottleneck(module, value):
        down, up = module.bottleneck[0], module.bottleneck[2]
        return torch.nn.functional.gelu(value @ down.weight.T + down.bias) @ up.weight.T + up.bias

    torch.testing.assert_close(mlp(x), before(x) + 0.3 * bottleneck(mlp, x))
    assert mlp.bottleneck[0].out_features == 5

    attn, before = sam.get_submodule(site.attn), plain.get_submodule(site.attn)
    x = x.reshape(2, 3, 3, site.width)
    torch.testing.assert_close(attn(x), before(x) + bottleneck(attn, before(x)))


def test_hidden_is_a_quarter_by_default(tiny_sam):
    inject(tiny_sam, Adapter())
    for site in tiny_sam.sites():
        assert tiny_sam.get_submodule(site.attn).bottleneck[0].out_features == site.width // 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 0}, r"peft\.hidden .*got 0"), ({"scale": 0.0}, r"peft\.scale .*got 0\.0")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        METHODS["adapter"](**options)
