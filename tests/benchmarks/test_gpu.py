"""The GPU suite without a GPU: its rows on tiny models, and what it does with rows that fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import results
from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import attention_forms, contest, models, plan, wheels, whole_runs
from benchmarks.gpu.contest import Contest
from benchmarks.harness import Fact, Run

ROOT = Path(__file__).parents[2]
RUN = Run("gpu", 3, {"cpu": {"fp32": 50.0}})


def returning(*values: float):
    return lambda: lambda: torch.tensor(values)


def failing(error: Exception):
    def build():
        raise error

    return build


def contend(name: str = "row", **contenders) -> Contest:
    return Contest(
        name,
        {"samadapt": returning(3.0, 4.5), **contenders},
        "cpu",
        "fp32",
        exact=lambda: torch.tensor([3.0, 4.0]),
        limit=lambda errors: 0.2,
    )


def run(tmp_path: Path, monkeypatch, *rows, more: tuple[str, ...] = ()) -> tuple[int, dict]:
    """Measure these rows; return the exit code and the run that was written."""
    monkeypatch.setattr(suite, "planned", lambda device, quick: iter(rows))
    output = tmp_path / "gpu.json"
    code = suite.main(["--device", "cpu", "--quick", "--output", str(output), *more])
    (entry,) = results.read(output)
    return code, entry


def test_peers_that_cannot_run_are_named_in_the_row() -> None:
    missing = ModuleNotFoundError("no", name="segment_anything")
    row = contend(
        peer=returning(3.0, 4.0),
        absent=failing(missing),
        large=failing(torch.OutOfMemoryError("CUDA out of memory")),
        broken=failing(RuntimeError("wrong\nlines")),
    )
    found = row.measure(RUN)
    assert list(found["contenders"]) == ["samadapt", "peer"]
    assert found["facts"] == {
        "without absent": "package segment_anything is missing",
        "without large": "out of memory",
        "without broken": "RuntimeError: wrong",
    }
    assert found["contenders"]["samadapt"]["error"] == pytest.approx(0.1)
    assert found["contenders"]["peer"]["error"] == 0
    assert found["contenders"]["peer"]["ratio"]["median"] > 0
    assert found["passed"]


def test_repetitions_fit_into_the_time_of_a_row(monkeypatch) -> None:
    monkeypatch.setattr(contest, "TIMING_S", 0.0)
    assert len(contend().measure(RUN)["contenders"]["samadapt"]["seconds"]) == 2
    monkeypatch.setattr(contest, "TIMING_S", 60.0)
    assert len(contend().measure(RUN)["contenders"]["samadapt"]["seconds"]) == RUN.repeat


def test_every_row_is_written_and_what_is_left_out_is_named(tmp_path, monkeypatch, capsys) -> None:
    seen = []

    def count() -> dict[str, int]:
        seen.append(len(results.read(tmp_path / "gpu.json")[0]["rows"]))
        return {"n": 1}

    code, entry = run(
        tmp_path,
        monkeypatch,
        contend("good"),
        Fact("later", count),
        Fact("lacking", failing(ModuleNotFoundError("no", name="nilearn.datasets"))),
        Fact("broken", failing(ValueError("bad value"))),
    )
    assert seen == [1]  # the first row was there before the second was measured
    assert [row["row"] for row in entry["rows"]] == ["good", "later"]
    assert entry["skipped"] == {"lacking": "package nilearn.datasets is missing"}
    assert entry["failed"] == {"broken": "ValueError: bad value"}
    assert code == 1
    printed = capsys.readouterr().out
    assert "skipped lacking: package nilearn.datasets is missing" in printed
    assert "FAILED broken: ValueError: bad value" in printed
    assert "Published by segment-anything-fast" in printed


def test_a_module_of_ours_that_is_missing_is_a_failure(tmp_path, monkeypatch) -> None:
    lost = ModuleNotFoundError("no", name="samadapt.sam.lost")
    code, entry = run(tmp_path, monkeypatch, Fact("row", failing(lost)))
    assert (code, list(entry["failed"])) == (1, ["row"])


def test_an_inexact_row_ends_with_an_error(tmp_path, monkeypatch, capsys) -> None:
    strict = contend("wrong")
    object.__setattr__(strict, "limit", lambda errors: 0.05)
    code, entry = run(tmp_path, monkeypatch, contend("right"), strict)
    assert code == 1
    assert [row["passed"] for row in entry["rows"]] == [True, False]
    assert "INEXACT wrong: error 1.0e-01, at most 5.0e-02" in capsys.readouterr().out
    assert run(tmp_path / "again", monkeypatch, contend("right"))[0] == 0


def test_no_row_starts_when_the_minutes_are_over(tmp_path, monkeypatch) -> None:
    code, entry = run(tmp_path, monkeypatch, contend("row"), more=("--minutes", "0"))
    assert (code, entry["rows"]) == (0, [])
    assert entry["skipped"] == {"row": "the 0 minutes are over"}
    assert not entry["whole"]


def test_runs_of_another_machine_are_added(tmp_path) -> None:
    theirs, ours = tmp_path / "theirs.json", tmp_path / "gpu.json"
    results.append(ours, {"number": 1})
    results.append(theirs, {"number": 2})
    assert suite.main(["--add", str(theirs), "--output", str(ours)]) == 0
    assert results.read(ours) == [{"number": 1}, {"number": 2}]


def test_a_machine_without_a_gpu_is_told_so(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stopped:
        suite.main([])
    assert stopped.value.code == 2
    assert "no CUDA GPU here; --device cpu --quick" in capsys.readouterr().err


def test_the_plan_has_rows_of_different_names_and_those_of_most_worth_first() -> None:
    for device in ("cuda", "cpu"):
        for quick in (False, True):
            names = [row.name for row in plan.rows(device, quick=quick)]
            assert len(set(names)) == len(names)
    names = [row.name for row in plan.rows("cuda")]
    assert names[0].startswith("attention ViT-B, global bf16")
    for build in ("vit_b", "vit_l", "vit_h"):
        for images in (1, 2, 4, 8, 16):
            assert f"{build} 1024 bf16, {images} at once" in names
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        assert any(f"global {precision}, forward and backward" in name for name in names)


def test_tf32_is_allowed_in_the_rows_that_ask_for_it() -> None:
    seen = []

    def build():
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        seen.append((products.allow_tf32, products.fp32_precision, convolutions.allow_tf32))
        return lambda: None

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision in ("tf32", "fp32"):
        Contest("row", {"samadapt": build}, "cpu", precision).measure(RUN)
    assert seen == [(True, "tf32", True), (False, "ieee", False)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_forms_of_attention_agree() -> None:
    shape = plan.QUICK_SHAPES["tiny, window"]
    found = attention_forms.row("cpu", "tiny", shape, 8, "fp32", backward=True).measure(RUN)
    assert len(found["contenders"]) == 4
    assert found["passed"]
    assert all(one["error"] < 1e-5 for one in found["contenders"].values())


@pytest.mark.slow
def test_flex_attention_agrees_forward() -> None:
    """It is compiled by a C++ compiler, and has no backward on a CPU."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    shape = plan.QUICK_SHAPES["tiny, global"]
    row = attention_forms.row("cpu", attention_forms.FLEX, shape, 8, "bf16", backward=False)
    found = row.measure(RUN)["contenders"]
    assert found["flex_attention"]["error"] < 1.5 * found[attention_forms.MASKED]["error"]


