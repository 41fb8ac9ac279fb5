"""The folder of a data engine: proposals, accepted masks, rounds, and the index of all of them.

::

    WORKSPACE/
      index.json               everything that is known; written as a whole, or not at all
      proposals/0001/a.png     the masks of the first call of propose; never changed
      correct/a.png            a copy of the last proposal, for people to correct
      accepted/a/0001.png      the accepted masks of image a by version; never changed
      rounds/0001/             data set and run of the first training
      ranking.csv              the last ranking
      report.html              quality by round

The images stay in their own folder. A mask in ``proposals`` or ``accepted`` is a PNG, or a volume
on the grid of its image. Its values are class numbers, or object numbers in a workspace of objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from samadapt.data.channels import MANY, parse_channel
from samadapt.data.formats.base import ReaderOptions, content_hash, reader_for
from samadapt.data.types import Volume
from samadapt.errors import AdapterError, ConfigError, DataError, nearest
from samadapt.inference.files import list_folder, stem
from samadapt.inference.outputs import output_endings
from samadapt.system import atomic
from samadapt.system.limits import lies_inside

INDEX = "index.json"
LOCK = "index.lock"
FORMAT = 1
"""Version of the index; a later one is refused."""

READERS = ("folder", "nifti", "itk")
"""Readers whose images are single files with a mask of the same name, so that they can train."""


@dataclass
class ImageEntry:
    """An image of the workspace.

    Attributes:
        file: its name in the folder of images.
        digest: hash of its voxels; empty until it was read.
    """

    file: str
    digest: str = ""


@dataclass(frozen=True)
class MaskMaker:
    """What made a mask.

    Attributes:
        how: ``"semantic"``, ``"prompts"`` or ``"automatic"``.
        adapters: directories of the adapters; empty for a base model alone.
        adapter_sha256: sha256 of the weights of each.
        base: name of the base model.
        base_sha256: hash of its tensors.
        options: what else decides the masks.
    """

    how: str
    adapters: list[str]
    adapter_sha256: list[str]
    base: str
    base_sha256: str
    options: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the masks; where the adapters lie does not."""
        return {key: value for key, value in asdict(self).items() if key != "adapters"}


@dataclass(frozen=True)
class ProposedMask:
    """A mask that a model proposes.

    Attributes:
        image: name of the image.
        call: number of the call of propose.
        file: the mask, relative to the workspace.
        sha256: of the file.
    """

    image: str
    call: int
    file: str
    sha256: str


@dataclass(frozen=True)
class AcceptedMask:
    """A version of the mask of an image that a person accepted.

    Attributes:
        image: name of the image.
        version: from 1.
        file: the mask, relative to the workspace.
        sha256: of the file.
        time: when it was accepted, ISO 8601.
        origin: the file that it was read from.
        by: who corrected it, as the user says.
        held_out: it measures, and never trains.
        call: the call of propose whose mask was corrected; None: it was drawn by hand.
        maker: what made that mask.
        changes: what the person changed; see ``changes.Changes``.
    """

    image: str
    version: int
    file: str
    sha256: str
    time: str
    origin: str
    by: str = ""
    held_out: bool = False
    call: int | None = None
    maker: MaskMaker | None = None
    changes: dict[str, Any] | None = None


@dataclass(frozen=True)
class RankedImage:
    """An image in the order of labelling.

    Attributes:
        image: its name.
        score: how much its label helps, 0..1.
        reason: why, in words.
        values: the measurements, by name; None where one could not be made.
    """

    image: str
    score: float
    reason: str
    values: dict[str, float | None]


@dataclass
class Round:
    """A training on what was accepted.

    Attributes:
        number: from 1.
        time: when it was started, ISO 8601.
        masks: version of the mask of each training image.
        held_out: the same for the held-out images.
        init: the adapter that it started from; None: the base model.
        init_sha256: sha256 of its weights.
        run_dir: the run, relative to the workspace; empty until it is finished.
        adapter_sha256: sha256 of the weights of its adapter.
        before: scores of ``init`` on the held-out images, in the first round.
        after: scores of the new adapter there.
    """

    number: int
    time: str
    masks: dict[str, int]
    held_out: dict[str, int]
    init: str | None = None
    init_sha256: str | None = None
    run_dir: str = ""
    adapter_sha256: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


