"""Which files a prediction reads and writes, and how its images are shared.

``plan_prediction`` looks at the input and the output once, before any model is loaded: it finds the
images, gives each its output, and refuses what cannot be read or written. ``each_planned`` then
does something with each of them, or with this process's share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.data.formats.base import FormatReader, ReaderOptions, reader_for, readers
from samadapt.data.formats.dicom.folder_contents import holds_dicom
from samadapt.errors import DataError, UserError
from samadapt.inference.coco import coco_masks
from samadapt.inference.dicom_seg import SEG, need_highdicom
from samadapt.inference.inputs import (
    ChannelCase,
    ChannelCases,
    Source,
    as_path,
    find_channel_cases,
)
from samadapt.inference.outputs import COCO, output_endings
from samadapt.system import processes
from samadapt.system.out_of_memory import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from samadapt.data.channels import Choice
    from samadapt.data.types import Volume
    from samadapt.inference.volumes import Progress


@dataclass(frozen=True)
class PlannedImage:
    """An image and where its labels go.

    Attributes:
        image: a file, the folder of a DICOM series, or an image whose channels are files.
        output: the file to write, or the error that says why it cannot be written.
    """

    image: Path | ChannelCase
    output: Path | UserError

    @property
    def path(self) -> Path:
        """The file or folder of the image; the first file of several channels."""
        return self.image if isinstance(self.image, Path) else self.image.files[0]


@dataclass(frozen=True)
class PredictionPlan:
    """What a prediction reads and writes.

    Attributes:
        images: the images in order.
        target: the output that the user named.
        is_folder: the input is a folder, or a pattern, of images; a single image otherwise.
        others: names of entries of the input folder that are not images.
    """

    images: list[PlannedImage]
    target: Path
    is_folder: bool
    others: tuple[str, ...] = ()

    @property
    def is_coco(self) -> bool:
        """Whether all labels go into one COCO file."""
        return self.target.suffix.lower() == COCO


def plan_prediction(source: Source, target: Path, channels: Choice) -> PredictionPlan:
    """Find the images of an input and give each its output.

    Args:
        source: what the user names as input.
        target: what the user names as output.
        channels: the channels that the adapter sees, in their order.

    Raises:
        DataError: the input or output cannot be read or written; names the file.
        MissingExtraError: the output's format needs a package that is not installed.
    """
    target = target.expanduser()
    cases = find_channel_cases(source, channels)
    if cases is not None:
        return _plan_cases(cases, target)
    path = as_path(source)
    if not path.exists():
        raise DataError(f"{path}: the input file does not exist")
    _check_folder_of(target)
    is_folder = is_folder_of_images(path)
    if target.resolve() == path.resolve():
        kind = "folder" if is_folder else "file"
        raise DataError(f"{target}: output must not be the input {kind}")
    ending = target.suffix.lower()
    # A missing package is reported here, before a model is loaded and images are segmented.
    if ending == COCO:
        coco_masks()
    if ending == SEG:
        need_highdicom()
    if not is_folder:
        _check_name(path, target)
        return PredictionPlan([PlannedImage(path, target)], target, is_folder=False)
    images, others = list_folder(path)
    if ending != COCO and target.exists() and not target.is_dir():
        raise DataError(f"{target}: the output of a folder is a folder or a .json file")
    return PredictionPlan(_plan_folder(images, target), target, is_folder=True, others=others)


def is_folder_of_images(path: Path) -> bool:
    """Whether a path is a folder that is not one volume, as the folder of a DICOM series is."""
    return path.is_dir() and not is_image(path)


def is_image(path: Path) -> bool:
    """Whether a reader reads this file, or this folder as one volume.

    A reader of series may accept any folder. A folder is not a series if it holds no file, or files
    that other readers read.
    """
    # Some readers know from the content whether a folder is one volume; their word counts.
    accepting = [reader for reader in readers().values() if reader.accepts(path)]
    if not path.is_dir() or not accepting:
        return bool(accepting)
    known = [said for reader in accepting if (said := reader.holds_one(path)) is not None]
    if known:
        return any(known)
    files = [entry for entry in _visible(path) if entry.is_file()]
    others = [reader for reader in readers().values() if reader not in accepting]
    return bool(files) and not any(r.accepts(file) for file in files for r in others)


def list_folder(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """List a folder; hidden files are skipped and folders in it are not entered.

    Returns:
        The files and series folders that are images, by name, and the names of the other entries.

    Raises:
        DataError: it holds no image.
    """
    entries = _visible(folder)
    # A folder with DICOM series in folders below it counts as an image too: the reader chooses.
    images = [e for e in entries if is_image(e) or (e.is_dir() and holds_dicom(e))]
    if not images:
        known = sorted({end for reader in readers().values() for end in reader.suffixes})
        raise DataError(f"{folder}: no image in this folder; readable: {', '.join(known)}")
    return images, tuple(entry.name for entry in entries if entry not in images)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _plan_cases(cases: ChannelCases, target: Path) -> PredictionPlan:
    """Plan images whose channels are files.

    Raises:
        DataError: a file cannot be read or written; names the file.
    """
    _check_folder_of(target)
    for path in (path for case in cases.cases for path in case.files):
        if not path.is_file():
            raise DataError(f"{path}: the input file does not exist")
        if path.resolve() == target.resolve():
            raise DataError(f"{target}: output must not be an input file")
    first = cases.cases[0].files[0]
    if cases.one and target.suffix and not target.is_dir():
        _check_name(first, target)
        images = [PlannedImage(cases.cases[0], target)]
        return PredictionPlan(images, target, is_folder=False, others=cases.others)
    if target.suffix and not target.is_dir():
        count = len(cases.cases)
        raise DataError(f"{target}: the input holds {count} cases; their output is a folder")
    ending = output_endings(reader_for(first))[0]
    images = [PlannedImage(case, target / f"{case.name}{ending}") for case in cases.cases]
    return PredictionPlan(images, target, is_folder=True, others=cases.others)


def _plan_folder(images: Sequence[Path], target: Path) -> list[PlannedImage]:
    """Give each image of a folder its output: the same stem, as PNG or in the volume's format.

    An image gets an error instead if it cannot have an output, or if its output is that of an
    earlier image. If the target is a COCO file, it is the output of every picture.
    """
    plan: list[PlannedImage] = []
    taken: dict[Path, Path] = {}
    for image in images:
        try:
            reader = reader_for(image)
        except UserError as error:
            plan.append(PlannedImage(image, error))
            continue
        endings = output_endings(reader)
        output: Path | UserError
        if target.suffix.lower() == COCO:
            output = target
            if COCO not in endings:
                reason = f"{image}: COCO JSON holds pictures; write volumes into a folder"
                output = DataError(reason)
        else:
            output = target / f"{stem(image, reader)}{endings[0]}"
            if output in taken:
                # Images of different formats may have the same stem, such as a.png and a.jpg.
                reason = f"{image}: its output {output.name} is that of {taken[output].name}"
                output = DataError(f"{reason}; rename one of them")
            else:
                taken[output] = image
        plan.append(PlannedImage(image, output))
    return plan


def stem(path: Path, reader: FormatReader) -> str:
    """Return a file's name without the ending that its reader knows."""
    ends = [end for end in type(reader).suffixes if path.name.lower().endswith(end)]
    return path.name[: -len(max(ends, key=len))] if ends and path.is_file() else path.name


