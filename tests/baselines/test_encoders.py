"""timm's models as encoders: every resolution is used, and what does not fit is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samadapt.baselines.build import UNetBuild
from samadapt.baselines.encoders import imagenet_statistics, use_group_norm
from samadapt.baselines.unet import UNet, make_unet
from samadapt.errors import ConfigError, WeightsError


def build(encoder: str, **options: object) -> UNetBuild:
    return UNetBuild(64, channels=4, classes=2, encoder=encoder, **options)


def logits_of(model: UNet) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().network(torch.randn(2, 4, 64, 64))


@pytest.mark.slow
def test_a_residual_network_without_batch_norm() -> None:
    model = make_unet(build("resnet10t"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in model.modules())
    assert logits_of(model).shape == (2, 2, 64, 64)


@pytest.mark.slow
def test_features_that_start_at_stride_four() -> None:
    assert logits_of(make_unet(build("convnext_atto"))).shape == (2, 2, 64, 64)


def test_activations_that_timm_fuses_into_the_norm_stay() -> None:
    from timm.layers.norm_act import BatchNormAct2d

    block = nn.Sequential(nn.Conv2d(1, 24, 1), BatchNormAct2d(24, act_layer=nn.ReLU))
    use_group_norm(block)
    assert [type(part) for part in block[1]] == [nn.GroupNorm, nn.Identity, nn.ReLU]
    assert block[1][0].num_groups == 8  # the most of 32 that divide 24
    assert float(block(torch.randn(1, 1, 8, 8)).detach().min()) == 0


@pytest.mark.slow
def test_pretrained_norms_keep_their_statistics() -> None:
    model = make_unet(build("resnet10t", pretrained=True), fetch=False)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet43'; did you mean 'resnet"):
        make_unet(build("resnet43"))


def test_a_transformer_of_one_resolution_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224.*convolutional"):
        make_unet(build("vit_tiny_patch16_224"))


def test_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match="cannot fetch the weights of resnet10t: no network"):
        make_unet(build("resnet10t", pretrained=True))


def test_pixels_are_scaled_as_in_the_pretraining() -> None:
    mean, std = imagenet_statistics("resnet34")
    assert mean == pytest.approx((123.675, 116.28, 103.53))
    assert std == pytest.approx((58.395, 57.12, 57.375))
