"""Which files ``data.image`` and ``data.label`` match, and how cases are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samadapt.data import check_dataset, open_dataset


def write(root: Path, tools: Any, *names: str) -> None:
    for seed, name in enumerate(names):
        image, labels = tools.volume_pair(seed)
        is_mask = any(word in name for word in ("seg", "gt", "label"))
        tools.write_nifti(root / name, labels if is_mask else image)


def names(root: Path | None, image: Any, label: Any, **options: Any) -> list[str]:
    dataset = open_dataset(
        "nifti", root, image=str(image), label=str(label), intensity="mri", **options
    )
    return [case.name for case in dataset.cases]


def test_the_last_star_names_the_case(tmp_path: Path, tools: Any) -> None:
    write(
        tmp_path,
        tools,
        *(f"p{i}/{part}_{i}.nii.gz" for i in (1, 2) for part in ("ct", "seg")),
    )
    assert names(tmp_path, "*/ct_*.nii.gz", "*/seg_*.nii.gz") == ["1", "2"]


def test_folders_of_images_and_masks_may_differ(tmp_path: Path, tools: Any) -> None:
    write(
        tmp_path,
        tools,
        *(f"{part}/s{i}_{part}.nii.gz" for i in (1, 2) for part in ("anat", "seg")),
    )
    assert names(tmp_path, "*/*_anat.nii.gz", "*/*_seg.nii.gz") == ["s1", "s2"]


def test_a_file_that_the_label_matches_is_no_image(tmp_path: Path, tools: Any) -> None:
    write(
        tmp_path,
        tools,
        *(f"p{i}/p{i}_ct{end}.nii.gz" for i in (1, 2) for end in ("", "_seg")),
    )
    findings = check_dataset("nifti", tmp_path, image="*/*_ct*.nii.gz", label="*/*_ct_seg.nii.gz")
    assert all("seg" not in Path(f.file).name for f in findings if f.code == "missing_label")
    write(tmp_path / "flat", tools, "a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "b_seg.nii.gz")
    assert names(tmp_path / "flat", "*.nii.gz", "*_seg.nii.gz") == ["a", "b"]


def test_acdc_frames_have_a_name_each(tmp_path: Path, tools: Any) -> None:
    write(
        tmp_path,
        tools,
        *(
            f"patient{p}/patient{p}_frame{f}{end}.nii.gz"
            for p in ("001", "002")
            for f in ("01", "12")
            for end in ("", "_gt")
        ),
    )
    found = names(tmp_path, "*/*_frame*.nii.gz", "*/*_frame*_gt.nii.gz")
    assert found == [f"patient{p}_{f}" for p in ("001", "002") for f in ("01", "12")]
    (finding,) = check_dataset("nifti", tmp_path, image="*/*_frame*.nii.gz", label="*/*_gt.nii.gz")
    assert finding.code == "bad_pattern"
    assert "numbers of *" in finding.message


def test_no_root_is_needed(tmp_path: Path, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, tools, "p1/ct.nii.gz", "p1/seg.nii.gz", "p2/ct.nii.gz", "p2/seg.nii.gz")
    star = ("*/ct.nii.gz", "*/seg.nii.gz")
    assert names(None, *(tmp_path / part for part in star)) == ["p1", "p2"]
    bare = (tmp_path / "p1" / "ct.nii.gz", tmp_path / "p1" / "seg.nii.gz")
    assert names(None, *bare) == ["ct"]
    assert names(tmp_path / "p2", *bare) == ["ct"]  # absolute paths need no root
    monkeypatch.chdir(tmp_path)
    assert names(None, *star) == ["p1", "p2"]
    assert names(None, "p2/ct.nii.gz", "p2/seg.nii.gz") == ["ct"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert names(None, "~/*/ct.nii.gz", "~/*/seg.nii.gz") == ["p1", "p2"]
    (finding,) = check_dataset("nifti", None, image="*/none.nii.gz", label="*/seg.nii.gz")
    assert finding.code == "no_cases"
    (finding,) = check_dataset("nifti", None)
    assert finding.code == "missing_folder"


def test_brackets_in_names_are_letters(tmp_path: Path, tools: Any) -> None:
    write(tmp_path, tools, "set [1]/a_ct.nii.gz", "set [1]/a_seg.nii.gz")
    assert names(tmp_path, "set [1]/*_ct.nii.gz", "set [1]/*_seg.nii.gz") == ["a"]


@pytest.mark.parametrize(
    ("image", "label"),
    [("**/ct.nii.gz", "*/seg.nii.gz"), ("*/ct.nii.gz", "*/{channel}.nii.gz")],
)
def test_patterns_that_cannot_be(tmp_path: Path, tools: Any, image: str, label: str) -> None:
    write(tmp_path, tools, "p1/ct.nii.gz", "p1/seg.nii.gz")
    (finding,) = check_dataset("nifti", tmp_path, image=image, label=label)
    assert finding.code == "bad_pattern"


def test_a_numbered_channel_is_found_with_its_zeros(tmp_path: Path, tools: Any) -> None:
    write(tmp_path, tools, *(f"{c}_{n}.nii.gz" for c in "ab" for n in ("0000", "0001", "seg")))
    found = names(tmp_path, "*_{channel}.nii.gz", "*_seg.nii.gz", channel=[0, 1])
    assert found == ["a", "b"]
    found = names(tmp_path, "*_{channel}.nii.gz", "*_seg.nii.gz", channel=["0001", "0000"])
    assert found == ["a", "b"]


def test_images_that_end_in_four_digits_are_no_channels(tmp_path: Path, tools: Any) -> None:
    write(
        tmp_path,
        tools,
        *(f"images/scan_{n}.nii.gz" for n in ("0001", "0002")),
        *(f"labels/scan_{n}_mask.nii.gz" for n in ("0001", "0002")),
    )
    for path in (tmp_path / "labels").iterdir():
        tools.write_nifti(path, tools.volume_pair(0)[1])
    dataset = open_dataset("nifti", tmp_path, intensity="mri")
    assert [case.name for case in dataset.cases] == ["scan_0001", "scan_0002"]


@pytest.mark.parametrize("prefix", [True, False])
def test_advice_for_a_folder_a_case_works(tmp_path: Path, tools: Any, prefix: bool) -> None:
    write(
        tmp_path,
        tools,
        *(f"p{i}/{f'p{i}_' * prefix}{part}.nii.gz" for i in (1, 2) for part in ("t1", "t2", "seg")),
    )
    (finding,) = check_dataset("nifti", tmp_path)
    assert finding.code == "missing_folder"
    before = "*/*_" if prefix else "*/"
    assert f"data.image='{before}{{channel}}.nii.gz'" in finding.fix
    assert f"data.label='{before}seg.nii.gz'" in finding.fix
    assert "data.channel=[t1,t2]" in finding.fix
    found = names(
        tmp_path, f"{before}{{channel}}.nii.gz", f"{before}seg.nii.gz", channel=["t1", "t2"]
    )
    assert found == ["p1", "p2"]


def test_advice_for_a_mask_of_each_image(tmp_path: Path, tools: Any) -> None:
    """ACDC has two frames a patient with a mask each, and the whole film."""
    parts = ("4d", "frame01", "frame01_gt", "frame12", "frame12_gt")
    write(tmp_path, tools, *(f"p{i}/p{i}_{part}.nii.gz" for i in (1, 2) for part in parts))
    (finding,) = check_dataset("nifti", tmp_path)
    image, label = "*/*_frame*.nii.gz", "*/*_frame*_gt.nii.gz"
    assert f"data.image='{image}' data.label='{label}'" in finding.fix
    assert len(names(tmp_path, image, label)) == 4


def test_a_channel_that_no_file_has_is_named(tmp_path: Path, tools: Any) -> None:
    write(tmp_path, tools, *(f"p1/p1_{part}.nii.gz" for part in ("t1", "t2", "seg")))
    pattern: dict[str, Any] = {"image": "*/*_{channel}.nii.gz", "label": "*/*_seg.nii.gz"}
    (finding,) = check_dataset("nifti", tmp_path, **pattern, channel="t9")
    assert (finding.code, "'t9'; the files have: t1, t2" in finding.message) == (
        "channel_choice",
        True,
    )


@pytest.mark.parametrize(
    ("image", "said"),
    [("*/*_ct.nii.gz", "'*/*_ct.nii.gz'"), ("*/*_t?.nii.gz", "* is the only wildcard")],
)
def test_a_pattern_without_a_file_is_named(
    tmp_path: Path, tools: Any, image: str, said: str
) -> None:
    write(tmp_path, tools, *(f"p1/p1_{part}.nii.gz" for part in ("t1", "seg")))
    (finding,) = check_dataset("nifti", tmp_path, image=image, label="*/*_seg.nii.gz")
    assert finding.code == "no_cases"
    assert said in finding.message
    assert finding.fix == "check the pattern"
