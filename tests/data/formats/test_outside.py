"""Files outside of the data set's folder are never read, even if the data set names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from samadapt.data.checks.survey import survey
from samadapt.data.findings import FindingError
from samadapt.data.formats.base import read_image
from samadapt.system.limits import lies_inside

SECRET = b"root:x:0:0:SECRET"


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "C:/a", "C:a", "\\\\host\\a", "..\\a", "/", "a\0b", "\\a"],
)
def test_names_that_lead_out_of_the_folder_are_recognised(tmp_path: Path, name: str) -> None:
    assert not lies_inside(name, tmp_path)


@pytest.mark.parametrize("name", ["a", "./a", "a/b.nii.gz", "a\\b.png", "a..b", "a/../b", "ä b"])
def test_names_that_stay_in_the_folder_are_accepted(tmp_path: Path, name: str) -> None:
    assert lies_inside(name, tmp_path)


def test_the_root_may_be_wider_than_the_folder(tmp_path: Path) -> None:
    assert lies_inside("../raw/a", tmp_path / "images", tmp_path)
    assert not lies_inside("../../raw/a", tmp_path / "images", tmp_path)


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("how", ["absolute", "up"])
def test_dataset_json(
    make_msd: Callable[..., Path], tools: SimpleNamespace, tmp_path: Path, key: str, how: str
) -> None:
    root = make_msd()
    image, labels = tools.volume_pair(9)
    for part, values in (("image", image), ("label", labels)):
        tools.write_nifti(tmp_path / f"outside_{part}.nii.gz", values)
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    entry = {"image": "./imagesTr/case_99.nii.gz", "label": "./labelsTr/case_99.nii.gz"}
    outside = tmp_path / f"outside_{key}.nii.gz"
    entry[key] = str(outside) if how == "absolute" else f"../{outside.name}"
    content["training"].append(entry)
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    found = survey("msd", root)
    assert [f.code for f in found.findings if f.severity == "error"] == ["path_outside"]
    assert found.cases == 6


MHD = """ObjectType = Image
NDims = 3
BinaryData = True
DimSize = 4 4 1
ElementSpacing = 1 1 1
ElementType = MET_UCHAR
"""
NRRD = """NRRD0004
type: uchar
dimension: 3
sizes: 4 4 1
encoding: raw
space: left-posterior-superior
space directions: (1,0,0) (0,1,0) (0,0,1)
space origin: (0,0,0)
"""


@pytest.mark.parametrize(
    "lines",
    [
        ".mhd ElementDataFile = ../secret",
        ".mhd ElementDataFile = {outside}",
        ".mhd ElementDataFile: {outside}",
        ".mhd ElementDataFile={outside}",
        ".mhd ElementDataFile = LIST\n{outside}",
        ".mhd ElementDataFile = LIST 2D\n../secret",
        ".mhd ElementDataFile = ../secre%c 116 116 1",
        ".mhd ElementDataFile = ../secret%0d 1 1 1",
        ".mhd ElementDataFile = %s%n 1 1 1",
        ".mhd Comment = ElementDataFile x\nElementDataFile = ../secret",
        ".mhd elementdatafile = inside\nElementDataFile = ../secret",
        ".mha ElementDataFile = ../secret",
        ".nhdr data file: ../secret",
        ".nhdr DATA FILE: {outside}",
        ".nhdr datafile: {outside}",
        ".nhdr data file: LIST\n../secret",
        ".nhdr data file: ../secret%0d 1 1 1",
        ".nhdr data file: inside\ndata file: ../secret",
        ".nrrd data file: ../secret\n",
    ],
)
def test_data_files_of_itk(tmp_path: Path, lines: str) -> None:
    pytest.importorskip("SimpleITK")
    outside, folder = tmp_path / "secret", tmp_path / "data"
    outside.write_bytes(SECRET)
    (tmp_path / "secret1").write_bytes(SECRET)
    folder.mkdir()
    (folder / "inside").write_bytes(SECRET)
    suffix, _, last = lines.partition(" ")
    head = MHD if suffix.startswith(".m") else NRRD
    path = folder / f"a{suffix}"
    path.write_text(head + last.format(outside=outside) + "\n", encoding="utf-8")
    with pytest.raises(FindingError) as caught:
        read_image(path)
    assert caught.value.finding.code in ("path_outside", "bad_header")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "lines",
    [
        ".mhd ElementDataFile = inside",
        ".mhd ElementDataFile = LIST\ninside",
        ".mhd ElementDataFile = inside%d 1 1 1",
        ".nhdr data file: inside",
        ".nhdr data file: LIST\ninside",
        ".nhdr data file: inside%d 1 1 1",
        ".nhdr data file: ./inside",
    ],
)
def test_data_files_of_itk_in_the_folder(tmp_path: Path, lines: str) -> None:
    pytest.importorskip("SimpleITK")
    for name in ("inside", "inside1"):
        (tmp_path / name).write_bytes(bytes(range(16)))
    suffix, _, last = lines.partition(" ")
    path = tmp_path / f"a{suffix}"
    path.write_text((MHD if suffix.startswith(".m") else NRRD) + last + "\n", encoding="utf-8")
    assert read_image(path).image.max() == 15


def test_a_data_file_elsewhere_in_the_data_set(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    for part in ("images", "labels", "raw"):
        (tmp_path / part).mkdir()
    for part in ("images", "labels"):
        (tmp_path / "raw" / part).write_bytes(bytes(range(16)))
        text = f"{MHD}ElementDataFile = ../raw/{part}\n"
        (tmp_path / part / "a.mhd").write_text(text, encoding="utf-8")
    found = survey("itk", tmp_path)
    assert [f for f in found.findings if f.code == "path_outside"] == []
    assert found.cases == 1


def test_files_that_ome_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    values = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
    tifffile.imwrite(tmp_path / "secret.tif", values)
    names = f'<UUID FileName="{tmp_path}/secret.tif">urn:uuid:2</UUID>'
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="8" SizeY="8" SizeZ="2" '
        f'SizeC="1" SizeT="1"><TiffData IFD="0" PlaneCount="2">{names}</TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(folder / "a.ome.tif", values, description=text, metadata=None)
    with pytest.raises(FindingError, match="outside of the folder"):
        read_image(folder / "a.ome.tif")
