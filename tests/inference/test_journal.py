"""Lines about finished images, of one process or of several."""

from __future__ import annotations

import pytest

from samadapt.inference.journal import Journal
from samadapt.system import processes
from samadapt.system.launchers import Place


def journal(tmp_path):
    return Journal(tmp_path / "out.1_rows.jsonl", lambda entry: "image" in entry)


def images(lines):
    return [entry["image"] for _, entry in lines.entries()]


def test_lines_come_back_in_order_and_by_place(tmp_path):
    lines = journal(tmp_path)
    assert images(lines) == []
    for name in ("ä.png", "b.png"):
        lines.append({"image": name})
    assert images(lines) == ["ä.png", "b.png"]
    places = [place for place, _ in lines.entries()]
    assert lines.at(places[1]) == {"image": "b.png"}
    lines.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rest", [b'{"image": "c', b"\0\0\0\n", b'{"other": 1}\n{"image": "d"}\n'])
def test_what_is_not_complete_is_dropped(tmp_path, rest):
    lines = journal(tmp_path)
    lines.append({"image": "a"})
    with lines.path.open("ab") as stream:
        stream.write(rest)
    lines.collect()
    lines.append({"image": "b"})
    assert images(lines) == ["a", "b"]


def test_the_lines_of_other_processes_are_collected(tmp_path, monkeypatch):
    lines = journal(tmp_path)
    lines.append({"image": "a"})
    other = tmp_path / "out.1_rows.old.jsonl"
    other.write_text("not ours", encoding="utf-8")
    for rank, name in ((1, "b"), (12, "c"), (1, "d")):
        monkeypatch.setattr(processes, "place", lambda rank=rank: Place(rank, 13))
        lines.append({"image": name})
    assert [path.name for path in lines.parts] == ["out.1_rows.1.jsonl", "out.1_rows.12.jsonl"]
    with lines.parts[0].open("ab") as stream:  # this process was killed
        stream.write(b'{"image": "e')
    assert images(lines) == ["a"]
    lines.collect()
    assert images(lines) == ["a", "b", "d", "c"]
    assert lines.parts == []
    assert other.is_file()
