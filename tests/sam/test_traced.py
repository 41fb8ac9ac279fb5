"""Graphs of the model (``torch.compile``, ``torch.export``) and tensors that hold no numbers.

The compiled attention is one operator in all of them but exported programs and ``torch.func``,
which it leaves to PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from samadapt.adapters.injection import inject
from samadapt.methods.lora import LoRA
from samadapt.sam.attention.compiled import attend_compiled, attend_compiled_biased, is_supported
from samadapt.sam.attention.kernels import find_kernels
from samadapt.sam.model import Sam
from samadapt.sam.tracing import is_traced
from samadapt.sam.types import MaskOutput, Prompts

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning"),
    pytest.mark.usefixtures("unchecked_shapes"),  # a graph cannot hold the checks
]


WEIGHTS = {
    "tiny": ("image_encoder.neck.0.weight", "image_encoder.blocks.1.attn.qkv.weight"),
    "tiny_t": ("image_encoder.neck.0.weight", "image_encoder.stages.2.blocks.0.attn.qkv.weight"),
    "tiny_h": (
        "image_encoder.neck.convs.1.conv.weight",
        "image_encoder.trunk.blocks.1.attn.qkv.weight",
    ),
    "tiny_r": (
        "image_encoder.neck.convs.1.conv_1x1.weight",
        "image_encoder.trunk.blocks.1.attn.qkv.weight",
    ),
}
"""A weight of the neck and one of the attention."""


class Encoder(nn.Module):
    """From preprocessed images to embeddings."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, images: Tensor) -> Tensor:
        return self.sam.encode(images)


class Decoder(nn.Module):
    """From embeddings, boxes and points to masks."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self, embeddings: Tensor, boxes: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        prompts = Prompts(points=points, point_labels=labels, boxes=boxes)
        output = self.sam.decode(embeddings, prompts, multimask=True)
        return output.logits, output.iou


@pytest.fixture
def sam(any_sam: Sam) -> Sam:
    return any_sam.requires_grad_(False)


@pytest.fixture(autouse=True)
def nothing_is_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def prompts() -> tuple[Tensor, Tensor, Tensor]:
    boxes = torch.tensor([[[4.0, 6, 30, 40], [20, 22, 60, 50]]]).expand(2, -1, -1)
    return boxes, 64 * draw(2, 2, 3, 2).sigmoid(), torch.ones(2, 2, 3)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def compare(compile: Callable[..., Any], sam: Sam) -> None:
    """Compare a compiled model with the same model as it is."""
    images, (boxes, points, labels) = draw(2, 3, 64, 64), prompts()
    given = Prompts(points=points, point_labels=labels, boxes=boxes)
    expected = sam(images, given, multimask=True)
    found = compile(sam)(images, given, multimask=True)
    assert isinstance(found, MaskOutput)
    assert_same(found.logits, expected.logits)
    assert_same(found.iou, expected.iou)


@pytest.mark.slow
def test_the_whole_model_is_one_graph(sam: Sam) -> None:
    compare(lambda model: torch.compile(model, fullgraph=True, backend="aot_eager"), sam)


@pytest.mark.slow
def test_the_whole_model_is_one_compiled_graph(tiny_sam: Sam) -> None:
    """inductor needs a C++ compiler and about a minute on the CPU."""
    compare(lambda model: torch.compile(model, fullgraph=True), tiny_sam.requires_grad_(False))


@pytest.mark.slow
def test_a_compiled_encoder_trains(sam: Sam) -> None:
    images = draw(2, 3, 64, 64)
    weights = [sam.get_parameter(name).requires_grad_() for name in WEIGHTS[sam.build.name]]
    expected = torch.autograd.grad(sam.encode(images).square().sum(), weights)
    encode = torch.compile(Encoder(sam), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(encode(images).square().sum(), weights)
    for grad, right in zip(found, expected, strict=True):
        assert_same(grad, right)


@pytest.mark.slow
def test_an_encoder_with_lora_is_one_graph_with_our_attention(sam: Sam) -> None:
    injection = inject(sam, LoRA())
    with torch.no_grad():
        for number, parameter in enumerate(injection.parameters.values()):
            parameter.add_(0.1 * draw(*parameter.shape) + 0.01 * number)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    images = draw(2, 3, 64, 64)
    expected = sam.encode(images)
    found = torch.compile(Encoder(sam), fullgraph=True, backend=keep)(images)
    assert_same(found.detach(), expected.detach())
    (graph,) = graphs
    steps = graph.code.count("torch.ops.samadapt.attend_")
    # The attention of Hiera and of SAM 3 is PyTorch's own.
    is_own = sam.build.encoder in ("vit", "tiny_vit") and find_kernels() is not None
    assert steps == (len(sam.attention_blocks()) if is_own else 0)
    leaves = [p for name, p in injection.parameters.items() if name.startswith("image_encoder")]
    right = torch.autograd.grad(expected.square().sum(), leaves)
    encode = torch.compile(Encoder(sam), fullgraph=True, backend="aot_eager")
    gradients = torch.autograd.grad(encode(images).square().sum(), leaves)
    for grad, other in zip(gradients, right, strict=True):
        assert_same(grad, other)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_encoder_and_decoder_are_exported(sam: Sam, strict: bool) -> None:
    images = draw(2, 3, 64, 64)
    encoder = torch.export.export(Encoder(sam), (images,), strict=strict).module()
    embeddings = sam.encode(images)
    assert_same(encoder(images), embeddings)
    given = (embeddings, *prompts())
    decoder = torch.export.export(Decoder(sam), given, strict=strict).module()
    expected = Decoder(sam)(*given)
    for found, right in zip(decoder(*given), expected, strict=True):
        assert_same(found, right)


@pytest.mark.slow
def test_the_parts_themselves_are_exported(sam: Sam) -> None:
    """No wrapper is needed: the model takes ``Prompts`` and returns a ``MaskOutput``."""
    images = draw(1, 3, 64, 64)
    encoder = torch.export.export(sam.image_encoder, (images,)).module()
    assert_same(sam.mask_decoder.embed_maps(encoder(images)), sam.encode(images))
    boxes = Prompts(boxes=torch.tensor([[[4.0, 6, 30, 40]]]))
    program = torch.export.export(sam, (images, boxes), {"multimask": False})
    expected = sam(images, boxes, multimask=False)
    found = program.module()(images, boxes, multimask=False)
    assert_same(found.logits, expected.logits)
    sparse, dense = sam.prompt_encoder(boxes, 1)
    given = (sam.encode(images), sam.prompt_encoder.dense_position(), sparse, dense)
    decoder = torch.export.export(sam.mask_decoder, given, {"multimask": False}).module()
    assert_same(decoder(*given, multimask=False).logits, expected.logits)


@pytest.mark.slow
def test_the_batch_may_be_dynamic(sam: Sam) -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(
        Encoder(sam), (draw(2, 3, 64, 64),), dynamic_shapes={"images": {0: batch}}
    )
    images = draw(5, 3, 64, 64)
    assert_same(program.module()(images), sam.encode(images))


def test_fake_tensors_give_fake_tensors(sam: Sam) -> None:
    """Reading their memory would end the process."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images = mode.from_tensor(draw(2, 3, 64, 64))
        given = Prompts(boxes=mode.from_tensor(torch.ones(2, 1, 4)))
        output = sam(images, given, multimask=True)
    side = 4 * sam.embedding_size
    assert output.logits.shape == (2, 1, 3, side, side)


