"""An adapter directory alone is enough to segment as the adapted model does."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from PIL import Image
from safetensors.torch import save_file

from samadapt.adapters.record import digest_of
from samadapt.data.formats.base import read_image
from samadapt.data.intensity import make_intensity, to_rgb
from samadapt.errors import AdapterError, ConfigError, DataError, PromptError, WeightsError
from samadapt.inference.segmenter import load_adapter
from samadapt.sam.decode import segment_objects, segment_semantic
from samadapt.sam.embed import embed
from samadapt.sam.types import ImagePrompts

BOX = [3.0, 4.0, 25.0, 20.0]
AFFINE = np.array([[0, -2.0, 0, 5], [0, 0, 3.0, -7], [1.5, 0, 0, 11], [0, 0, 0, 1]])


@pytest.fixture
def trained(save_adapted):
    """``trained(kind, **record)``: a directory, and the adapted model that it was saved from."""

    def make(kind, *, classes=("grey", "white"), tokens=3, **changes):
        def grow(sam):
            if tokens != 3:
                sam.resize_mask_tokens(tokens)

        record = {"intensity": make_intensity("mri").to_dict(), "axis": "coronal", **changes}
        return save_adapted(f"adapter-{kind}", 5, kind, grow=grow, classes=list(classes), **record)

    return make


@pytest.fixture
def scan(tmp_path):
    """A volume whose axes are neither in order nor all positive, and whose sides differ."""
    rng = np.random.default_rng(3)
    smooth = np.cumsum(rng.normal(size=(22, 14, 28)), axis=0).astype(np.float32) * 40
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(smooth, AFFINE), path)
    return path


def box_objects(*boxes):
    return ImagePrompts(np.ones(len(boxes), int), boxes=np.array(boxes, np.float32).reshape(-1, 4))


def expected_volume(sam, path, prompts=None):
    volume = read_image(path, "coronal")
    values = make_intensity("mri")(volume)
    planes = []
    for index in range(volume.shape[2]):
        embeddings, frames = embed(sam, [to_rgb(values[:, :, index])])
        if prompts is None:
            planes += segment_semantic(sam, embeddings, frames, 2)
        else:
            ((numbers, _),) = segment_objects(sam, embeddings, frames, [prompts[index]])
            planes.append(prompts[index].class_ids_at(numbers).astype(np.uint8))
    return volume, np.stack(planes, axis=-1)


def nearly_equal(first, second):
    assert first.shape == second.shape
    assert len(np.unique(second)) > 1, "a constant prediction would prove nothing"
    return (first != second).mean() < 2e-3


def test_semantic_volume_comes_back_on_the_source_grid(trained, scan, tmp_path):
    directory, sam = trained("semantic")
    segmenter = load_adapter(directory, device="cpu")
    volume, expected = expected_volume(sam, scan)
    target = tmp_path / "out.nii.gz"
    result = segmenter.predict_file(scan, target)
    written = nib.load(target)
    assert np.allclose(written.affine, AFFINE)
    assert written.shape == (22, 14, 28)
    assert result["shape"] == volume.shape
    again = read_image(target, "coronal").image
    assert nearly_equal(again, expected)
    in_file_axes = segmenter.segment(str(scan))
    assert in_file_axes.dtype == np.uint8
    assert np.array_equal(in_file_axes, np.asarray(written.dataobj))
    counts = {"grey": int((again == 1).sum()), "white": int((again == 2).sum())}
    assert result["voxels"] == counts


def test_boxes_by_slice_and_for_every_slice(trained, scan):
    directory, sam = trained("box", classes=["object"])
    segmenter = load_adapter(directory, device="cpu")
    depth = read_image(scan, "coronal").shape[2]
    only = {2: box_objects(BOX), 9: box_objects(BOX, [1, 1, 9, 9])}
    _, expected = expected_volume(sam, scan, [only.get(i, box_objects()) for i in range(depth)])
    found = segmenter.segment(scan, boxes={2: [BOX], 9: [BOX, [1, 1, 9, 9]]})
    from samadapt.data.formats.shared.volume_slices import to_source

    assert nearly_equal(found, to_source(expected, read_image(scan, "coronal").source))
    everywhere = segmenter.segment(scan, boxes=[BOX])
    _, expected = expected_volume(sam, scan, [box_objects(BOX)] * depth)
    assert nearly_equal(everywhere, to_source(expected, read_image(scan, "coronal").source))


@pytest.mark.parametrize("colour", [False, True])
def test_an_image_as_array_and_as_file(trained, tmp_path, colour):
    directory, sam = trained("point", classes=["cell"], intensity=make_intensity("rgb").to_dict())
    segmenter = load_adapter(directory, device="cpu")
    shape = (30, 41, 3) if colour else (30, 41)
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    source, target = tmp_path / "a.png", tmp_path / "mask.png"
    Image.fromarray(image).save(source)
    points, labels = [[12, 9], [20, 22]], [1, 0]
    given = {"points": points, "point_labels": labels}
    embeddings, frames = embed(sam, [to_rgb(image) if not colour else image])
    prompts = ImagePrompts(
        np.ones(1, int), None, None, np.array([points], float), np.array([labels])
    )
    # a point may mean a part or a whole, so the best of several masks counts
    ((expected, _),) = segment_objects(sam, embeddings, frames, [prompts], multimask=True)
    found = segmenter.segment(image, **given)
    assert nearly_equal(found, expected)
    assert np.array_equal(segmenter.segment(source, **given), found)
    assert segmenter.predict_file(source, target, **given)["voxels"] == {"cell": int(found.sum())}
    assert np.array_equal(np.asarray(Image.open(target)), found)


def test_precision_is_fp32_unless_asked_for(trained):
    directory, _ = trained("semantic")
    image = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    full = load_adapter(directory, device="cpu")
    half = load_adapter(directory, device="cpu", precision="bf16")
    assert (full.precision.name, half.precision.name) == ("fp32", "bf16")
    seen = []
    for segmenter in (full, half):
        layer = segmenter.sam.image_encoder.neck[0]
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert (half.segment(image) == full.segment(image)).mean() > 0.9
    assert set(seen) == {torch.float32, torch.bfloat16}
    with pytest.raises(ConfigError, match="precision must be auto, fp32, bf16, fp16; got 'fp8'"):
        load_adapter(directory, precision="fp8")


def test_more_classes_than_sam_has_masks(trained):
    names = ["a", "b", "c", "d", "e"]
    directory, sam = trained("semantic", classes=names, tokens=5)
    image = np.random.default_rng(0).normal(size=(30, 41)) * 100
    found = load_adapter(directory, device="cpu").segment(image)
    values = to_rgb(make_intensity("mri")(image.astype(np.float32)))
    assert nearly_equal(found, segment_semantic(sam, *embed(sam, [values]), 5)[0])


def test_the_threshold_of_the_record_is_obeyed(trained):
    image = np.random.default_rng(0).integers(0, 255, (30, 41), dtype=np.uint8)
    areas = []
    for threshold in (-1e6, 0.0, 1e6):
        directory, _ = trained("box", classes=["x"], threshold=threshold)
        areas.append(int(load_adapter(directory, device="cpu").segment(image, boxes=BOX).sum()))
    assert areas[0] == 30 * 41
    assert areas[0] > areas[1] > areas[2] == 0


def test_prompts_that_do_not_fit_the_adapter(trained, tiny_sam):
    image = np.zeros((30, 41), np.uint8)
    semantic = load_adapter(trained("semantic")[0], device="cpu")
    with pytest.raises(PromptError, match=r"without prompts .*grey, white.*leave boxes"):
        semantic.segment(image, boxes=[BOX])
    box = load_adapter(trained("box")[0], device="cpu")
    with pytest.raises(PromptError, match=r"trained with box prompts and needs one"):
        box.segment(image)
    with pytest.raises(PromptError, match=r"reach into the image of width 41 and height 30"):
        box.segment(image, boxes=[[50, 1, 60, 9]])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 4, 5)), r"\(h, w\) or \(h, w, 3\) RGB; got float64 \(3, 4, 5\).*NIfTI"),
        (np.zeros((0, 4)), "must be numbers"),
        (np.array([["a"]]), "must be numbers"),
        (np.array([[np.nan, 1]]), "NaN"),
        ("missing.png", "missing.png"),
        ("scan.xyz", "no reader"),
    ],
)
def test_images_that_cannot_be_segmented(trained, image, message):
    segmenter = load_adapter(trained("semantic")[0], device="cpu")
    with pytest.raises(DataError, match=message):
        segmenter.segment(image)


def test_files_that_cannot_be_written_are_refused_first(trained, scan, tmp_path):
    segmenter = load_adapter(trained("semantic")[0], device="cpu")
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    for source, target, message in [
        (scan, tmp_path / "no" / "out.nii.gz", "does not exist; make it first"),
        (scan, tmp_path / "out.png", r"written as .nii.gz or .nii"),
        (picture, tmp_path / "out.nii.gz", r"written as .png"),
        (picture, tmp_path / "out.jpg", r"written as .png"),
        (picture, picture, "must not be the input"),
        (picture, tmp_path, "it is a folder"),
        (tmp_path / "b.png", tmp_path / "c.png", "input file does not exist"),
        (directory_file(tmp_path), tmp_path / "c.png", "no reader"),
    ]:
        with pytest.raises(DataError, match=message):
            segmenter.predict_file(source, target)
    assert not (tmp_path / "no").exists()


def directory_file(folder):
    path = folder / "a.txt"
    path.write_text("x", encoding="utf-8")
    return path


def test_a_base_that_is_gone_or_another_is_refused(trained, tmp_path, tiny_t_sam):
    directory, _ = trained("semantic")
    hint = tmp_path / "weights" / "base.safetensors"
    moved = hint.with_name("moved.safetensors")
    hint.rename(moved)
    assert load_adapter(directory, checkpoint=moved, device="cpu").classes == ["grey", "white"]
    with pytest.raises(AdapterError, match="sha256"):  # `tiny` by name is another random model
        load_adapter(directory, device="cpu")
    other = tmp_path / "other.safetensors"
    save_file(tiny_t_sam.state_dict(), other)
    with pytest.raises(WeightsError, match=r"samadapt\.json: its base .*checkpoint=FILE"):
        load_adapter(directory, checkpoint=other, device="cpu")
    with pytest.raises(ConfigError, match="device=teapot"):
        load_adapter(directory, checkpoint=moved, device="teapot")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("intensity", {"kind": "x"}, "data.intensity"),
        ("prompt", {"kind": "telepathy"}, "prompt policy"),
        ("preprocessing", {"normalization": "none"}, "preprocessing must be"),
    ],
)
def test_a_record_that_says_nonsense_is_refused_naming_the_file(trained, key, value, message):
    directory, _ = trained("semantic")
    path = directory / "samadapt.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {key: value}
    path.write_text(json.dumps(values | {"record_sha256": digest_of(values)}), encoding="utf-8")
    with pytest.raises(AdapterError, match=rf"samadapt\.json: .*{message}"):
        load_adapter(directory, device="cpu")


def as_series(image, folder):
    """Write a volume as DICOM, a file a slice, with SimpleITK."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    turned = np.reshape(image.GetDirection(), (3, 3))
    for index in range(image.GetSize()[2]):
        plane = image[:, :, index]
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(index),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, index)))),
            "0020|0037": "\\".join(map(str, turned[:, :2].T.ravel())),
            "0008|0018": f"1.2.3.5.{index}",
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        plane.SetSpacing(image.GetSpacing()[:2])
        writer.SetFileName(str(folder / f"{(index * 3) % 5}.dcm"))
        writer.Execute(plane)