def test_the_kernels_of_attention_are_named() -> None:
    shapes = {"tiny": plan.QUICK_SHAPES["tiny, global"]}
    facts = attention_forms.kernels("cpu", shapes, 8).measure(RUN)["facts"]
    assert "flash" in facts["tiny fp32"]


class BackwardBegins(BaseException):
    """The forward pass of a step is done; fake tensors of CUDA have no backward without a GPU."""


class NoGenerator:
    """Stands for ``torch.Generator``; torch takes None for its own one."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def manual_seed(self, seed: int) -> None:
        del seed


def moved(model: torch.nn.Module, device: str | torch.device, **options) -> torch.nn.Module:
    """Do what ``Module.to`` does, which cannot move fake weights."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.device != torch.device(device):
                module._parameters[name] = torch.nn.Parameter(
                    weight.detach().to(device), requires_grad=weight.requires_grad
                )
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def builds_for_cuda() -> dict[str, Callable[[], Callable[[], object]]]:
    """Return what builds the call of every contender of the tiny rows on CUDA."""
    rows = [
        models.encoder_row("tiny", 64, "fp32", 2, "cuda"),
        models.decoder_row("tiny", 2, 3, "fp32", "cuda", backward=False),
        models.decoder_row("tiny", 2, 3, "fp32", "cuda", backward=True),
        models.step_row("tiny", 64, "fp32", 2, "cuda"),
        models.step_row("tiny", 64, "fp32", 1, "cuda", last=2),
        attention_forms.row("cuda", "x", (5, 16, 2), 8, "fp32", backward=False),
    ]
    return {
        f"{row.name}: {name}": build
        for row in rows
        for name, build in row.contenders.items()
        if name != "flex_attention"  # it is compiled for the device
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")  # autocast's
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda':UserWarning")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's call
def test_no_contender_leaves_an_operand_on_the_cpu(monkeypatch) -> None:
    """Fake tensors know their device: the rows run on CUDA, without values and without a GPU."""

    def stop(*given, **options) -> None:
        raise BackwardBegins

    monkeypatch.setattr(torch, "Generator", NoGenerator)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(torch.Tensor, "backward", stop)
    for name, build in builds_for_cuda().items():
        with FakeTensorMode(allow_non_fake_inputs=True):
            call = build()
            try:
                found = call()
            except BackwardBegins:
                assert "backward" in name or "step" in name
                continue
        values = found if isinstance(found, tuple) else (found,)
        assert {value.device.type for value in values} == {"cuda"}, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's call
def test_the_rows_of_models_run_on_tiny_ones(tmp_path) -> None:
    output = tmp_path / "gpu.json"
    assert suite.main(["--device", "cpu", "--quick", "--repeat", "2", "--output", str(output)]) == 0
    (entry,) = results.read(output)
    assert entry["whole"]
    assert not entry["skipped"] | entry["failed"]
    rows = {row["row"]: row for row in entry["rows"]}
    step = rows["LoRA step, tiny 64 fp32, all blocks, 2 at once"]["contenders"]
    assert list(step) == ["samadapt", "transformers with peft", "segment-anything"]
    assert all(one["error"] < 1e-5 for one in step.values())
    assert rows["samadapt finetune recipe=medical"]["facts"]["steps"] == 2
    masks = rows["automatic masks of a photograph, tiny, encoder included"]["facts"]
    assert masks["masks of samadapt"] == masks["masks of segment-anything"] > 0


HIDDEN = ("monai", "nibabel", "nilearn", "segment_anything", "pydantic", "hydra", "imagecodecs")
RUN_WITHOUT = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HIDDEN}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Hidden())
from benchmarks.gpu.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_it_runs_where_packages_are_missing(tmp_path) -> None:
    """Attention needs nothing but torch; every other row names what it lacks."""
    output = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--quick", "--repeat", "2", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT, *options], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    (entry,) = results.read(output)
    assert not entry["failed"]
    assert [row["row"] for row in entry["rows"] if not row["row"].startswith("attention")] == [
        "kernels of folded attention, forward and backward"
    ]
    assert len(entry["rows"]) > 4
    assert len(entry["skipped"]) > 4
    assert all(why.startswith("package ") for why in entry["skipped"].values())


