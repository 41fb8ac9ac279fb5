"""Where a method's own layers go in the mask decoder, and that its short ways honour them."""

import pytest
import torch
from torch.nn import functional

from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import inject
from samadapt.errors import ConfigError
from samadapt.export.onnx import as_points
from samadapt.export.onnx_decoder import PromptAndMaskDecoder
from samadapt.methods import METHODS
from samadapt.sam.types import Prompts

OWN = {"blocks": "none", "decoder": "own"}


def _sizes(build):
    """Return the decoder's linears as (inputs, outputs) and the widths of its norms, by the paper.

    SAM, appendix A: the attentions with the image have half the inner width.
    """
    c, depth, masks = build.prompt_width, build.decoder_depth, build.num_multimask + 1
    cross = [(c, c // 2)] * 3 + [(c // 2, c)]
    layer = [(c, c)] * 4 + 2 * cross + [(c, build.decoder_mlp), (build.decoder_mlp, c)]
    heads = masks * [(c, c), (c, c), (c, c // 8)]
    heads += [(c, build.iou_width), (build.iou_width, build.iou_width), (build.iou_width, masks)]
    return depth * layer + cross + heads, (4 * depth + 1) * [c] + [c // 4]


def _bottlenecks(build, count, hidden):
    return count * (2 * build.prompt_width * hidden + hidden + build.prompt_width)


def _bias(build):
    linears, norms = _sizes(build)
    upscaling = build.prompt_width // 4 + build.prompt_width // 8
    return sum(o for _, o in linears) + sum(norms) + upscaling


def _ssf(build):
    linears, norms = _sizes(build)
    return 2 * (sum(o for _, o in linears) + sum(norms))


def _last_layer(build):
    linears, _ = _sizes(build)
    return sum(i * o + o for i, o in linears[:14]) + 8 * build.prompt_width


def _fact(build):
    """U and V of both shapes, and of 2 x 3 + 1 attentions the q and the v."""
    c, rank = build.prompt_width, 3
    return rank * (c + c) + rank * (c + c // 2) + 7 * 2 * rank**2


COUNTS = {
    "bias": ({}, _bias),
    "ssf": ({}, _ssf),
    "houlsby": ({"hidden": 5}, lambda build: _bottlenecks(build, 9, 5)),
    "adapter": ({"hidden": 5}, lambda build: _bottlenecks(build, 9, 5)),
    "adaptformer": ({"hidden": 5}, lambda build: _bottlenecks(build, 2, 5)),
    "late_blocks": ({}, _last_layer),
    "fact": ({"rank": 3}, _fact),
    "prompt_tokens": (
        {"tokens": 6},
        lambda build: 7 * (6 * build.prompt_width + build.decoder_heads),
    ),
    "houlsby+layernorm": (
        {"hidden": 5},
        lambda build: _bottlenecks(build, 9, 5) + 2 * sum(_sizes(build)[1]),
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_as_many_are_trained_as_the_decoders_sizes_say(name, tiny_sam):
    options, count = COUNTS[name]
    assert inject(tiny_sam, find_method(name)(**OWN, **options)).trainable == count(tiny_sam.build)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "none has no layers of its own"),
        ("full", "as decoder=full does"),
        ("conv_lora", "over a grid of cells"),
        ("bias+conv_lora", "conv_lora convolves over a grid"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(name, reason):
    with pytest.raises(ConfigError, match=rf"peft\.decoder=own: .*{reason}.*use full, lora or"):
        find_method(name)(decoder="own")


def test_every_method_takes_the_decoder_or_says_why_not():
    for name, cls in METHODS.items():
        assert cls.takes_decoder != bool(cls.not_in_decoder), name


def _attend(attn, tokens, image):
    """Attention by the book, without the short ways."""
    q, k, v = attn.q_proj(tokens), attn.k_proj(image), attn.v_proj(image)
    q, k, v = (x.unflatten(-1, (attn.num_heads, -1)).transpose(-3, -2) for x in (q, k, v))
    joined = functional.scaled_dot_product_attention(q, k, v)
    return attn.out_proj(joined.transpose(-3, -2).flatten(-2))


@pytest.mark.parametrize("name", ["ssf", "fact", "bias", "houlsby", "prompt_tokens"])
@torch.no_grad()
def test_the_short_ways_of_the_attention_honour_the_layers(name, tiny_sam, perturb):
    """Few tokens, one image for several objects: the case in which weights are multiplied first."""
    perturb(inject(tiny_sam, METHODS[name](**OWN)))
    width = tiny_sam.build.prompt_width
    attn = tiny_sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    tokens, image = torch.randn(1, 2, 3, width), torch.randn(1, 1, 20, width)
    expected = _attend(attn, tokens, image)
    if name == "houlsby":
        expected = expected + attn.bottleneck(expected)
    if name == "prompt_tokens":
        expected = expected + _gated(attn, tokens)
    found = attn(tokens, image, image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def _gated(attn, tokens):
    """tanh(gate) softmax(q K' / sqrt(d)) V' of each head, through the projection's weights."""
    heads, learned = attn.num_heads, attn.prompt.tokens
    q = attn.q_proj(tokens).unflatten(-1, (heads, -1)).transpose(-3, -2)
    k = attn.k_proj(learned).unflatten(-1, (heads, -1)).transpose(0, 1)
    v = attn.v_proj(learned).unflatten(-1, (heads, -1)).transpose(0, 1)
    shares = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    attended = attn.prompt.gate.tanh()[:, None, None] * (shares @ v)
    return functional.linear(attended.transpose(-3, -2).flatten(-2), attn.out_proj.weight)


@pytest.mark.parametrize("name", ["houlsby", "adaptformer", "ssf", "prompt_tokens"])
@torch.no_grad()
def test_objects_decoded_together_are_as_one_by_one(name, tiny_sam, perturb):
    plain = tiny_sam.mask_decoder.transformer.state_dict().keys()
    perturb(inject(tiny_sam, METHODS[name](**OWN)))
    assert tiny_sam.mask_decoder.transformer.state_dict().keys() != plain
    embeddings = tiny_sam.encode(torch.randn(1, 3, 64, 64))
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0], [20.0, 12.0, 60.0, 44.0], [1.0, 2.0, 9.0, 9.0]]])
    together = tiny_sam.decode(embeddings, Prompts(boxes=boxes), multimask=True)
    for i in range(3):
        one = tiny_sam.decode(embeddings, Prompts(boxes=boxes[:, i : i + 1]), multimask=True)
        torch.testing.assert_close(together.logits[:, i], one.logits[:, 0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.iou[:, i], one.iou[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["houlsby", "adaptformer", "prompt_tokens"])
@torch.no_grad()
def test_the_decoder_that_is_exported_honours_the_layers(name, tiny_sam, perturb):
    """It calls the projections itself, so what hangs on an attention could be passed over."""
    perturb(inject(tiny_sam, METHODS[name](**OWN)))
    embeddings = tiny_sam.encode(torch.randn(1, 3, 64, 64))
    prompts = Prompts(boxes=torch.tensor([[[4.0, 6.0, 40.0, 50.0], [20.0, 12.0, 60.0, 44.0]]]))
    inputs = (*as_points(prompts, 0), torch.zeros(1, 1, 32, 32), torch.zeros(1), torch.ones(2) * 64)
    _, iou, low = PromptAndMaskDecoder(tiny_sam)(embeddings, *inputs)
    for multimask, some in ((False, slice(0, 1)), (True, slice(1, None))):
        expected = tiny_sam.decode(embeddings, prompts, multimask=multimask)
        torch.testing.assert_close(low[:, some], expected.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(iou[:, some], expected.iou[0], atol=1e-5, rtol=1e-4)


def test_the_adapter_across_slices_stays_in_the_encoder(tiny_sam):
    inject(tiny_sam, METHODS["adapter"](depth=2, decoder="own"))
    hosts = [name for name, module in tiny_sam.named_modules() if "depth" in module._modules]
    assert len(hosts) == 4
    assert all(name.startswith("image_encoder.") for name in hosts)


@pytest.mark.parametrize("decoder", ["own", "frozen"])
@pytest.mark.parametrize("name", ["houlsby+ssf", "ssf+houlsby"])
def test_scales_are_put_behind_the_bases_layers_alone(name, decoder, tiny_sam):
    injection = inject(tiny_sam, find_method(name)(hidden=2, blocks="last:1", decoder=decoder))
    assert not [name for name in injection.parameters if "bottleneck" in name and "ssf" in name]
