"""``data.train_cases``: fewer cases are a part of more, and the held-out ones stay the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.data.checks.resumed_run import check_unchanged
from samadapt.data.checks.training_record import trained_on
from samadapt.data.dataset import open_dataset
from samadapt.data.training_draw import drawn_order, use_training_cases
from samadapt.errors import ConfigError, DataError

PATIENTS = st.lists(st.integers(0, 6), min_size=1, max_size=30)


def named(patients: list[int]) -> list[tuple[str, str]]:
    return [(f"p{p}" if p else "", f"case_{n:02}") for n, p in enumerate(patients)]


@given(PATIENTS, st.integers(0, 1000))
@settings(deadline=None)
def test_an_order_has_every_case_once_and_patient_after_patient(
    patients: list[int], draw: int
) -> None:
    cases = named(patients)
    order = drawn_order(cases, draw)
    assert sorted(order) == [name for _, name in cases]
    owners = {name: patient or name for patient, name in cases}
    visited = [owners[name] for name in order]
    runs = [one for one, before in zip(visited, ["", *visited], strict=False) if one != before]
    assert len(runs) == len(set(runs))


@given(PATIENTS, PATIENTS, st.integers(0, 1000))
@settings(deadline=None)
def test_a_case_that_is_added_moves_no_other(some: list[int], more: list[int], draw: int) -> None:
    cases = named([*some, *more])
    few = [name for name in drawn_order(cases, draw) if name in {n for _, n in cases[: len(some)]}]
    assert drawn_order(cases[: len(some)], draw) == few


def test_draws_differ() -> None:
    cases = named([0] * 12)
    assert len({tuple(drawn_order(cases, draw)[:3]) for draw in range(8)}) > 4


def test_fewer_cases_are_a_part_of_more(make_pictures) -> None:
    whole = open_dataset("folder", make_pictures(10), intensity="rgb")
    sets = [use_training_cases(whole, count, draw=3) for count in (1, 3, 8)]
    for fewer, more in pairwise(sets):
        assert set(fewer.train) < set(more.train)
        assert fewer.val == more.val == whole.val
    assert sets[1].train == sorted(sets[1].train)
    assert sets[-1].train == whole.train
    assert use_training_cases(whole, None, draw=3) is whole
    assert use_training_cases(whole, 3, draw=4).train != sets[1].train
    assert {ref.case for ref in sets[1].slices("train", empty="keep")} == set(sets[1].train)
    assert {ref.case for ref in sets[1].slices("val")} == set(whole.val)


def test_splits_list_the_unused_cases_and_the_record_only_the_used_ones(make_pictures) -> None:
    whole = open_dataset("folder", make_pictures(8), intensity="rgb")
    assert "unused" not in whole.splits()
    few = use_training_cases(whole, 2, draw=0)
    splits = few.splits()
    assert sorted([*splits["train"], *splits["unused"]]) == whole.train
    assert "2 of 6 training cases are used (draw 0)" in splits["rule"]
    assert set(trained_on(few)) == {few.case(name).digest for name in few.train}
    assert len(trained_on(few)) == 2
    assert check_unchanged(splits, few, "splits.json") == []
    with pytest.raises(DataError, match="on the other side of the split"):
        check_unchanged(splits, use_training_cases(whole, 3, draw=0), "splits.json")


def test_patients_stay_together_and_a_divided_one_is_named(make_pictures) -> None:
    root = make_pictures(9)
    for part in ("images", "masks"):
        for index in range(9):
            path = root / part / f"p{index}.png"
            path.rename(path.with_name(f"{'abc'[index // 3]}_{index}.png"))
    whole = open_dataset("folder", root, intensity="rgb", patient="(.)_.*", val_every=3)
    assert {name[0] for name in whole.val} == {"a"}
    for count, patients in ((2, 1), (3, 1), (4, 2), (6, 2)):
        used = use_training_cases(whole, count, draw=1)
        assert len({name[0] for name in used.train}) == patients
        rule = used.case_splits.rule
        assert (f"of the last patient {count % 3} of 3 cases" in rule) is bool(count % 3)


def test_more_than_there_are_is_one_error(make_pictures) -> None:
    whole = open_dataset("folder", make_pictures(6), intensity="rgb")
    with pytest.raises(ConfigError, match="there are 4 training cases beside 2 held-out ones"):
        use_training_cases(whole, 5, draw=0)


def test_a_single_volume_can_be_one_case(make_scans) -> None:
    whole = open_dataset("nifti", make_scans(1), intensity="mri")
    assert use_training_cases(whole, 1, draw=0).train == whole.train
    with pytest.raises(ConfigError, match="there are 1 training cases"):
        use_training_cases(whole, 2, draw=0)


def test_an_adapter_records_neither_the_number_nor_the_draw(make_pictures, run) -> None:
    result = run(make_pictures(8), "data.train_cases=3", "data.draw=2")
    import json

    record = json.loads((result.adapter_dir / "samadapt.json").read_text(encoding="utf-8"))
    assert not {"train_cases", "draw"} & set(record["data_options"])
    splits = json.loads((result.run_dir / "splits.json").read_text(encoding="utf-8"))
    used = {splits["images"][name] for name in splits["train"]}
    assert set(record["trained_on"]) == used
    assert len(used) == 3
    assert len(splits["unused"]) == 3


def test_an_evaluation_refuses_the_key_and_scores_the_unused_cases(
    make_pictures, run, capsys
) -> None:
    from samadapt.cli import main

    result = run(make_pictures(8), "data.train_cases=3")
    call = ["evaluate", f"adapter={result.adapter_dir}", f"output.dir={result.run_dir.parent}"]
    assert main([*call, "data.train_cases=3"]) == 2
    assert "data.train_cases chooses what a training uses" in capsys.readouterr().err
    assert main([*call, "unseen=true", "device=cpu", "precision=fp32"]) == 0
    assert "5 unseen cases" in " ".join(capsys.readouterr().out.split())


def test_pseudonyms_cover_the_unused_cases(make_pictures, tmp_path: Path) -> None:
    from samadapt.data.pseudonyms import Pseudonyms, hide_names

    few = use_training_cases(open_dataset("folder", make_pictures(8), intensity="rgb"), 2, draw=0)
    hidden = hide_names(few, Pseudonyms(b"1" * 32))
    assert len(hidden.splits()["unused"]) == 4
    assert all(name.startswith("case_") for name in hidden.splits()["unused"])
    assert replace(few).splits()["unused"] == few.splits()["unused"]