def test_a_run_is_read_back(tmp_path) -> None:
    lines = [{"kind": "train", "seconds": s} for s in (0.5, 0.1, 0.2)] + [{"kind": "validate"}]
    files = {
        "eval/summary.json": json.dumps({"zero_shot": {"dice": 0.5}, "adapted": {"dice": 0.87654}}),
        "env.json": json.dumps({"precision": {"name": "bf16"}}),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
    }
    (tmp_path / "eval").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert whole_runs.read_run(tmp_path) == {
        "precision": "bf16",
        "steps": 3,
        "median step in ms": 200.0,
        "Dice before": 0.5,
        "Dice after": 0.8765,
    }


def test_wheels_have_the_pinned_versions() -> None:
    pins = wheels.read_pins("Nibabel==5.4.2\npydantic_core==2.50.4 ; x\n# a==1\ntorch==2.15\n")
    assert wheels.requirement("nibabel", pins) == "nibabel==5.4.2"
    assert wheels.requirement("pydantic-core", pins) == "pydantic-core==2.50.4"
    assert wheels.requirement("other", pins) == "other"
    pinned = wheels.read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert all(wheels.normal(name) in pinned for name in wheels.PACKAGES)


@pytest.mark.parametrize(("size", "lost", "code"), [(10, (), 0), (30, (), 1), (10, ("b",), 1)])
def test_wheels_that_are_missing_or_too_large_are_told(
    tmp_path, monkeypatch, capsys, size: int, lost: tuple[str, ...], code: int
) -> None:
    def fetch(wanted: str, python: str, folder: Path) -> bool:
        (folder / f"{wanted}-1-py3-none-any.whl").write_bytes(bytes(size * 100))
        return wanted not in lost

    monkeypatch.setattr(wheels, "fetch", fetch)
    monkeypatch.setattr(wheels, "PACKAGES", ("a", "b", "c"))
    monkeypatch.setattr(wheels, "LIMIT_MIB", 5000 / 2**20)
    monkeypatch.setattr(sys, "argv", ["wheels", "--folder", str(tmp_path), "--without", "c"])
    assert wheels.main() == code
    told = capsys.readouterr()
    assert ("leave some --without" in told.err) == (size == 30)
    assert ("not found as a wheel for Python 3.12: b" in told.err) == bool(lost)
    assert len(list(tmp_path.iterdir())) == 2