@pytest.mark.parametrize(
    "tracing", [*(pytest.param(t, marks=pytest.mark.slow) for t in ("real", "fake")), "symbolic"]
)
def test_make_fx_sees_every_operator(sam: Sam, tracing: str) -> None:
    images, others = draw(2, 3, 64, 64), draw(2, 3, 64, 64) + 1
    mode: Any = tracing
    graph = make_fx(lambda x: sam.encode(x), tracing_mode=mode, _allow_non_fake_inputs=True)(images)
    assert_same(graph(others), sam.encode(others))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_transforms_of_torch_func(sam: Sam) -> None:
    images = draw(3, 3, 64, 64)
    mapped = torch.func.vmap(lambda image: sam.encode(image[None])[0])(images)
    assert_same(mapped, sam.encode(images))

    def energy(image: Tensor) -> Tensor:
        return sam.encode(image).square().sum()

    leaf = images.clone().requires_grad_()
    expected = torch.autograd.grad(energy(leaf), leaf)[0]
    assert_same(torch.func.grad(energy)(images), expected)


def test_a_counter_of_operations_sees_the_attention(sam: Sam) -> None:
    with FlopCounterMode(display=False) as counter:
        sam.encode(draw(1, 3, 64, 64))
    kinds = [str(kind) for kind in counter.get_flop_counts()["Global"]]
    assert any("attention" in kind or "samadapt.attend" in kind for kind in kinds)


class Marked(Tensor):
    """A subclass of ``Tensor``, as a user may define it."""


def no_numbers() -> dict[str, Callable[[Tensor], Tensor]]:
    mode = FakeTensorMode()
    return {
        "fake": mode.from_tensor,
        "meta": lambda x: x.to("meta"),
        "subclass": lambda x: x.as_subclass(Marked),
        "sparse": lambda x: x.to_sparse(),
        "negated": lambda x: torch.complex(x, x).conj().imag,
        "functional": torch._to_functional_tensor,
    }


@pytest.mark.parametrize("kind", sorted(no_numbers()))
def test_what_is_not_plain_is_refused(kind: str) -> None:
    plain = draw(1, 2, 2, 3, 1, 4)
    assert not is_traced(plain)
    odd = no_numbers()[kind](plain)
    assert kind == "meta" or is_traced(odd)
    if kind == "fake":  # the operator has shapes for it
        return
    assert not is_supported(odd)
    tables = draw(2, 2, 4), draw(2, 2, 4)
    with pytest.raises(ValueError, match=r"must be a plain tensor|on the CPU|is by PyTorch"):
        attend_compiled(odd, None, *tables)


def test_every_operand_must_be_plain() -> None:
    plain, tables = draw(1, 2, 2, 3, 1, 4), (draw(2, 2, 4), draw(2, 2, 4))
    if not is_supported(plain):
        pytest.skip("attention is not compiled here")
    odd = no_numbers()["subclass"]
    with pytest.raises(ValueError, match="rows must be a plain tensor"):
        attend_compiled(plain, None, odd(tables[0]), tables[1])
    with pytest.raises(ValueError, match="fill must be a plain tensor"):
        attend_compiled(plain, odd(draw(3, 1, 4)), *tables)
    with pytest.raises(ValueError, match="biases must be a plain tensor"):
        attend_compiled_biased(draw(1, 2, 2, 1, 3, 4), None, odd(draw(1, 4, 4)))


def test_dual_numbers_and_maps_are_refused() -> None:
    plain, seen = draw(1, 2, 2, 3, 1, 4), []
    torch.func.vmap(lambda x: seen.append(is_supported(x)) or x)(plain[None])
    torch.func.grad(lambda x: seen.append(is_supported(x)) or x.sum())(plain)
    with forward_ad.dual_level():
        seen.append(is_supported(forward_ad.make_dual(plain, plain)))
    assert seen == [False] * 3
