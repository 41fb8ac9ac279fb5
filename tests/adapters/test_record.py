"""The adapter's record: digests, bounds, and no path of the machine that trained."""

from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from samadapt.adapters.record import RECORD, AdapterRecord, digest_of, read_record, write_record
from samadapt.adapters.store import load_into, save_adapter
from samadapt.errors import AdapterError
from samadapt.system.atomic import WriteError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(adapted):
    return adapted("lora", blocks="last:2", decoder="frozen")[2]


@pytest.fixture
def written(tmp_path):
    """Write a record beside some bytes; entries can be given."""

    def write(**entries) -> Path:
        (tmp_path / "weights").write_bytes(b"weights")
        values = {"base": "tiny", "base_sha256": "0" * 64, "image_size": 64, **entries}
        write_record(tmp_path, AdapterRecord(**values), tmp_path / "weights")
        return tmp_path

    return write


def _edit(directory: Path, *, sign: bool, **entries) -> None:
    values = json.loads((directory / RECORD).read_text(encoding="utf-8")) | entries
    if sign:
        values["record_sha256"] = digest_of(values)
    (directory / RECORD).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
def test_every_flipped_bit_of_the_weights_is_refused(saved, fresh):
    whole, chance = (saved / WEIGHTS).read_bytes(), random.Random(0)
    for _ in range(25):
        spoilt = bytearray(whole)
        spoilt[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        (saved / WEIGHTS).unlink()  # the file may still be mapped into memory
        (saved / WEIGHTS).write_bytes(spoilt)
        with pytest.raises(AdapterError, match=WEIGHTS):
            load_into(saved, fresh())
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).write_bytes(whole)
    load_into(saved, fresh())


@pytest.mark.parametrize(
    "entries",
    [
        {"classes": ["liver", "kidney"]},
        {"threshold": 1.5},
        {"prompt": {"kind": "point"}},
        {"scores": {"dice": 0.99}},
        {"record_sha256": ""},
        {"weights_sha256": ""},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_an_edited_entry_is_refused(saved, entries):
    _edit(saved, sign=False, **entries)
    with pytest.raises(AdapterError, match=rf"{RECORD}: the record was changed or damaged"):
        read_record(saved)


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
def test_an_adapter_without_digests_still_loads(saved, fresh):
    """Adapters of versions before the digests have neither entry."""
    values = json.loads((saved / RECORD).read_text(encoding="utf-8"))
    del values["record_sha256"], values["weights_sha256"]
    values["checkpoint"] = "/data/models/sam_vit_b.pth"  # they kept the path, and NaN scores
    values["scores"] = {"adapted": {"hd95": float("nan")}}
    values["data_options"]["image"] = "*/patient_*.nii.gz"
    (saved / RECORD).write_text(json.dumps(values), encoding="utf-8")
    record = read_record(saved)
    assert record.checkpoint == "sam_vit_b.pth"
    assert record.scores == {"adapted": {"hd95": None}}
    assert "image" not in record.data_options
    load_into(saved, fresh())


def test_layout_and_order_do_not_matter(written):
    directory = written(classes=["a", "b"], threshold=0.1)
    values = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    (directory / RECORD).write_text(
        json.dumps(dict(reversed(values.items())), indent=7), encoding="utf-8"
    )
    assert read_record(directory).classes == ["a", "b"]


deep: dict = {}
for _ in range(40):
    deep = {"in": deep}


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("threshold", float("nan"), "threshold: expected a logit"),
        ("threshold", float("inf"), "threshold: expected a logit"),
        ("threshold", -1e9, "threshold: expected a logit"),
        ("image_size", 0, "image_size: expected at least 1"),
        ("image_size", 10**9, "image_size: expected at most"),
        ("num_masks", 10**9, "num_masks: expected at most"),
        ("classes", ["a", "a"], "each name once"),
        ("classes", [""], "printable"),
        ("classes", ["a\u0000b"], "printable"),
        ("classes", ["a" * 1000], "printable"),
        ("base_sha256", "abc", "64 hexadecimal digits; got 3"),
        ("checkpoint", "../../secret.pth", "checkpoint: expected a bare name"),
        ("checkpoint", "C:\\secret.pth", "checkpoint: expected a bare name"),
        ("data", "/etc/passwd", "data: expected a bare name"),
        ("licence", "x" * 20_000, "licence: expected at most"),
        ("intensity", {"window": [float("inf"), 0]}, r"intensity\.window: expected a finite"),
        ("prompt", {"kind": "x" * 20_000}, r"prompt\.kind: expected at most"),
        ("data_options", deep, "levels of nesting"),
        ("trained_on", {"../x": None}, "trained_on: expected hashes"),
        ("trained_on", {"0a": [-1]}, "trained_on: expected hashes"),
    ],
)
def test_an_entry_out_of_bounds_is_refused(written, entry, value, message):
    directory = written()
    _edit(directory, sign=True, **{entry: value})
    with pytest.raises(AdapterError, match=message) as refused:
        read_record(directory)
    assert str(directory / RECORD) in str(refused.value)
    assert "passwd" not in str(refused.value)


def test_a_huge_file_is_not_parsed(written, monkeypatch):
    directory = written()
    monkeypatch.setattr("samadapt.adapters.verify.MAX_JSON_BYTES", 100)
    with pytest.raises(AdapterError, match="at most 100 bytes"):
        read_record(directory)


def test_deeply_nested_json_is_an_error_of_ours(written):
    directory = written()
    (directory / RECORD).write_text('{"base":' + "[" * 200_000, encoding="utf-8")
    with pytest.raises(AdapterError, match="truncated or broken"):
        read_record(directory)


def test_no_path_of_this_machine_is_written(written):
    options = {"root": "/data/x", "image": "/data/*.nii", "label": "*/l.nii", "on_error": "skip"}
    directory = written(
        checkpoint="/home/someone/sam.pth", data_options={**options, "patient": "(p)_.*"}
    )
    text = (directory / RECORD).read_text(encoding="utf-8")
    assert "/" not in text
    assert json.loads(text)["data_options"] == {"patient": "(p)_.*"}
    assert json.loads(text)["checkpoint"] == "sam.pth"


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
def test_an_old_adapter_survives_when_the_new_one_cannot_take_its_place(saved, fresh, monkeypatch):
    """The second of the two renames fails: the old directory comes back."""
    sam = fresh()
    injection = load_into(saved, sam)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    rename, refused = os.replace, []

    def fail_once(source, target):
        if Path(target) == saved and not refused:
            refused.append(target)
            raise OSError(errno.EIO, "input/output error", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(WriteError, match="cannot be written"):
        save_adapter(saved, sam, injection, read_record(saved))
    assert refused
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert not [path for path in saved.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("fresh", ["tiny_sam"], indirect=True)
def test_a_new_adapter_replaces_the_old_one_and_leaves_nothing_else(saved, fresh):
    sam = fresh()
    injection = load_into(saved, sam)
    (saved / "stray.txt").write_text("of the old adapter", encoding="utf-8")
    names = sorted(path.name for path in saved.parent.iterdir())
    save_adapter(saved, sam, injection, replace(read_record(saved), classes=["new"]))
    assert read_record(saved).classes == ["new"]
    assert not (saved / "stray.txt").exists()
    assert sorted(path.name for path in saved.parent.iterdir()) == names
