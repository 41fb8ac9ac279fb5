"""Shares of kinds of prompts: checked, and normalised."""

from __future__ import annotations

import json
import math
import re

import pytest

from samadapt.errors import PromptError
from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.shares import check_first_shares, check_shares, normalised


def test_shares_add_up_to_one_in_the_order_of_tables():
    shares = normalised(check_shares({"semantic": 3, "point": 0, "box": 1}))
    assert shares == {"box": 0.25, "semantic": 0.75}
    assert list(shares) == ["box", "semantic"]


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ({"box": 1, "boxes": 1}, "got 'boxes'; did you mean 'box'"),
        ({"box": 1, "mixed": 1}, "got 'mixed'"),
        ({"box": 1, "point": -1}, "point: expected a share from 0"),
        ({"box": 1, "point": math.nan}, "point: expected a share from 0"),
        ({"box": 1, "point": True}, "point: expected a share from 0"),
        ({"box": 1}, "at least two kinds"),
        ({"box": 1, "point": 0}, "at least two kinds"),
        ({}, "at least two kinds"),
    ],
)
def test_shares_that_make_no_mixture_are_refused(shares, text):
    with pytest.raises(ValueError, match=text):
        check_shares(shares)


def test_a_mixture_survives_json_and_names_its_kinds():
    policy = PromptPolicy("mixed", shares=normalised({"box": 1, "semantic": 2}))
    assert PromptPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert policy.kinds == ("box", "semantic")
    assert policy.main_kind == "semantic"
    assert (policy.finds_classes, policy.is_semantic) == (True, False)
    assert policy.multimask is False
    classes = policy.of_kind("semantic")
    assert (classes.is_semantic, classes.keep_promptable, classes.shares) == (True, True, {})
    assert policy.of_kind("box") == PromptPolicy("box", keep_promptable=True)


def test_a_user_is_answered_as_in_training():
    policy = PromptPolicy("mixed", shares=normalised({"box": 1, "point": 1, "interactive": 1}))
    assert policy.answering(points=False).multimask is False
    assert policy.answering(points=True).multimask is None
    clicks = PromptPolicy("mixed", shares=normalised({"interactive": 1, "semantic": 1}))
    assert clicks.answering(points=False).multimask is None


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "mixed"},
        {"kind": "mixed", "shares": {"box": 1}},
        {"kind": "mixed", "shares": 3},
        {"kind": "mixed", "shares": {"box": "a", "point": 1}},
        {"kind": "box", "shares": {"box": 1, "point": 1}},
    ],
)
def test_broken_shares_of_a_record_are_refused(values):
    with pytest.raises(PromptError, match="not a prompt policy"):
        PromptPolicy.from_dict(values)


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ("boxes", "got 'boxes'; did you mean 'box'"),
        ({"box": 1, "semantic": 1}, "kinds of prompts among box, point, mask; got 'semantic'"),
        ({"box": 1, "point": -1}, "point: expected a share from 0"),
        ({"box": 0}, "a share above 0 for one of box, point, mask"),
    ],
)
def test_a_clip_begins_with_a_box_a_point_or_a_mask(first, text):
    assert check_first_shares("mask") == "mask"
    assert check_first_shares({"point": 1}) == {"point": 1}
    with pytest.raises(ValueError, match=re.escape(text)):
        check_first_shares(first)
