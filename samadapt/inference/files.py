"""Which files are read and written: one, or those of a folder; labels in the format of the name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.formats.base import (
    FormatReader,
    ReaderOptions,
    reader_for,
    readers,
    write_prediction,
)
from samadapt.data.formats.dicom.folder_contents import holds_dicom
from samadapt.errors import DataError, UserError
from samadapt.inference.coco import CocoFile, coco_masks
from samadapt.inference.dicom_seg import SEG, need_highdicom, save_segmentation
from samadapt.inference.inputs import (
    ChannelCase,
    ChannelCases,
    Source,
    as_path,
    find_channel_cases,
)
from samadapt.system import atomic
from samadapt.system.out_of_memory import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from samadapt.data.types import Volume
    from samadapt.inference.options import Options
    from samadapt.inference.volumes import Progress, Segmentation, VolumePredictor
    from samadapt.system.arrays import Array

COCO = ".json"
NIFTI = ".nii.gz"
PICTURE = ".png"


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        images: files and series folders that a reader reads, by name.
        others: names of what is no image.
    """

    images: list[Path]
    others: list[str]


def is_folder_of_images(path: Path) -> bool:
    """Whether a path is a folder, and not that of one volume, as a DICOM series is."""
    return path.is_dir() and not is_image(path)


def is_image(path: Path) -> bool:
    """Whether a reader reads this file, or this folder as one volume.

    A reader of series may accept any folder; one that holds no file, or files that other readers
    read, is not a series.
    """
    accepting = [reader for reader in readers().values() if reader.accepts(path)]
    if not path.is_dir() or not accepting:
        return bool(accepting)
    known = [said for reader in accepting if (said := reader.holds_one(path)) is not None]
    if known:
        return any(known)
    files = [entry for entry in _visible(path) if entry.is_file()]
    others = [reader for reader in readers().values() if reader not in accepting]
    return bool(files) and not any(r.accepts(file) for file in files for r in others)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def list_folder(folder: Path) -> Folder:
    """List the images of a folder; hidden files are passed over, folders in it not entered.

    Raises:
        DataError: there is none.
    """
    entries = _visible(folder)
    images = [entry for entry in entries if is_image(entry) or _is_study(entry)]
    if not images:
        known = sorted({end for reader in readers().values() for end in reader.suffixes})
        raise DataError(f"{folder}: no image in this folder; readable: {', '.join(known)}")
    return Folder(images, [entry.name for entry in entries if entry not in images])


def _is_study(path: Path) -> bool:
    """Whether a folder holds DICOM series in folders below it."""
    return path.is_dir() and holds_dicom(path)


def check_files(source: Path, target: Path) -> None:
    """Refuse, before any model is loaded, what cannot be read or written.

    Raises:
        DataError: naming the file.
        MissingExtraError: the output's format needs a package that is not installed.
    """
    if not source.exists():
        raise DataError(f"{source}: the input file does not exist")
    _check_folder_of(target)
    whole = is_folder_of_images(source)
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: output must not be the input {'folder' if whole else 'file'}")
    ending = target.suffix.lower()
    if ending == COCO:
        coco_masks()
    if ending == SEG:
        need_highdicom()
    if whole:
        list_folder(source)
        if ending != COCO and target.exists() and not target.is_dir():
            raise DataError(f"{target}: the output of a folder is a folder or a .json file")
    else:
        _check_name(source, target)


def check_cases(cases: ChannelCases, target: Path) -> None:
    """Refuse what cannot be read or written of images whose channels are files.

    Raises:
        DataError: naming the file.
    """
    _check_folder_of(target)
    for path in (path for case in cases.cases for path in case.files):
        if not path.is_file():
            raise DataError(f"{path}: the input file does not exist")
        if path.resolve() == target.resolve():
            raise DataError(f"{target}: output must not be an input file")
    if is_one_file(cases, target):
        _check_name(cases.cases[0].files[0], target)
    elif target.suffix and not target.is_dir():
        count = len(cases.cases)
        raise DataError(f"{target}: the input holds {count} cases; their output is a folder")


def is_one_file(cases: ChannelCases, target: Path) -> bool:
    """Whether one case is written to a file; else the output is a folder."""
    return cases.one and bool(target.suffix) and not target.is_dir()


def _check_folder_of(target: Path) -> None:
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist; make it first")


def _check_name(source: Path, target: Path) -> None:
    if target.is_dir():
        raise DataError(f"{target}: output must be a file name; it is a folder")
    endings = output_endings(reader_for(source))
    if not target.name.lower().endswith(endings):
        raise DataError(
            f"{target}: the labels of {source.name} are written as {' or '.join(endings)}; "
            "choose such a name"
        )


