"""MedSAM's arrays: volumes, pictures, ``.npy`` pairs, and each fault as one finding."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data import SliceRef, check_dataset, open_dataset, read_image, write_prediction
from samadapt.errors import DataError

VOLUME = np.random.default_rng(0).integers(1, 256, (4, 12, 10)).astype(np.uint8)
IDS = np.random.default_rng(1).integers(0, 3, VOLUME.shape).astype(np.uint8)


def _folder(root: Path) -> Path:
    (root / "CT").mkdir()
    for index in range(3):
        name = root / "CT" / f"c{index}.npz"
        own = VOLUME.copy()
        own[0, 0, index] ^= 1  # copies are refused
        np.savez_compressed(name, imgs=own, gts=IDS, spacing=(0.5, 0.75, 3.0))
    return root


def test_volumes(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    assert check_dataset("medsam_npz", root) == []
    dataset = open_dataset("medsam_npz", root, classes=["a", "b"])
    assert [case.name for case in dataset.cases] == ["CT_c0", "CT_c1", "CT_c2"]
    assert (dataset.axis, dataset.cases[0].spacing_mm) == ("axial", (0.75, 0.5, 3.0))
    sample = dataset.sample(SliceRef("CT_c1", 2))
    np.testing.assert_array_equal(sample.image[:, :, 1], VOLUME[2])
    np.testing.assert_array_equal(sample.labels, IDS[2])
    volume = read_image(root / "CT" / "c0.npz")
    write_prediction(dataset.volume_labels("CT_c0"), volume, tmp_path / "out.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["segs"], IDS)
    with pytest.raises(DataError, match=r"out\.npz"):
        write_prediction(np.zeros((3, 3, 4)), volume, tmp_path / "out.npz")


def test_two_files_of_one_case_name_are_refused(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    np.savez(root / "CT_c1.npz", imgs=VOLUME, gts=IDS)
    found = [f for f in check_dataset("medsam_npz", root) if f.severity == "error"]
    assert [f.code for f in found] == ["duplicate_case"] * 2
    assert {Path(f.file) for f in found} == {root / "CT_c1.npz", root / "CT" / "c1.npz"}
    dataset = open_dataset("medsam_npz", root, classes=["a", "b"], on_error="skip")
    assert [case.name for case in dataset.cases] == ["CT_c0", "CT_c2"]


def test_a_stack_of_colours_is_refused_at_prediction_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", imgs=np.zeros((4, 6, 5, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.npz.*colour_volume"):
        read_image(tmp_path / "a.npz")


def test_pictures(tmp_path: Path) -> None:
    for part in ("imgs", "gts"):
        (tmp_path / part).mkdir()
    colours = np.random.default_rng(2).random((12, 10, 3))
    for name, change in (("a", 0), ("b", 0.1)):
        np.save(tmp_path / "imgs" / f"{name}.npy", np.clip(colours + change, 0, 1))
        np.save(tmp_path / "gts" / f"{name}.npy", IDS[0])
    dataset = open_dataset("medsam_npz", tmp_path, classes=["x", "y"])
    sample = dataset.sample(SliceRef("a", 0))
    np.testing.assert_array_equal(sample.image, np.rint(colours * 255))
    np.testing.assert_array_equal(sample.labels, IDS[0])
    np.savez(tmp_path / "grey.npz", imgs=VOLUME[0], gts=IDS[0])
    volume = read_image(tmp_path / "grey.npz")
    np.testing.assert_array_equal(volume.image[:, :, 0], VOLUME[0])
    for name in ("out.npz", "out.png"):
        write_prediction(IDS[0], volume, tmp_path / name)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["segs"], IDS[0])


def _save(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez_compressed(path, **{"imgs": VOLUME, "gts": IDS, **arrays})


def _huge(path: Path, sides: str = "(60000, 60000, 9)") -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {sides}, }}"
    header = header.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(path, "w") as archive:
        for key in ("imgs", "gts"):
            archive.writestr(f"{key}.npy", content)


FAULTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty": ("empty_file", lambda p: p.write_bytes(b"")),
    "text": ("unreadable_image", lambda p: p.write_text("hello", encoding="utf-8")),
    "cut": ("unreadable_image", lambda p: p.write_bytes(p.read_bytes()[:-60])),
    "flipped": ("unreadable_image", lambda p: p.write_bytes(_flip(p.read_bytes()))),
    "no_imgs": ("missing_key", lambda p: np.savez(p, gts=IDS)),
    "no_gts": ("missing_key", lambda p: np.savez(p, imgs=VOLUME)),
    "pickled": ("pickled_array", _save(imgs=np.array([{}, 1], dtype=object))),
    "nan": ("non_finite_voxels", _save(imgs=np.full(VOLUME.shape, np.nan))),
    "complex": ("unsupported_dtype", _save(imgs=VOLUME.astype(np.complex64))),
    "words": ("unsupported_dtype", _save(imgs=np.array([["a", "b"]]))),
    "fractions": ("non_integer_labels", _save(gts=IDS * 0.3)),
    "shape": ("shape_mismatch", _save(gts=IDS[:3])),
    "one_axis": ("shape_mismatch", _save(gts=IDS[0, 0])),
    "colour_stack": ("colour_volume", _save(imgs=np.stack([VOLUME] * 3, axis=-1))),
    "constant": ("constant_image", _save(imgs=VOLUME * 0)),
    "spacing": ("bad_spacing", _save(spacing=(1.0, 0.0, 2.0))),
    "spacing_words": ("bad_spacing", _save(spacing=np.array("mm"))),
    "huge": ("too_large", _huge),
    "promises_too_much": ("truncated_file", lambda p: _huge(p, "(600, 600, 9)")),
    "no_voxels": ("bad_shape", _save(gts=IDS[:0], imgs=VOLUME[:0])),
}


def _flip(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 255
    return bytes(changed)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_finding(tmp_path: Path, fault: str) -> None:
    root = _folder(tmp_path)
    code, spoil = FAULTS[fault]
    spoil(root / "CT" / "c1.npz")
    (finding,) = check_dataset("medsam_npz", root, classes={"a": 1, "b": 2})
    assert (finding.code, finding.file) == (code, str(root / "CT" / "c1.npz"))
    dataset = open_dataset("medsam_npz", root, on_error="skip", classes={"a": 1, "b": 2})
    assert dataset.left_out == ["CT_c1"]


def test_partners_that_are_missing(tmp_path: Path) -> None:
    for part, names in (("imgs", "ab"), ("gts", "bc")):
        (tmp_path / part).mkdir()
        for name in names:
            np.save(tmp_path / part / f"{name}.npy", VOLUME[0] if part == "imgs" else IDS[0])
    found = {(Path(f.file).parent.name, f.code) for f in check_dataset("medsam_npz", tmp_path)}
    assert found == {("imgs", "missing_label"), ("gts", "missing_image")}
    np.save(tmp_path / "gts" / "a.npy", np.array([object()]), allow_pickle=True)
    np.save(tmp_path / "imgs" / "c.npy", VOLUME[0])
    (finding,) = check_dataset("medsam_npz", tmp_path)
    assert finding.code == "pickled_array"
    (tmp_path / "gts" / "a.npy").write_bytes((tmp_path / "gts" / "b.npy").read_bytes()[:150])
    (finding,) = check_dataset("medsam_npz", tmp_path)
    assert finding.code == "unreadable_image"
    assert finding.file == str(tmp_path / "gts" / "a.npy")
    (tmp_path / "gts" / "a.npy").write_text("hello", encoding="utf-8")
    (finding,) = check_dataset("medsam_npz", tmp_path)
    assert finding.code == "unreadable_image"


def test_a_header_that_another_thread_disturbs_is_read_again(tmp_path, monkeypatch) -> None:
    root, calls = _folder(tmp_path), []
    parse = np.lib.format.read_array_header_1_0

    def disturbed(file: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise SystemError("AST constructor recursion depth mismatch")
        return parse(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", disturbed)
    np.testing.assert_array_equal(read_image(root / "CT" / "c0.npz").image[:, :, 1], VOLUME[1])
    assert len(calls) > 1
