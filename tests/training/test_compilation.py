"""``compile=true``: what is compiled, that it computes the same, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from samadapt.adapters.injection import Injection, inject
from samadapt.cli import main
from samadapt.errors import ConfigError
from samadapt.inference.segmenter import load_adapter
from samadapt.methods import METHODS
from samadapt.sam.model import Sam
from samadapt.sam.types import Prompts
from samadapt.training.compilation import check_compile, compile_parts
from samadapt.training.recompute import recomputed

# torch's own code calls what it has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*"),
    # Dynamo asks every input for its gradient.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.usefixtures("unchecked_shapes"),  # a graph cannot hold the checks
]

IN_PARTS = {"conv_lora", "frod", "waveft"}
"""Methods whose layers decide by values: torch compiles what lies between."""


@pytest.fixture(autouse=True)
def nothing_is_compiled_before() -> Iterator[None]:
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record graphs and their gradients, but run PyTorch's operators: no C++ is compiled."""
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", partialmethod(compile, backend="aot_eager"))


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(sam: Sam, method: str) -> Injection:
    """Inject a method and move its parameters, so that each of them matters."""
    injection = inject(sam, METHODS[method]())
    with torch.no_grad():
        for number, parameter in enumerate(injection.parameters.values()):
            parameter.add_(0.05 * draw(*parameter.shape, seed=number))
    return injection


def learned(sam: Sam, injection: Injection) -> tuple[Tensor, dict[str, Tensor]]:
    """Return masks of two boxes in each of two images, and the gradients of what is trained."""
    sam.zero_grad()
    boxes = torch.tensor([[[4.0, 6, 30, 40], [20, 22, 60, 50]]]).expand(2, -1, -1)
    out = sam(draw(2, 3, 64, 64), Prompts(boxes=boxes), multimask=True)
    (out.logits.square().mean() + out.iou.sum()).backward()
    grads = {name: p.grad for name, p in injection.parameters.items() if p.grad is not None}
    return out.logits.detach(), grads


def assert_close(found: Tensor, expected: Tensor, slack: float = 1e-7) -> None:
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max()) + slack


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of FRoD's sparse matrices
@pytest.mark.filterwarnings("ignore:Dynamo d")  # "does not know", "detected": what it leaves out
@pytest.mark.parametrize("method", [*sorted(set(METHODS) - {"miss", "none", "shira"})])
def test_every_method_learns_the_same(tiny_sam: Sam, quick_backend: None, method: str) -> None:
    injection = moved(tiny_sam, method)
    logits, expected = learned(tiny_sam, injection)
    torch._dynamo.utils.counters.clear()
    compile_parts(tiny_sam)
    found, grads = learned(tiny_sam, injection)
    assert_close(found, logits)
    assert grads.keys() == expected.keys()
    largest = max((float(grad.abs().max()) for grad in expected.values()), default=0.0)
    for name, grad in grads.items():
        assert_close(grad, expected[name], slack=1e-5 * largest)  # some are nothing but rounding
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    assert (breaks > 0) == (method in IN_PARTS)


@pytest.mark.slow
def test_tiny_vit_learns_the_same(tiny_t_sam: Sam, quick_backend: None) -> None:
    injection = moved(tiny_t_sam, "lora")
    logits, expected = learned(tiny_t_sam, injection)
    torch._dynamo.utils.counters.clear()
    parts = compile_parts(tiny_t_sam)
    assert len(parts) == len(tiny_t_sam.attention_blocks()) + 2
    found, grads = learned(tiny_t_sam, injection)
    assert_close(found, logits)
    for name, grad in grads.items():
        assert_close(grad, expected[name])
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_hiera_learns_the_same_with_code_for_each_shape(
    tiny_h_sam: Sam, quick_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    injection = moved(tiny_h_sam, "lora")
    logits, expected = learned(tiny_h_sam, injection)
    compiled, compile = {}, nn.Module.compile

    def watched(part: nn.Module, **options: Any) -> None:
        compiled[part] = options
        compile(part, **options)

    monkeypatch.setattr(nn.Module, "compile", watched)
    compile_parts(tiny_h_sam)
    blocks = {tiny_h_sam.get_submodule(one.block) for one in tiny_h_sam.attention_blocks()}
    assert all(
        (options["dynamic"] is False) == (part in blocks) for part, options in compiled.items()
    )
    assert len(compiled) == len(blocks) + 2
    found, grads = learned(tiny_h_sam, injection)
    assert_close(found, logits)
    for name, grad in grads.items():
        assert_close(grad, expected[name])


@pytest.mark.slow
def test_blocks_are_recomputed_too(tiny_sam: Sam, quick_backend: None) -> None:
    injection = moved(tiny_sam, "lora")
    logits, expected = learned(tiny_sam, injection)
    compile_parts(tiny_sam)
    with recomputed(tiny_sam, 0):
        found, grads = learned(tiny_sam, injection)
    assert_close(found, logits)
    for name, grad in grads.items():
        assert_close(grad, expected[name])


def test_names_and_copies_stay_as_they_are(tiny_sam: Sam) -> None:
    from copy import deepcopy

    names = list(tiny_sam.state_dict())
    compile_parts(tiny_sam)
    assert list(tiny_sam.state_dict()) == names
    assert tiny_sam.image_encoder.blocks[0]._compiled_call_impl is not None
    assert deepcopy(tiny_sam).image_encoder.blocks[0]._compiled_call_impl is None


@pytest.mark.slow
def test_a_machine_without_a_compiler_gets_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"compile=true: torch.compile does not work on cpu") as e:
        check_compile(torch.device("cpu"))
    assert "\n" not in str(e.value)
    assert "compile=false" in str(e.value)


def test_a_baseline_is_refused(recipe: Path, make_pictures, monkeypatch, capsys) -> None:
    monkeypatch.setattr("samadapt.runs.context.check_compile", lambda device: None)
    asked = [f"recipe={recipe}", f"data.root={make_pictures()}", "prompts=semantic"]
    assert main(["finetune", *asked, "baseline=unet", "compile=true"]) == 2
    assert "compile=true: this model has no parts that are compiled" in capsys.readouterr().err


def losses_of(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]


def weights_of(adapter: Path) -> dict[str, Any]:
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_a_run_ends_as_without_it(
    run: Callable[..., Any], make_pictures, quick_backend: None, monkeypatch, prompts: str
) -> None:
    """With features in memory and on the disk, which do not mix with those of another run."""
    monkeypatch.setattr("samadapt.runs.context.check_compile", lambda device: None)
    root, options = make_pictures(), [f"prompts={prompts}", "precision=fp32"]
    eager = run(root, *options)
    compiled = run(root, *options, "compile=true")
    np.testing.assert_allclose(losses_of(compiled.run_dir), losses_of(eager.run_dir), rtol=1e-3)
    one, two = weights_of(compiled.adapter_dir), weights_of(eager.adapter_dir)
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 2e-3
    log = (compiled.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "parts of the model, each when it first runs" in log
    image = np.full((40, 50), 100, np.uint8)
    image[10:30, 10:30] = 220
    boxes = {} if prompts == "semantic" else {"boxes": [[8, 8, 32, 32]]}
    monkeypatch.setattr("samadapt.inference.segmenter.check_compile", lambda device: None)
    found = load_adapter(eager.adapter_dir, device="cpu", compile=True).segment(image, **boxes)
    expected = load_adapter(eager.adapter_dir, device="cpu").segment(image, **boxes)
    assert float((found != expected).mean()) < 1e-3
