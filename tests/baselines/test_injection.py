"""Everything in a U-Net is trained, and a part without a gradient is found."""

from __future__ import annotations

import pytest
import torch

from samadapt.baselines.build import UNetBuild
from samadapt.baselines.injection import train_everything
from samadapt.baselines.unet import make_unet
from samadapt.errors import RunError


@pytest.mark.parametrize("encoder", ["", "resnet10t"])
def test_every_parameter_is_in_one_group(encoder: str) -> None:
    model = make_unet(UNetBuild(64, channels=3, classes=1, filters=4, encoder=encoder))
    injection = train_everything(model)
    named = [name for members in injection.groups.values() for name in members]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert len(named) == len(set(named))
    assert set(injection.groups) == {"encoder", "decoder"}
    assert injection.trainable == injection.total == sum(p.numel() for p in model.parameters())
    assert not injection.has_frozen_prefix
    assert f"{injection.total:,} parameters, all of them" in injection.report()


def test_a_decoder_without_gradient_is_named() -> None:
    model = make_unet(UNetBuild(16, channels=3, classes=1, filters=4))
    injection = train_everything(model)
    model.network.input_block(torch.randn(1, 3, 16, 16)).sum().backward()
    for name in injection.groups["encoder"]:
        injection.parameters[name].grad = torch.ones_like(injection.parameters[name])
    with pytest.raises(RunError, match="no gradient reached decoder"):
        injection.check_gradients()