def output_endings(reader: FormatReader) -> tuple[str, ...]:
    """Return the endings of the files that hold labels of what a reader reads."""
    endings = type(reader).output_suffixes
    if reader.name == "dicom":
        return (*endings, SEG)
    return (*endings, COCO) if PICTURE in endings else endings


def plan_folder(images: Sequence[Path], target: Path) -> dict[Path, Path | UserError]:
    """Give each image of a folder its output: the same stem, PNG or the volume's first format.

    An image whose output would be that of an earlier one, or which cannot have one, gets the
    error instead. With a COCO file for output every picture gets that.
    """
    plan: dict[Path, Path | UserError] = {}
    taken: dict[Path, Path] = {}
    for image in images:
        try:
            reader = reader_for(image)
        except UserError as error:
            plan[image] = error
            continue
        endings = output_endings(reader)
        if target.suffix.lower() == COCO:
            fits = COCO in endings
            reason = f"{image}: COCO JSON holds pictures; write volumes into a folder"
            plan[image] = target if fits else DataError(reason)
            continue
        output = target / f"{stem(image, reader)}{endings[0]}"
        if output in taken:
            reason = f"{image}: its output {output.name} is that of {taken[output].name}"
            plan[image] = DataError(f"{reason}; rename one of them")
        else:
            plan[image], taken[output] = output, image
    return plan


def stem(path: Path, reader: FormatReader) -> str:
    """Return a file's name without the ending that its reader knows."""
    ends = [end for end in type(reader).suffixes if path.name.lower().endswith(end)]
    return path.name[: -len(max(ends, key=len))] if ends and path.is_file() else path.name


