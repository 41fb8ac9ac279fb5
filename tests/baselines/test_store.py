"""A U-Net on the disk: the same after loading, refused if it was changed, and no adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samadapt.adapters.base_model import open_adapter
from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.baselines.build import UNetBuild
from samadapt.baselines.store import load_unet, save_unet
from samadapt.baselines.unet import UNet, make_unet
from samadapt.errors import AdapterError

RECORD = AdapterRecord(base="unet", base_sha256="0" * 64, image_size=32, classes=["front"])


def saved(folder: Path, encoder: str = "") -> tuple[UNet, Path]:
    torch.manual_seed(0)
    build = UNetBuild(
        32, channels=3, classes=1, filters=4, encoder=encoder, pretrained=bool(encoder)
    )
    model = make_unet(build, fetch=False).eval()
    save_unet(folder / "baseline", model, RECORD)
    return model, folder / "baseline"


@pytest.mark.parametrize("encoder", ["", "resnet10t"])
def test_it_is_the_same_after_loading(tmp_path: Path, encoder: str) -> None:
    torch.manual_seed(1)
    model, folder = saved(tmp_path, encoder)
    loaded, record = load_unet(folder)
    assert (record.classes, loaded.build) == (["front"], model.build)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.network(pixels), model.network(pixels))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "unet.json", "unet.safetensors")
    ]


def test_it_is_no_adapter(tmp_path: Path) -> None:
    _, folder = saved(tmp_path)
    for refuse in (read_record, open_adapter):
        with pytest.raises(AdapterError, match="this is a U-Net that a run with baseline=unet"):
            refuse(folder)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    model, folder = saved(tmp_path)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    other = saved(tmp_path / "other")[1]
    (folder / "unet.safetensors").write_bytes((other / "unet.safetensors").read_bytes() + b" ")
    with pytest.raises(AdapterError, match=r"unet\.safetensors"):
        load_unet(folder)


def test_a_record_of_another_shape_is_refused(tmp_path: Path) -> None:
    from samadapt.adapters.record import digest_of

    _, folder = saved(tmp_path)
    values = json.loads((folder / "unet.json").read_text(encoding="utf-8"))
    del values["method"]["filters"]
    values["record_sha256"] = digest_of(values)
    (folder / "unet.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(AdapterError, match="expected the shape of a U-Net: 'filters'"):
        load_unet(folder)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = UNet(UNetBuild(16, channels=3, classes=1, filters=4))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(AdapterError, match="NaN"):
        save_unet(tmp_path / "baseline", model, RECORD)
    assert not (tmp_path / "baseline").exists()
