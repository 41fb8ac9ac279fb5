"""One COCO JSON file of the masks of many pictures, written in time that grows with their number.

While masks are looked for, ``NAME_rows.jsonl`` beside ``NAME.json`` gets a line for each picture:
its entry of COCO's ``images`` and its ``annotations``. At the end the lines become ``NAME.json``
and are removed. So a call that is killed loses no finished picture, and ``NAME.json`` is complete
whenever it is there. Parts of a folder have lines of their own until all have ended
(``folder_work.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from samadapt.errors import DataError
from samadapt.inference.folder_work import FolderWork
from samadapt.inference.journal import Journal
from samadapt.sam.mask_tools import area_of, compress
from samadapt.system import atomic, processes

if TYPE_CHECKING:
    from samadapt.sam.automatic_masks import FoundMask

Row = dict[str, Any]
"""``"image"``, an entry of COCO's images, and ``"annotations"``, those of its masks."""


def rows_file(target: Path) -> Path:
    """Return the file that holds a line for each picture until the COCO file is complete."""
    return target.with_name(f"{target.stem}_rows.jsonl")


def written_files(target: Path) -> list[Path]:
    """Return the files that ``MaskCoco`` may have written for a target."""
    rows = rows_file(target)
    return [target, rows, *Journal(rows, _is_row).parts]


class MaskCoco:
    """A COCO file to which pictures are added, as long as it is not finished.

    Several processes may add pictures; all of them make this object together.

    Args:
        target: the COCO file.
        category: name of what the masks show.
        work: the part of a folder that is done, or the whole; None: the whole, and there are no
            parts.

    Attributes:
        done: names of the pictures that were added before or by this process.

    Raises:
        DataError: ``target`` is there and was not written by ``samadapt masks``, or shows another
            category.
    """

    def __init__(self, target: Path, category: str, work: FolderWork | None = None) -> None:
        self.target, self.category, self._work = target, category, work
        rows = rows_file(target)
        self._is_part = work is not None and work.part is not None
        self._whole = Journal(rows, _is_row)
        self._journal = self._whole if work is None else work.own_lines(rows, _is_row)
        self.done: set[str] = processes.by_first(self._known)

    def add(self, name: str, height: int, width: int, masks: Sequence[FoundMask]) -> None:
        """Add a picture and its masks.

        Raises:
            WriteError: the line cannot be written.
        """
        if processes.is_first() and not self._is_part:
            self._begin()
        self._journal.append(coco_row(name, height, width, masks))
        self.done.add(name)

    def finish(self, order: Sequence[str] = ()) -> None:
        """Write the target from the lines, and remove them; without lines it is as it should be.

        The first process calls this alone, and of parts the one that ends last.

        Args:
            order: names of pictures in the order of the file. Those that are not named come before
                them, as they were added.

        Raises:
            WriteError: the target cannot be written. The lines stay.
        """
        self._collect()
        if not self._whole.path.is_file():
            return
        places = {row["image"]["file_name"]: place for place, row in self._whole.entries()}
        named = [name for name in dict.fromkeys(order) if name in places]
        others = [name for name in places if name not in set(named)]
        ordered = [places[name] for name in (*others, *named)]
        write_coco(self.target, self.category, lambda: self._numbered(ordered))
        self._whole.remove()

    def _numbered(self, places: Sequence[int]) -> Iterator[Row]:
        """Yield the rows at these places of the lines, with the numbers of one file."""
        masks = 0
        for number, place in enumerate(places, start=1):
            row = self._whole.at(place)
            row["image"]["id"] = number
            for one in row["annotations"]:
                masks += 1
                one.update(id=masks, image_id=number)
            yield row

    def _known(self) -> set[str]:
        """Return the names of the pictures that are done."""
        if self._is_part:
            self._journal.collect()
        else:
            self._collect()
        # Lines that are there hold all that the target holds.
        has_lines = self._whole.path.is_file()
        known = self._whole.lines() if has_lines else iter(self._written())
        names = {row["image"]["file_name"] for row in known}
        return names | {row["image"]["file_name"] for part in self._parts for row in part.lines()}

    @property
    def _parts(self) -> list[Journal]:
        """The lines of the parts of a folder that are not collected yet."""
        return [] if self._work is None else self._work.part_lines(_is_row)

    def _collect(self) -> None:
        parts = self._parts
        if parts or self._whole.parts:
            self._begin()
        self._whole.collect()
        for part in parts:
            self._whole.take(part)

    def _begin(self) -> None:
        """Let the lines take the place of the target, in one step, before they grow."""
        if not self._whole.path.is_file():
            before = "".join(f"{json.dumps(row)}\n" for row in self._written())
            atomic.write_text(self._whole.path, before)

    def _written(self) -> list[Row]:
        """Return the pictures of a target that an earlier call finished."""
        if not self.target.is_file():
            return []
        try:
            content = json.loads(self.target.read_text(encoding="utf-8"))
            names = [entry["name"] for entry in content["categories"]]
            rows = {image["id"]: {"image": image, "annotations": []} for image in content["images"]}
            for annotation in content["annotations"]:
                rows[annotation["image_id"]]["annotations"].append(annotation)
            known = all("file_name" in image for image in content["images"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.target}: expected COCO JSON to continue; it is broken"
            ) from error
        if not known or names != [self.category]:
            raise DataError(
                f"{self.target}: expected COCO JSON of the category {self.category}; it has "
                f"{names}. Choose another output, or write over it with overwrite=true"
            )
        return list(rows.values())


def coco_row(name: str, height: int, width: int, masks: Sequence[FoundMask]) -> Row:
    """Return the entries of a picture, as in a file of its own; ``score`` is the predicted IoU.

    Args:
        name: file name of the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        masks: the masks that were found in it.
    """
    own = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    return {
        "image": {"id": 1, "file_name": name, "height": height, "width": width},
        "annotations": [
            mask_entry(number, mask) | own | {"score": mask.iou}
            for number, mask in enumerate(masks, start=1)
        ],
    }


def mask_entry(number: int, mask: FoundMask) -> dict[str, Any]:
    """Return the entries of a mask that COCO and SA-1B share."""
    x0, y0, x1, y1 = mask.box.tolist()
    return {
        "id": number,
        "segmentation": compress(mask.runs),
        "area": area_of(mask.runs),
        # COCO's boxes are [x, y, w, h], and the box of a mask includes its last row and column.
        "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
        "predicted_iou": round(mask.iou, 6),
        "stability_score": round(mask.stability, 6),
    }


def write_coco(target: Path, category: str, rows: Callable[[], Iterator[Row]]) -> None:
    """Write a COCO file, one picture at a time, and replace an older one.

    Args:
        target: the file.
        category: name of what the masks show.
        rows: returns the pictures from the first one on; it is called twice.

    Raises:
        WriteError: the file cannot be written.
    """
    with atomic.file(target) as part, part.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('{"images": [')
        _write_items(stream, (row["image"] for row in rows()))
        stream.write('], "annotations": [')
        _write_items(stream, (one for row in rows() for one in row["annotations"]))
        stream.write(f'], "categories": {json.dumps([{"id": 1, "name": category}])}}}')


def _write_items(stream: TextIO, items: Iterator[dict[str, Any]]) -> None:
    for number, item in enumerate(items):
        stream.write((", " if number else "") + json.dumps(item))


def _is_row(entry: Any) -> bool:
    with suppress(KeyError, TypeError):
        name, masks = entry["image"]["file_name"], entry["annotations"]
        return isinstance(name, str) and isinstance(masks, list)
    return False