def test_other_formats_are_segmented_as_nifti_is(trained, scan, tmp_path):
    directory, _ = trained("semantic")
    segmenter = load_adapter(directory, device="cpu")
    image = sitk.Cast(sitk.ReadImage(str(scan))[:, :, 4:9], sitk.sitkInt16)  # 5 slices
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
    as_series(image, tmp_path / "series")
    segmenter.predict_file(tmp_path / "a.nii.gz", tmp_path / "expected.nii.gz")
    expected = sitk.ReadImage(str(tmp_path / "expected.nii.gz"))
    pairs = [("a.nrrd", "n.nrrd"), ("a.nrrd", "n.nii.gz"), ("a.mha", "m.mha"), ("series", "s.nii")]
    for source, target in pairs:
        segmenter.predict_file(tmp_path / source, tmp_path / target)
        found = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / target)), "LPS")
        wanted = sitk.DICOMOrient(expected, "LPS")
        assert np.allclose(found.GetDirection(), wanted.GetDirection(), atol=1e-5)
        assert np.allclose(found.GetOrigin(), wanted.GetOrigin(), atol=1e-4)
        assert nearly_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted))
    with pytest.raises(DataError, match=r"\.nii\.gz or \.nii or \.nrrd or \.mha"):
        segmenter.predict_file(tmp_path / "a.nrrd", tmp_path / "out.png")
