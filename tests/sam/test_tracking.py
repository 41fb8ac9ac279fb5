"""The memory of SAM 2, compared with transformers' ``Sam2VideoModel`` on random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samadapt.export.hf_sam2 import sam2_configuration
from samadapt.sam.model import Sam, build_sam
from samadapt.sam.tracking import TrackedObjects, Tracker
from samadapt.sam.types import Prompts
from samadapt.sam.video_memory import MemoryBank, VideoMemory, memory_tensors
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.sam2_names import to_hugging_face

Randomise = Callable[[nn.Module, int], nn.Module]
FRAMES = 5


def give_memory(sam: Sam, randomise: Randomise, seed: int = 11) -> None:
    """Fill ``sam.memory`` with random tensors, as a file that has them does."""
    memory = VideoMemory(sam.build)
    randomise(memory, seed)
    shapes = {name: value.shape for name, value in memory_tensors(sam.build).items()}
    sam.memory = {name: torch.zeros(shape) for name, shape in shapes.items()} | memory.state_dict()


def theirs_of(sam: Sam) -> Any:
    """transformers' model with the same weights."""
    import transformers

    parts = sam2_configuration(sam)
    newer, width = sam.build.version == "2.1", sam.build.prompt_width
    video = transformers.Sam2VideoModel(
        transformers.Sam2VideoConfig(
            image_size=sam.image_size,
            vision_config=parts.vision_config,
            prompt_encoder_config=parts.prompt_encoder_config,
            mask_decoder_config=parts.mask_decoder_config,
            enable_temporal_pos_encoding_for_object_pointers=newer,
            enable_occlusion_spatial_embedding=newer,
            memory_attention_hidden_size=width,
            memory_attention_feed_forward_hidden_size=sam.build.decoder_mlp,
            memory_attention_rope_feat_sizes=[sam.embedding_size] * 2,
            memory_encoder_hidden_size=width,
            mask_downsampler_embed_dim=width,
            memory_fuser_embed_dim=width,
            memory_fuser_intermediate_dim=4 * width,
        )
    )
    tensors = to_hugging_face(sam.state_dict() | sam.memory, video.state_dict())
    video.load_state_dict(tensors)
    return video.eval()


def session_of(video: Any, frames: Tensor, prompts: Mapping[int, Tensor]) -> Any:
    """A session of transformers in which objects are prompted with boxes (p, 4), by frame."""
    from transformers import Sam2VideoInferenceSession

    side = frames.shape[-1]
    session = Sam2VideoInferenceSession(
        video=frames, video_height=side, video_width=side, dtype=torch.float32
    )
    for index, boxes in prompts.items():
        for number, box in enumerate(boxes):
            place = session.obj_id_to_idx(number)
            points = {
                "point_coords": box.view(1, 1, 2, 2),
                "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32),
            }
            session.add_point_inputs(place, index, points)
            session.obj_with_new_inputs.append(number)
        video(inference_session=session, frame_idx=index)
    return session


def walked(
    sam: Sam, frames: Tensor, prompts: Mapping[int, Tensor], way: range
) -> Iterator[tuple[int, TrackedObjects]]:
    """Prompted frames, then the frames of ``way``."""
    tracker = Tracker(sam, len(frames))
    embeddings = sam.encode(frames)
    seeds = {}
    for index, boxes in prompts.items():
        copies = embeddings[index].expand(len(boxes), -1, -1, -1)
        found = tracker.prompted(copies, Prompts(boxes=boxes[:, None]), multimask=False)
        seeds[index] = found.memory
        yield index, found
    bank = MemoryBank(seeds)
    for index in way:
        copies = embeddings[index].expand(len(boxes), -1, -1, -1)
        yield index, tracker.tracked(copies, bank, index, way.step)