def predict_file(
    predictor: VolumePredictor,
    given: Source,
    target: Path,
    options: Options,
    how: ReaderOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Segment a file; ``Segmenter.predict_file`` says what comes back."""
    target = target.expanduser()
    cases = find_channel_cases(given, how.channel)
    if cases is not None:
        check_cases(cases, target)
        if not is_one_file(cases, target):
            raise DataError(f"{target}: the output of one case is a file, as {target}.nii.gz")
        return _predict(predictor, cases.cases[0], target, options, how, progress, None)
    source = as_path(given)
    check_files(source, target)
    coco = CocoFile(predictor.classes) if target.suffix.lower() == COCO else None
    row = _predict(predictor, source, target, options, how, progress, coco)
    if coco is not None:
        coco.write(target)
    return row


def read_one(given: Source, how: ReaderOptions) -> Volume:
    """Read one image: a file, a series' folder, or the files of its channels.

    Raises:
        DataError: a file cannot be read, or the input holds several cases.
    """
    cases = find_channel_cases(given, how.channel)
    if cases is None:
        return _read(as_path(given), how)
    if len(cases.cases) > 1:
        names = ", ".join(case.name for case in cases.cases[:4])
        raise DataError(f"{given}: expected one case; it holds {len(cases.cases)}: {names}")
    return _read(cases.cases[0], how)


def _read(image: Path | ChannelCase, how: ReaderOptions) -> Volume:
    if isinstance(image, Path):
        return reader_for(image, how).read_image(image)
    reader = reader_for(image.files[0], replace(how, channel=None))
    if len(image.files) == 1:
        return reader.read_image(image.files[0])
    return reader.read_channels(image.files)


def predict_folder(
    predictor: VolumePredictor,
    given: Source,
    target: Path,
    options: Options,
    how: ReaderOptions,
    progress: Callable[[str], Progress] | None = None,
) -> list[dict[str, Any]]:
    """Segment the images of a folder; ``Segmenter.predict_folder`` says what comes back."""
    target = target.expanduser()
    cases = find_channel_cases(given, how.channel)
    if cases is not None:
        check_cases(cases, target)
        target.mkdir(exist_ok=True)
        ending = output_endings(reader_for(cases.cases[0].files[0]))[0]
        files = {case: target / f"{case.name}{ending}" for case in cases.cases}
        return _each(predictor, files, options, how, progress, None)
    source = as_path(given)
    check_files(source, target)
    coco = CocoFile(predictor.classes) if target.suffix.lower() == COCO else None
    if coco is None:
        target.mkdir(exist_ok=True)
    places = plan_folder(list_folder(source).images, target)
    rows = _each(predictor, places, options, how, progress, coco)
    if coco is not None:
        coco.write(target)
    return rows


def _each(
    predictor: VolumePredictor,
    places: Mapping[Path, Path | UserError] | Mapping[ChannelCase, Path],
    options: Options,
    how: ReaderOptions,
    progress: Callable[[str], Progress] | None,
    coco: CocoFile | None,
) -> list[dict[str, Any]]:
    """Segment images one after another; one that fails does not stop the others."""
    rows = []
    for image, place in places.items():
        try:
            if isinstance(place, UserError):
                raise place
            show = None if progress is None else progress(image.name)
            row = _predict(predictor, image, place, options, how, show, coco)
        except UserError as error:
            row = {"error": str(error)}
        except Exception as error:  # one broken file must not cost the others
            message = explain(error, "predict") or f"{type(error).__name__}: {error}"
            row = {"error": f"{image}: {message}"}
        rows.append({"input": image if isinstance(image, Path) else image.files[0], **row})
    return rows


def _predict(
    predictor: VolumePredictor,
    image: Path | ChannelCase,
    target: Path,
    options: Options,
    how: ReaderOptions,
    progress: Progress | None,
    coco: CocoFile | None,
) -> dict[str, Any]:
    """Read, segment and write one image."""
    volume, source = _read(image, how), image if isinstance(image, Path) else image.files[0]
    if coco is not None and volume.shape[2] > 1:
        raise DataError(f"{source}: COCO JSON holds pictures; write a volume as {NIFTI}")
    wanted = replace(options, instances=coco is not None)
    found = predictor.segment(volume, wanted, progress)
    beside = _write(predictor, found, volume, (source, target), coco)
    least = len(predictor.classes) + 1
    planes = (plane for labels in found.maps for plane in np.moveaxis(labels, 2, 0))
    counts = np.zeros(least, np.int64)
    for plane in planes:  # one by one: counting takes eight bytes a voxel
        counts += np.bincount(plane.ravel(), minlength=least)
    voxels = {name: int(counts[k]) for k, name in enumerate(predictor.classes, start=1)}
    row: dict[str, Any] = {"output": target, "shape": volume.shape, "voxels": voxels}
    if predictor.overlapping and target.suffix.lower() not in (SEG, COCO):
        row["masks"] = mask_files(target, predictor.classes)
    if volume.findings:
        row["warnings"] = [str(finding) for finding in volume.findings]
    return row | ({} if beside is None else {"probabilities": beside})


def _write(
    predictor: VolumePredictor,
    found: Segmentation,
    volume: Volume,
    files: tuple[Path, Path],
    coco: CocoFile | None,
) -> Path | None:
    """Write what was found in one image; the target's ending chooses the format.

    Objects go to ``coco`` where the target is COCO JSON. Returns the file of probabilities.

    Raises:
        DataError: the format cannot hold the labels, or the file cannot be written.
    """
    source, target = files
    try:
        if coco is not None:
            coco.add(source.name, found)
        elif target.suffix.lower() == SEG:
            save_segmentation(found.labels, volume, source, predictor.classes, target)
        elif predictor.overlapping:
            for labels, path in zip(
                found.maps, mask_files(target, predictor.classes).values(), strict=True
            ):
                write_prediction((labels > 0).astype(np.uint8), volume, path)
        else:
            write_prediction(found.labels, volume, target)
        if found.probabilities is None:
            return None
        return _write_probabilities(found.probabilities, volume, target, source)
    except atomic.WriteError:
        raise
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error})") from error


def mask_files(target: Path, classes: Sequence[str]) -> dict[str, Path]:
    """Return the files of classes that may overlap, a mask of 0 and 1 each, by class.

    ``labels.nii.gz`` becomes ``labels_whole.nii.gz``: letters that a file name cannot hold are
    replaced by ``_``, and of equal names the later ones end in their number.
    """
    ending = next((e for e in (NIFTI,) if target.name.lower().endswith(e)), target.suffix)
    base = target.name[: len(target.name) - len(ending)]
    files: dict[str, Path] = {}
    for number, name in enumerate(classes, start=1):
        plain = re.sub(r"[^\w.+-]", "_", name)
        path = target.with_name(f"{base}_{plain}{ending}")
        if path in files.values():
            path = target.with_name(f"{base}_{plain}_{number}{ending}")
        files[name] = path
    return files


def _write_probabilities(probabilities: Array, volume: Volume, target: Path, name: Path) -> Path:
    """Write (K, h, w, d) beside the labels, as a 4D NIfTI or, for a picture, as ``.npz``."""
    base = target.name
    for end in (".nii.gz", target.suffix):
        base = base.removesuffix(end)
    if target.suffix.lower() == COCO:
        base = name.name
    if volume.source is None:
        path = target.with_name(f"{base}_probabilities.npz")
        with atomic.file(path) as part:
            np.savez_compressed(part, probabilities=probabilities[..., 0])
        return path
    from samadapt.data.formats.nifti.write import save_shares

    path = target.with_name(f"{base}_probabilities.nii.gz")
    save_shares(probabilities, volume.source, path)
    return path