def _check_folder_of(target: Path) -> None:
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist; make it first")


def _check_name(source: Path, target: Path) -> None:
    """Refuse an output whose ending does not fit the format of the input."""
    if target.is_dir():
        raise DataError(f"{target}: output must be a file name; it is a folder")
    endings = output_endings(reader_for(source))
    if not target.name.lower().endswith(endings):
        raise DataError(
            f"{target}: the labels of {source.name} are written as {' or '.join(endings)}; "
            "choose such a name"
        )


def read_one(source: Source, how: ReaderOptions) -> Volume:
    """Read one image: a file, the folder of a series, or the files of its channels.

    Raises:
        DataError: a file cannot be read, or the input holds several cases.
    """
    cases = find_channel_cases(source, how.channel)
    if cases is None:
        return read_planned(as_path(source), how)
    if len(cases.cases) > 1:
        names = ", ".join(case.name for case in cases.cases[:4])
        raise DataError(f"{source}: expected one case; it holds {len(cases.cases)}: {names}")
    return read_planned(cases.cases[0], how)


def read_planned(image: Path | ChannelCase, how: ReaderOptions) -> Volume:
    """Read the image of a plan.

    Raises:
        DataError: a file cannot be read.
    """
    if isinstance(image, Path):
        return reader_for(image, how).read_image(image)
    reader = reader_for(image.files[0], replace(how, channel=None))
    if len(image.files) == 1:
        return reader.read_image(image.files[0])
    return reader.read_channels(image.files)


def each_planned(
    plan: PredictionPlan,
    do: Callable[[PlannedImage, Path, Progress | None], dict[str, Any]],
    progress: Callable[[str], Progress] | None,
    *,
    command: str,
    done: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Do something with each image of a plan; in a folder a failure does not stop the others.

    Several processes share the images that are missing, and all of them get all rows.

    Args:
        plan: from ``plan_prediction``; its output folder is made.
        do: reads an image and writes the output; returns a row.
        progress: called with the name of each image; returns what is given to ``do``.
        command: the command that runs, for the advice where memory runs out.
        done: the rows of images that an earlier call has done, by name.

    Returns:
        One row per image. In a folder it also holds ``"input"``, and an image that failed has an
        ``"error"``.

    Raises:
        UserError: the single image of a plan cannot be done.
    """
    if plan.is_folder and not plan.is_coco:
        plan.target.mkdir(exist_ok=True)
    missing = [planned for planned in plan.images if planned.image.name not in done]
    own = [_row_of(plan, planned, do, progress, command) for planned in processes.share(missing)]
    found = iter(processes.shares_joined(processes.gather(own)))
    rows = []
    for planned in plan.images:
        row = done[planned.image.name] if planned.image.name in done else next(found)
        rows.append({"input": planned.path, **row} if plan.is_folder else row)
    return rows


def _row_of(
    plan: PredictionPlan,
    planned: PlannedImage,
    do: Callable[[PlannedImage, Path, Progress | None], dict[str, Any]],
    progress: Callable[[str], Progress] | None,
    command: str,
) -> dict[str, Any]:
    """Return what ``do`` returns of an image; in a folder an error is a row too."""
    try:
        # An error of the plan is reported here, so that it does not stop the other images.
        if isinstance(planned.output, UserError):
            raise planned.output
        show = None if progress is None else progress(planned.image.name)
        return do(planned, planned.output, show)
    except UserError as error:
        if not plan.is_folder:
            raise
        return {"error": str(error)}
    except Exception as error:  # one broken file must not cost the others
        if not plan.is_folder:
            raise
        message = explain(error, command) or f"{type(error).__name__}: {error}"
        return {"error": f"{planned.image}: {message}"}


def stem_of(planned: PlannedImage) -> str:
    """Return the name of an image without its suffix, that of its output in a folder."""
    name = planned.image.name
    for suffix in (".nii.gz", Path(name).suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            return name[: -len(suffix)]
    return name