def check_walk(sam: Sam, video: Any, prompts: Mapping[int, Tensor], way: range) -> None:
    """Compare masks, scores, maps and pointers of both models on one walk."""
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(FRAMES, 3, sam.image_size, sam.image_size, generator=generator)
    session = session_of(video, frames, prompts)
    for index in way:
        video(inference_session=session, frame_idx=index, reverse=way.step < 0)
    for index, found in walked(sam, frames, prompts, way):
        kind = "cond_frame_outputs" if index in prompts else "non_cond_frame_outputs"
        for number in range(len(found.logits)):
            theirs = session.output_dict_per_obj[number][kind][index]
            score = found.masks.object_score
            assert score is not None
            pairs = {
                "masks": (found.logits[number, 0], theirs["pred_masks"][0, 0]),
                "score": (score[number, 0], theirs["object_score_logits"][0, 0]),
                "maps": (found.memory.maps[number], theirs["maskmem_features"][:, 0]),
                "pointers": (found.memory.pointers[number], theirs["object_pointer"][0, 0]),
            }
            for name, (mine, other) in pairs.items():
                assert mine.shape == other.shape
                apart = float((mine - other).abs().max())
                assert apart <= 1e-4 * max(1.0, float(other.abs().max())), (index, name, apart)


def boxes_of(side: int, count: int) -> Tensor:
    return side * torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.1, 0.9, 0.8]])[:count]


WALKS = {
    "first": ((0,), range(1, FRAMES)),
    "middle, upwards": ((2,), range(3, FRAMES)),
    "middle, downwards": ((2,), range(1, -1, -1)),
    "first and middle": ((0, 2), range(3, FRAMES)),
    "last, downwards": ((4,), range(3, -1, -1)),
}


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both keep maps in float32. In bfloat16 a value near the middle may fall on either side."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)


@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize(
    ("walk", "version"),
    [
        ("middle, downwards", "2.1"),
        *(
            pytest.param(walk, version, marks=pytest.mark.slow)
            for walk in WALKS
            for version in ("2.1", "2.0")
            if (walk, version) != ("middle, downwards", "2.1")
        ),
    ],
)
@torch.no_grad()
def test_equals_transformers(randomise: Randomise, walk: str, version: str) -> None:
    # transformers fails where a pointer has as few channels as a map, as in tiny_h.
    sam = build_sam(replace(BUILDS["tiny_h"], version=version, prompt_width=128))
    randomise(sam, 7)
    sam.eval()
    give_memory(sam, randomise)
    prompted, way = WALKS[walk]
    check_walk(sam, theirs_of(sam), {index: boxes_of(64, 2) for index in prompted}, way)


@pytest.mark.slow
@pytest.mark.usefixtures("unrounded")
@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("name", ["sam2_t", "sam2.0_t"])
@torch.no_grad()
def test_a_real_size_equals_transformers(randomise: Randomise, name: str, side: int) -> None:
    sam = build_sam(name, image_size=side)
    randomise(sam, 7)
    sam.eval()
    give_memory(sam, randomise)
    video = theirs_of(sam)
    for walk, (prompted, way) in WALKS.items():
        count = 2 if walk == "first" else 1
        check_walk(sam, video, {index: boxes_of(side, count) for index in prompted}, way)


@torch.no_grad()
def test_maps_are_rounded_and_prompted_masks_binary_as_in_sam2(randomise: Randomise) -> None:
    """In training neither happens, so that the gradient of a memory reaches the mask."""
    sam = build_sam(replace(BUILDS["tiny_h"], prompt_width=128))
    randomise(sam, 7)
    sam.eval()
    give_memory(sam, randomise)
    embeddings = sam.encode(torch.randn(1, 3, 64, 64))
    prompts = Prompts(boxes=boxes_of(64, 1)[None])
    found = Tracker(sam, 5).prompted(embeddings, prompts, multimask=False)
    assert found.memory.maps.dtype == torch.bfloat16
    with torch.enable_grad():
        leaf = embeddings.clone().requires_grad_()
        tracker = Tracker(sam, 5, training=True)
        trained = tracker.prompted(leaf, prompts, multimask=False)
        assert trained.memory.maps.dtype == torch.float32
        assert not torch.allclose(trained.memory.maps, found.memory.maps.float(), atol=0.05)
        bank = MemoryBank({0: trained.memory})
        other = tracker.tracked(embeddings, bank, 1, 1)
        other.masks.logits.sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in tracker.memory.parameters())