@dataclass
class Index:
    """The content of ``index.json``.

    Attributes:
        folder: the folder of the images.
        reader: name of the reader of all images.
        classes: class names; value k of a mask is ``classes[k - 1]``.
        objects: masks hold object numbers of one class, and no class numbers.
        reading: how images are read: ``axis`` (a number, see ``formats.base.AXES``), ``channel``,
            ``spacing`` and ``exif`` of ``ReaderOptions``.
        images: by name, which is the file name without its ending.
        makers: what made the masks of each call of propose, from the first.
        proposals: in the order in which they were made.
        accepted: in the order in which they were accepted.
        ranking: the last ranking.
        rounds: the trainings in their order.
        format: version of the index.
    """

    folder: str
    reader: str
    classes: list[str]
    objects: bool
    reading: dict[str, Any]
    images: dict[str, ImageEntry] = field(default_factory=dict)
    makers: list[MaskMaker] = field(default_factory=list)
    proposals: list[ProposedMask] = field(default_factory=list)
    accepted: list[AcceptedMask] = field(default_factory=list)
    ranking: list[RankedImage] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    format: int = FORMAT


class Workspace:
    """A workspace that is open in this process.

    Attributes:
        root: its folder.
        index: what is known; ``save`` writes it.
    """

    def __init__(self, root: Path, index: Index) -> None:
        self.root, self.index = root, index

    def save(self) -> None:
        """Write the index."""
        text = json.dumps(asdict(self.index), indent=1, ensure_ascii=False)
        atomic.write_text(self.root / INDEX, text + "\n")

    def image_path(self, name: str) -> Path:
        """Return the file of an image."""
        return Path(self.index.folder) / self.index.images[name].file

    @property
    def how(self) -> ReaderOptions:
        """How the images are read."""
        reading = dict(self.index.reading)
        reading["channel"] = parse_channel(reading.get("channel"), MANY)
        return ReaderOptions(**reading)

    def check_reading(self, how: ReaderOptions) -> None:
        """Refuse a model that sees the images in another way than the workspace reads them.

        Raises:
            AdapterError: naming what differs.
        """
        known, asked = reading_of(self.how), reading_of(how)
        if known["axis"] is None:  # the axis of the largest spacing; a record names the same one
            asked["axis"] = None
        if apart := [
            f"{key}: {known[key]} and {asked[key]}" for key in known if known[key] != asked[key]
        ]:
            raise AdapterError(
                f"the model reads images in another way than the workspace {self.root} does: "
                f"{'; '.join(apart)}. Begin a new workspace for this model"
            )

    def read(self, name: str) -> Volume:
        """Read an image, and compare it with what it was when it was read first.

        Raises:
            DataError: it cannot be read, or it has changed.
        """
        path = self.image_path(name)
        volume = reader_for(path, self.how).read_image(path)
        self.check_digest(name, volume)
        return volume

    def check_digest(self, name: str, volume: Volume) -> None:
        """Refuse an image that has changed, or that is there under another name as well.

        Raises:
            DataError: naming the file.
        """
        digest, entry = content_hash(volume.image), self.index.images[name]
        if entry.digest and entry.digest != digest:
            raise DataError(
                f"{self.image_path(name)}: this image has changed since masks were proposed for "
                "it. Restore it, or start a new workspace"
            )
        entry.digest = digest

    def ending(self, name: str) -> str:
        """Return the ending of the masks of an image."""
        path = self.image_path(name)
        endings = output_endings(reader_for(path))
        own = [ending for ending in endings if path.name.lower().endswith(ending)]
        return ".png" if self.index.reader == "folder" else [*own, *endings][0]

    def refresh(self) -> None:
        """Add images that have come into the folder.

        Raises:
            DataError: an image is of another format, or two have one name.
        """
        for name, file in find_images(Path(self.index.folder), self.index.reader)[1].items():
            known = self.index.images.setdefault(name, ImageEntry(file))
            if known.file != file:
                raise DataError(
                    f"{self.index.folder}: the image {name} was {known.file} before and is {file} "
                    "now. Restore the name, or start a new workspace"
                )

    def named(self, names: Sequence[str] | None) -> list[str]:
        """Return the images that a user names, or all.

        Raises:
            ConfigError: there is no image of a name.
        """
        known = self.index.images
        for name in names or ():
            if name not in known:
                raise ConfigError(
                    f"names: the workspace has no image {name!r}{nearest(name, known)}; an image "
                    "is named as its file, without the ending"
                )
        return list(known) if names is None else list(dict.fromkeys(names))

    def proposed(self, name: str) -> ProposedMask | None:
        """Return the last proposal for an image."""
        return next((one for one in reversed(self.index.proposals) if one.image == name), None)

    def maker_of(self, proposal: ProposedMask) -> MaskMaker:
        """Return what made a proposal."""
        return self.index.makers[proposal.call - 1]

    def current(self, *, held_out: bool) -> dict[str, AcceptedMask]:
        """Return the last accepted mask of each training image, or of each held-out one."""
        last = {one.image: one for one in self.index.accepted}
        return {name: one for name, one in last.items() if one.held_out is held_out}

    def unlabelled(self) -> list[str]:
        """Return the images without an accepted mask."""
        labelled = {one.image for one in self.index.accepted}
        return [name for name in self.index.images if name not in labelled]

    def last_adapter(self) -> Path | None:
        """Return the adapter of the last finished round; None before the first."""
        done = [one for one in self.index.rounds if one.run_dir]
        return self.root / done[-1].run_dir / "adapter" if done else None


