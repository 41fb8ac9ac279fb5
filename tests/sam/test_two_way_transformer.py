"""The fast decoder against its textbook form, and the ways its attention takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from samadapt.sam import mask_decoder_fast, two_way_transformer_fast
from samadapt.sam.mask_decoder import MaskDecoder
from samadapt.sam.model import Sam
from samadapt.sam.two_way_transformer import Attention, TwoWayTransformer
from samadapt.sam.two_way_transformer_fast import (
    FastTwoWayTransformer,
    ImageToTokenAttention,
    TokenToImageAttention,
    only_applies_weights,
)
from samadapt.sam.types import Prompts


@pytest.fixture
def sam(tiny_sam: Sam) -> Sam:
    return tiny_sam.double()


def prompts_of(sam: Sam, b: int, p: int, points: int, *, masks: bool) -> Prompts:
    generator = torch.Generator().manual_seed(8)
    side = 4 * sam.embedding_size
    return Prompts(
        points=torch.rand(b, p, points, 2, generator=generator).double() * sam.image_size,
        point_labels=torch.ones(b, p, points, dtype=torch.int),
        masks=torch.randn(b, p, 1, side, side, generator=generator).double() if masks else None,
    )


def decoded(sam: Sam, prompts: Prompts) -> tuple[list[Tensor], list[Tensor]]:
    """Logits, IoU and the embeddings' gradient; and the gradients of the parameters."""
    generator = torch.Generator().manual_seed(9)
    g = sam.embedding_size
    embeddings = torch.randn(2, 64, g, g, generator=generator).double().requires_grad_()
    sam.zero_grad()
    output = sam.decode(embeddings, prompts, multimask=True)
    (output.logits.square().mean() + output.iou.sum()).backward()
    assert embeddings.grad is not None
    grads = [p.grad for p in sam.mask_decoder.parameters() if p.grad is not None]
    return [output.logits, output.iou, embeddings.grad], grads


CASES = pytest.mark.parametrize(
    ("p", "points", "masks"),
    [(1, 1, False), (3, 1, False), (2, 1, True), (2, 20, False), (2, 20, True)],
)


@CASES
def test_equals_the_textbook(sam: Sam, p: int, points: int, masks: bool) -> None:
    prompts, build = prompts_of(sam, 2, p, points, masks=masks), sam.build
    before, grads = decoded(sam, prompts)
    textbook = MaskDecoder(
        build.prompt_width,
        depth=build.decoder_depth,
        heads=build.decoder_heads,
        mlp=build.decoder_mlp,
        iou_width=build.iou_width,
        num_multimask=build.num_multimask,
    )
    textbook.double().load_state_dict(sam.mask_decoder.state_dict())
    assert type(textbook.transformer) is TwoWayTransformer
    assert type(sam.mask_decoder.transformer) is FastTwoWayTransformer
    sam.mask_decoder = textbook
    after, others = decoded(sam, prompts)
    assert len(grads) == len(others) > 0
    for one, other in zip(before + grads, after + others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@CASES
def test_both_ways_are_equal(sam: Sam, p: int, points: int, masks: bool) -> None:
    prompts = prompts_of(sam, 2, p, points, masks=masks)
    before, grads = decoded(sam, prompts)
    called = []
    for module in sam.mask_decoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, given, out: called.append(module))
    after, others = decoded(sam, prompts)
    attentions = [m for m in sam.mask_decoder.modules() if isinstance(m, Attention)]
    linears = {m for a in attentions for m in (a.q_proj, a.k_proj, a.v_proj, a.out_proj)}
    assert linears <= set(called)
    for one, other in zip(before + grads, after + others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@CASES
def test_the_result_does_not_depend_on_the_size_of_the_parts(
    sam: Sam, monkeypatch: pytest.MonkeyPatch, p: int, points: int, masks: bool
) -> None:
    prompts = prompts_of(sam, 2, p, points, masks=masks)
    before, grads = decoded(sam, prompts)
    monkeypatch.setattr(mask_decoder_fast, "CACHE_BYTES", 1)
    after, others = decoded(sam, prompts)
    for one, other in zip(before + grads, after + others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "out_proj"])
@pytest.mark.parametrize("kind", [TokenToImageAttention, ImageToTokenAttention])
def test_layers_that_replace_a_linear_are_called(
    sam: Sam, kind: type[Attention], name: str
) -> None:
    """A layer that replaces a linear, as LoRA does, is called."""

    class Turned(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    prompts = prompts_of(sam, 2, 2, 1, masks=True)
    before, _ = decoded(sam, prompts)
    for attention in sam.mask_decoder.modules():
        if isinstance(attention, kind):
            plain = attention.get_submodule(name)
            turned = Turned(plain.in_features, plain.out_features, dtype=torch.float64)
            turned.load_state_dict(plain.state_dict())
            assert only_applies_weights(plain)
            assert not only_applies_weights(turned)
            setattr(attention, name, turned)
    with_layers, _ = decoded(sam, prompts)
    assert not torch.allclose(before[0], with_layers[0])
    for attention in sam.mask_decoder.modules():
        if isinstance(attention, kind):
            turned = attention.get_submodule(name)
            plain = nn.Linear(turned.in_features, turned.out_features, dtype=torch.float64)
            plain.load_state_dict({k: -v for k, v in turned.state_dict().items()})
            setattr(attention, name, plain)
    as_weights, _ = decoded(sam, prompts)
    torch.testing.assert_close(with_layers, as_weights, atol=1e-12, rtol=1e-9)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings("ignore")  # torch deprecates tracing, which ONNX files come from
def test_a_traced_graph_holds_for_any_number_of_prompts(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = sam.mask_decoder

        def forward(self, *given: Tensor) -> Tensor:
            logits: Tensor = self.decoder(*given, multimask=True).logits
            return logits

    monkeypatch.setattr(mask_decoder_fast, "CACHE_BYTES", 1)
    for module in (mask_decoder_fast, two_way_transformer_fast):
        monkeypatch.setattr(module, "is_traced", lambda x: True)
    g = sam.embedding_size
    embeddings = torch.randn(1, 64, g, g, dtype=torch.float64)
    few, many = (
        (
            embeddings,
            sam.prompt_encoder.dense_position(),
            *sam.prompt_encoder(prompts_of(sam, 1, p, points, masks=False), 1),
        )
        for p, points in ((2, 1), (5, 17))
    )
    with torch.no_grad():
        traced = torch.jit.trace(Decode(), few, check_trace=False)
        torch.testing.assert_close(traced(*many), Decode()(*many))
