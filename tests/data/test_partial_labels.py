"""The file that lists what is annotated: both formats, every mistake, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data import SliceRef, open_dataset
from samadapt.data.classes import ClassTable
from samadapt.data.formats.base import Scan
from samadapt.data.partial_labels import read_partial_labels
from samadapt.data.types import IGNORED, Case
from samadapt.errors import DataError

TABLE = ClassTable(("liver", "left kidney"), ((1,), (2,)))


def _read(path: Path, text: str | dict[str, Any], **options: Any) -> Any:
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    scan = Scan([Case(name, Path(name), shape=(4, 4, 6)) for name in ("a", "b", "c")])
    return read_partial_labels(path, None, scan, options.get("table", TABLE)), scan


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.csv", "case,classes,slices\na,liver,1-2\na,left kidney,4\nb,,\n*,,\n"),
        ("f.csv", "\ufeffslices;case;classes\r\n1-2;a;liver\r\n4;a;left kidney\r\n;b;\r\n;*;\r\n"),
        (
            "f.csv",
            'case,classes,slices\na,"liver","1, 2"\na,left kidney,4\nb\n\n*,liver;left kidney',
        ),
        (
            "f.json",
            {
                "a": [
                    {"classes": ["liver"], "slices": [[1, 2]]},
                    {"classes": "left kidney", "slices": 4},
                ],
                "b": {},
                "*": ["liver", "left kidney"],
            },
        ),
    ],
    ids=["csv", "excel", "quoted", "json"],
)
def test_both_formats(tmp_path: Path, name: str, text: Any) -> None:
    found, scan = _read(tmp_path / name, text)
    expected = np.zeros((6, 2), bool)
    expected[1:3, 0] = expected[4, 1] = True
    np.testing.assert_array_equal(found.known("a", 6, TABLE), expected)
    assert found.known("b", 6, TABLE).all()
    assert found.known("c", 6, TABLE).all()
    assert scan.findings == []


def test_what_is_not_listed_is_not_annotated(tmp_path: Path) -> None:
    found, scan = _read(tmp_path / "f.json", {"a": {"classes": []}, "b": ["liver"]})
    assert not found.known("a", 6, TABLE).any()
    assert found.known("b", 6, TABLE).tolist() == [[True, False]] * 6
    assert not found.known("c", 6, TABLE).any()
    (finding,) = scan.findings
    assert finding.code == "not_annotated"
    assert "does not list 1 of 3 cases (c)" in finding.message


def test_merged_classes_are_known_where_all_of_them_are(tmp_path: Path) -> None:
    table = ClassTable(("foreground",), ((1, 2),), merged=("liver", "left kidney"))
    found, _ = _read(
        tmp_path / "f.json", {"a": ["liver"], "b": ["liver", "left kidney"]}, table=table
    )
    assert not found.known("a", 6, table).any()
    assert found.known("b", 6, table).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "f.csv",
            "case,classes\nnobody,liver\n",
            "row 2: the data set has no such case; expe",
        ),
        (
            "f.csv",
            "case,classes\na,livre\n",
            r"row 2: .* class that is not in use; expected liver, l",
        ),
        ("f.csv", "case,slices\na,6\n", "row 2: the case has fewer slices; expected 0 to 5"),
        ("f.csv", "case,slices\na,4-2\n", r"row 2: slices must be numbers from 0, or ranges"),
        ("f.csv", "case,slices\na,-1\n", r"row 2: slices must be numbers from 0, or ranges"),
        ("f.csv", "case,secret\na,2\n", "its first row must name the columns"),
        ("f.csv", "", "its first row must name the columns"),
        ("f.csv", "case,slices\n,2\n", "row 2 names no case"),
        ("f.csv", "case,slices\na,2,3\n", "row 2 has more cells than there are columns"),
        ("f.csv", 'case,slices\na,"2\n', "not a CSV or JSON file in UTF-8"),
        ("f.json", "{", "not a CSV or JSON file in UTF-8"),
        ("f.json", "[" * 100_000, "not a CSV or JSON file in UTF-8"),
        ("f.json", "[]", "it must map cases"),
        ("f.json", '{"a": {"secret": 1}}', "entry 1 must be an object with classes and slices"),
        ("f.json", '{"a": {"classes": [1]}}', "entry 1: classes must be names"),
        ("f.json", '{"a": {"slices": [true]}}', "entry 1: slices must be numbers"),
        ("f.json", '{"a": 7}', "entry 1 must be an object"),
    ],
)
def test_every_mistake_is_named_without_the_content(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path / name, text)
    assert str(caught.value).startswith(f"data.annotated={tmp_path / name}")
    assert "secret" not in str(caught.value)
    assert "nobody" not in str(caught.value)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        read_partial_labels(tmp_path / "none.csv", None, Scan(), TABLE)
    with pytest.raises(DataError, match="at most 16 MiB"):
        _read(tmp_path / "f.csv", "case\n" + "a\n" * (9 << 20))


def test_a_slice_or_class_that_is_not_listed_is_neither_foreground_nor_background(
    make_msd: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_msd(4)
    whole = open_dataset("nifti", root)
    one, two = whole.classes
    rows = [f"case_01,{one},1-3", f"case_01,{two},3", "case_02,,", "*,,"]
    (root / "known.csv").write_text("\n".join(["case,classes,slices", *rows]), encoding="utf-8")
    dataset = open_dataset("nifti", root, annotated="known.csv", empty_slices="keep")
    labels = whole.volume_labels("case_01")
    for index in range(labels.shape[2]):
        plane = labels[:, :, index]
        truth = dataset.sample(SliceRef("case_01", index)).truth
        assert truth.shape == (2, *plane.shape)
        first = (plane == 1) if 1 <= index <= 3 else np.full(plane.shape, IGNORED)
        second = (plane == 2) if index == 3 else np.full(plane.shape, IGNORED)
        np.testing.assert_array_equal(truth, np.stack([first, second]))
    sample = dataset.sample(SliceRef("case_01", 2))
    assert set(np.unique(sample.maps)) <= {0, 1}  # no prompt of what is not listed
    assert (dataset.sample(SliceRef("case_01", 0)).shown == IGNORED).all()
    listed = [ref.index for ref in dataset.slices("train") if ref.case == "case_01"]
    assert listed == [1, 2, 3]
    assert dataset.slices("train").left_out["not annotated"] == labels.shape[2] - 3
    np.testing.assert_array_equal(
        dataset.presence("case_01")[:, 0],
        whole.presence("case_01")[:, 0] & dataset.known("case_01")[:, 0],
    )
