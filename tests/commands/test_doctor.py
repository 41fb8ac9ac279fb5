"""``samadapt doctor``: every line has a status, every problem a fix."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

from samadapt.cli import main
from samadapt.commands import doctor
from samadapt.config.schema import TRACKERS
from samadapt.errors import ConfigError
from samadapt.sam.attention import kernels
from samadapt.training import precision


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert {
        "python",
        "torch",
        "torch build",
        "cpu",
        "products",
        "attention",
        "disk",
        "lite_medsam",
        "datasets",
    } <= {line["what"] for line in lines}
    assert all(line["status"] == "ok" or line["fix"] for line in lines)


def test_how_products_are_computed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = precision.Products(onednn=1.8, error=4e-7, bf16=2.0)
    monkeypatch.setattr(precision, "measure_products", lambda: found)
    line = doctor.look_at_products()
    assert line.found == (
        "precision=auto is bf16 here: bf16 products measure 2.0x fp32 on this CPU; fp32 through "
        "oneDNN 1.80x the default at an error of 4e-07, taken"
    )


def test_attention_that_was_not_built_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_kernels", lambda: None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    line = doctor.look_at_attention()
    assert line.status == "warn"
    assert line.found.startswith("by PyTorch: the compiled backend ")
    assert "gcc" in line.fix


def test_other_processors_have_pytorchs_form_and_no_warning(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "find_kernels", lambda: None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")  # as on ARM
    line = doctor.look_at_attention()
    assert line == doctor.Line(
        "ok", "attention", "by PyTorch: there is no compiled backend for this processor"
    )


def test_text_has_the_fix_below_the_line() -> None:
    line = {"status": "fail", "what": "torch", "found": "not installed", "fix": "pip install torch"}
    text = doctor.render({"lines": [line]})
    assert text.splitlines() == [
        "fail  torch        not installed",
        "                   fix: pip install torch",
    ]


def test_torchvision_of_another_build() -> None:
    line = doctor.torchvision_fault(RuntimeError("operator torchvision::nms does not exist"))
    assert line.status == "fail"
    assert "built for another torch" in line.found
    assert "torch torchvision" in line.fix


def test_a_failure_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "LOOKS", (doctor.look_at_versions,))
    assert main(["doctor"]) == 2
    assert "fail  no-such-package not installed" in capsys.readouterr().out


def test_a_missing_extra_is_named_with_its_use_and_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"coco": ("data=coco", ("no-such-package", "numpy"))})
    (line,) = doctor.look_at_extras()
    assert line == doctor.Line(
        "warn",
        "extra coco",
        "not installed: no-such-package; needed for data=coco",
        "pip install 'samadapt[coco]'",
    )


def test_every_extra_is_looked_at() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    others = {*TRACKERS} - {"tensorboard"} | {"test", "docs"}
    for_users = {name: names for name, names in extras.items() if name not in others}
    bare = {name: tuple(n.split(">=")[0] for n in names) for name, names in for_users.items()}
    assert {name: packages for name, (_, packages) in doctor.EXTRAS.items()} == bare


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_WANTED_GB", 10**9)
    (line,) = [line for line in doctor.look_at_space() if line.what == "disk"]
    assert (line.status, bool(line.fix)) == ("warn", True)


def test_a_folder_that_shadows_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "datasets").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    (line,) = doctor.look_at_shadow()
    assert line.status == "warn"
    assert str(tmp_path / "datasets") in line.found


def test_no_arguments() -> None:
    with pytest.raises(ConfigError, match="takes no arguments"):
        doctor.run(["x=1"])


@pytest.mark.parametrize(
    ("busy", "threads", "status"),
    [(0.1, 2, "ok"), (1.0, 2, "warn"), (2.0, 2, "warn"), (1.0, 1, "ok"), (1.9, 1, "warn")],
)
def test_a_loaded_machine_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, busy: float, threads: int, status: str
) -> None:
    monkeypatch.setattr(doctor, "busy_processors", lambda: busy)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    count, waiting, load = doctor.look_at_threads()
    assert (count.what, waiting.what, load.what) == ("threads", "waiting", "load")
    assert count.found.startswith(f"{threads} thread")
    assert load.status == status
    assert f"{busy:.1f} of 2 processors" in load.found
    assert ("OMP_NUM_THREADS=1" in load.fix) is (status == "warn" and threads == 2)
    assert bool(load.fix) is (status == "warn")