def find_images(folder: Path, reader: str | None = None) -> tuple[str, dict[str, str]]:
    """List the images of a folder.

    Args:
        folder: the folder; folders in it are not entered.
        reader: the reader that must read all of them; None: that of the first.

    Returns:
        The name of the reader, and the file of each image by its name.

    Raises:
        DataError: there is no image, formats are mixed or cannot train, or two have one name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images; there is no such folder")
    found: dict[str, str] = {}
    for path in list_folder(folder)[0]:
        own = reader_for(path)
        if own.name not in READERS:
            raise DataError(
                f"{path}: the data engine reads pictures, NIfTI, NRRD and MetaImage; this is "
                f"{own.name}. Convert the volumes to NIfTI"
            )
        reader = reader or own.name
        if own.name != reader:
            raise DataError(
                f"{path}: the images of a workspace have one format, {reader}; this one is "
                f"{own.name}. Put it into another folder"
            )
        name = stem(path, own)
        if name in found:
            raise DataError(f"{path}: {found[name]} has the same name; rename one of them")
        found[name] = path.name
    return str(reader), found


def reading_of(how: ReaderOptions) -> dict[str, Any]:
    """Return the options that decide what an image is, as plain values."""
    channel = list(how.channel) if isinstance(how.channel, tuple) else how.channel
    return {
        "axis": how.axis,
        "channel": channel,
        "spacing": how.spacing,
        "exif": how.exif or "apply",
    }


def create_workspace(
    root: Path, folder: Path, classes: Sequence[str], how: ReaderOptions, *, objects: bool
) -> None:
    """Make a workspace for the images of a folder.

    Args:
        root: the new folder; it may be there, and empty.
        folder: the folder of the images.
        classes: class names of the masks.
        how: how the images are read.
        objects: masks hold object numbers.

    Raises:
        DataError: there is something in the folder, or no image.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: expected a new or empty folder for the workspace")
    reader, images = find_images(folder)
    root.mkdir(parents=True, exist_ok=True)
    index = Index(str(folder.resolve()), reader, list(classes), objects, reading_of(how))
    index.images = {name: ImageEntry(file) for name, file in images.items()}
    Workspace(root, index).save()


@contextmanager
def opened(root: Path) -> Iterator[Workspace]:
    """Open a workspace for one process; what the block changes is saved when it ends.

    Raises:
        DataError: there is no workspace, its index is broken, or another process has it open.
    """
    if not (root / INDEX).is_file():
        raise DataError(
            f"workspace={root}: there is no workspace here ({INDEX} is missing); begin one with "
            "samadapt engine propose workspace=DIR input=IMAGES"
        )
    try:
        lock = FileLock(root / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise DataError(
            f"{root}: another stage of the engine is running in this workspace; wait until it ends"
        ) from None
    try:
        workspace = Workspace(root, _read_index(root))
        try:
            yield workspace
        finally:
            # Also after an error or Ctrl-C: what is on the disk by now is recorded.
            workspace.save()
    finally:
        lock.release()


def _read_index(root: Path) -> Index:
    """Read ``index.json``.

    Raises:
        DataError: it is broken, of a later version, or names files outside of the workspace.
    """
    path = root / INDEX
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise DataError(
                f"{path}: expected an index of version {FORMAT}; got {content['format']}. Use the "
                "samadapt that wrote it"
            )
        index = TypeAdapter(Index).validate_python(content)
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: expected the index of a workspace; it is broken ({reason})"
        ) from (error)
    files = [proposal.file for proposal in index.proposals]
    files += [accepted.file for accepted in index.accepted]
    files += [one.run_dir for one in index.rounds if one.run_dir]
    for file in files:
        if not lies_inside(file, root):
            raise DataError(f"{path}: names {file}, which is outside of the workspace")
    return index


def now() -> str:
    """Return the time in UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
