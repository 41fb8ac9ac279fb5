"""Mask tokens follow the names of their classes."""

from __future__ import annotations

import copy

import pytest
import torch

from samadapt.adapters.mask_tokens import TokenUse, place_tokens, token_sources, unmoved


def semantic(*classes: str, count: int = 3) -> TokenUse:
    return TokenUse(classes, is_semantic=True, count=max(count, len(classes)))


BOX = TokenUse((), is_semantic=False, count=3)


@pytest.mark.parametrize(
    ("before", "now", "sources"),
    [
        (semantic("a", "b"), semantic("a", "b"), [0, 1, 2, 3]),
        (semantic("spleen", "liver"), semantic("liver"), [0, 2, None, 3]),
        (semantic("a"), semantic("b", "a", "c", "d"), [0, None, 1, None, None]),
        (semantic("a", "b", "c", "d"), semantic("d", "a"), [0, 4, 1, None]),
        (BOX, BOX, [0, 1, 2, 3]),
        (BOX, semantic("a"), [0, None, None, None]),
        (semantic("a", "b", "c", "d"), BOX, [0, None, None, None]),
    ],
)
def test_where_a_token_comes_from(before, now, sources):
    assert token_sources(before, now) == sources


def test_a_frozen_token_keeps_its_class_only_as_a_copy_of_the_same_token(tiny_sam):
    sam = copy.deepcopy(tiny_sam)
    assert unmoved([0, 2, 1, 3], sam) == [0, None, None, 3]
    sam.resize_mask_tokens(5)  # tokens of the base: 1 2 3 1 2
    assert unmoved([0, 4, 5, 3, 2, None], sam) == [0, 4, 5, 3, None, None]


def test_rows_and_hypernetworks_move_together():
    head = "base_model.model.mask_decoder."
    tokens, mlp = f"{head}mask_tokens.weight", f"{head}output_hypernetworks_mlps."
    iou = f"{head}iou_prediction_head.layers.2."
    low_rank = f"{iou}lora_A.weight"
    given = {
        tokens: torch.arange(4.0)[:, None],
        f"{iou}bias": torch.arange(4.0),
        low_rank: torch.ones(4, 2),
        **{f"{mlp}{n}.layers.0.bias": torch.full((2,), float(n)) for n in range(4)},
    }
    start = {key: torch.full((6, *value.shape[1:]), -1.0) for key, value in given.items()}
    sources = [0, 2, None, 1, None, 2]
    use = semantic()
    placed = place_tokens(given, start, sources, sources, (use, use))
    assert placed[tokens][:, 0].tolist() == placed[f"{iou}bias"].tolist() == [0, 2, -1, 1, -1, 2]
    assert placed[low_rank].shape == (4, 2)  # it has no row for a token, though as many as tokens
    moved = {key: float(value[0]) for key, value in placed.items() if key.startswith(mlp)}
    assert moved == {f"{mlp}{n}.layers.0.bias": v for n, v in [(0, 0), (1, 2), (3, 1), (5, 2)]}


def test_rows_of_a_head_move_within_each_of_its_maps():
    key = "base_model.model.dense_head.out.bias"
    before = TokenUse(("a", "b"), is_semantic=True, count=3, maps=3)
    now = TokenUse(("b", "c"), is_semantic=True, count=3, maps=3)
    sources = token_sources(before, now)
    start = {key: torch.full((6,), -1.0)}
    # logits, distances to the centre, distances to the border; each of a and b
    placed = place_tokens({key: torch.arange(6.0)}, start, sources, sources, (before, now))
    assert placed[key].tolist() == [1, -1, 3, -1, 5, -1]
    # Two cells for each: rows 0 and 1 are class a.
    start = {key: torch.full((4,), -1.0)}
    before, now = (TokenUse(use.classes, is_semantic=True, count=3) for use in (before, now))
    placed = place_tokens({key: torch.arange(4.0)}, start, sources, sources, (before, now))
    assert placed[key].tolist() == [2, 3, -1, -1]


def test_a_head_that_separates_objects_takes_over_the_logits_of_one_that_does_not():
    key = "base_model.model.dense_head.out.bias"
    before = TokenUse(("a",), is_semantic=True, count=3)
    now = TokenUse(("a",), is_semantic=True, count=3, maps=3)
    start, sources = {key: torch.full((3,), -1.0)}, token_sources(before, now)
    placed = place_tokens({key: torch.ones(1)}, start, sources, sources, (before, now))
    assert placed[key].tolist() == [1, -1, -1]
