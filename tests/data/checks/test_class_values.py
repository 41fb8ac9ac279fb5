"""The class list comes from the user, the card, the data set or the masks, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samadapt.data.cards import Card
from samadapt.data.checks.class_values import check_values, decide_classes
from samadapt.data.classes import ClassTable
from samadapt.data.formats.base import Scan
from samadapt.data.mask_rules import MaskRules
from samadapt.data.types import Case
from samadapt.errors import ConfigError


def scan(*values: tuple[int, ...], **declared: Any) -> Scan:
    """Return a scan of cases whose masks hold these values."""
    cases = [
        Case(f"c{number}", Path(f"images/c{number}.png"), Path(f"masks/c{number}.png"), values=own)
        for number, own in enumerate(values)
    ]
    return Scan(cases, **declared)


def found(scanned: Scan) -> list[tuple[str, str]]:
    return [(finding.code, Path(finding.file).name) for finding in scanned.findings]


def test_the_user_comes_before_the_data_set() -> None:
    declared = {"liver": (1,), "spleen": (2,)}
    table = decide_classes(scan((1, 2), classes=declared), None, None)
    assert (table.names, table.values) == (("liver", "spleen"), ((1,), (2,)))
    table = decide_classes(scan((1, 2), classes=declared), None, {"organ": [1, 2]})
    assert (table.names, table.values) == (("organ",), ((1, 2),))


def test_values_outside_the_class_list_leave_their_case_out() -> None:
    scanned = scan((1,), (1, 7), (2,))
    table = ClassTable(("one", "two"), ((1,), (2,)))
    check_values(scanned, table)
    assert [case.name for case in scanned.cases] == ["c0", "c2"]
    assert scanned.left_out == ["c1"]
    assert found(scanned) == [("label_value", "c1.png")]
    assert "[7]" in scanned.findings[0].message
    assert "one=1, two=2" in scanned.findings[0].message


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ((255,), "data.ignore=255"),
        ((-1,), "data.ignore=-1"),
        (tuple(range(2, 40)), "data.instances=true"),
        ((7,), "data.classes={name: value}"),
    ],
)
def test_the_way_out_depends_on_the_values(values: tuple[int, ...], advice: str) -> None:
    scanned = scan(values)
    check_values(scanned, ClassTable(("one",), ((1,),)))
    assert advice in scanned.findings[0].fix


def test_object_numbers_and_thresholds_make_one_class() -> None:
    rules = MaskRules(instances=True)
    table = decide_classes(scan((1,)), None, None, masks=rules)
    assert (table.names, table.values) == (("foreground",), ((1,),))
    assert decide_classes(scan((1,)), None, ["cell"], masks=rules).names == ("cell",)
    with pytest.raises(ConfigError, match="the class list has 2: a, b"):
        decide_classes(scan((1,)), None, ["a", "b"], masks=rules)


def test_an_ignored_value_that_occurs_nowhere_is_a_warning() -> None:
    scanned = scan((1, 255), (1,))
    table = decide_classes(scanned, None, None, masks=MaskRules(ignored=(255, 9), judged=True))
    assert found(scanned) == [("ignore_absent", "c0.png")]
    assert "value 9" in scanned.findings[0].message
    assert table.values == ((1,),)
    assert set(table.ignored) == {9, 255}


def test_a_card_declares_the_classes() -> None:
    card = Card("demo", "", "", "", "msd", classes={"liver": (1,)})
    assert decide_classes(scan((1,)), card, None).names == ("liver",)
