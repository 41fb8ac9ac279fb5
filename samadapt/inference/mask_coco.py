"""One COCO JSON file of the masks of many pictures, written in time that grows with their number.

While masks are looked for, ``NAME_rows.jsonl`` beside ``NAME.json`` gets a line for each picture:
its entry of COCO's ``images`` and its ``annotations``. At the end the lines become ``NAME.json``
and are removed. So a call that is killed loses no finished picture, and ``NAME.json`` is complete
whenever it is there. A line that was cut off is dropped, and its picture is done anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from samadapt.errors import DataError
from samadapt.sam.mask_tools import area_of, compress
from samadapt.system import atomic

if TYPE_CHECKING:
    from samadapt.sam.automatic_masks import FoundMask

Row = dict[str, Any]
"""``"image"``, an entry of COCO's images, and ``"annotations"``, those of its masks."""


def rows_file(target: Path) -> Path:
    """Return the file that holds a line for each picture until the COCO file is complete."""
    return target.with_name(f"{target.stem}_rows.jsonl")


class MaskCoco:
    """A COCO file to which pictures are added, as long as it is not finished.

    Args:
        target: the COCO file.
        category: name of what the masks show.

    Attributes:
        done: names of the pictures that were added, by this call or by earlier ones.

    Raises:
        DataError: ``target`` is there and was not written by ``samadapt masks``, or shows another
            category.
    """

    def __init__(self, target: Path, category: str) -> None:
        self.target, self.category = target, category
        self._rows = rows_file(target)
        self.done: set[str] = set()
        self._masks = 0
        if self._rows.is_file():
            self._drop_cut_line()
        # Lines that are there hold all that the target holds.
        known = _lines(self._rows) if self._rows.is_file() else iter(self._written())
        for row in known:
            self._count(row)

    def add(self, name: str, height: int, width: int, masks: Sequence[FoundMask]) -> None:
        """Add a picture and its masks.

        Raises:
            WriteError: the line cannot be written.
        """
        if not self._rows.is_file():
            # The lines take the place of the target, in one step, before they grow.
            before = "".join(f"{json.dumps(row)}\n" for row in self._written())
            atomic.write_text(self._rows, before)
        row = coco_row(name, height, width, masks, len(self.done) + 1, self._masks + 1)
        atomic.append_text(self._rows, f"{json.dumps(row)}\n")
        self._count(row)

    def finish(self) -> None:
        """Write the target from the lines, and remove them; without lines it is as it should be.

        Raises:
            WriteError: the target cannot be written. The lines stay.
        """
        if self._rows.is_file():
            write_coco(self.target, self.category, lambda: _lines(self._rows))
            self._rows.unlink()

    def _count(self, row: Row) -> None:
        self.done.add(row["image"]["file_name"])
        self._masks += len(row["annotations"])

    def _drop_cut_line(self) -> None:
        """Keep the lines up to the first that is not complete, and remove the rest."""
        good = 0
        with self._rows.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n") or not _is_row(line):
                    break
                good += len(line)
        if good < self._rows.stat().st_size:
            with self._rows.open("rb+") as stream:
                stream.truncate(good)

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


def coco_row(
    name: str,
    height: int,
    width: int,
    masks: Sequence[FoundMask],
    image_id: int = 1,
    first_id: int = 1,
) -> Row:
    """Return the entries of a picture; ``score`` is the predicted IoU.

    Args:
        name: file name of the picture.
        height: of the picture in pixels.
        width: of the picture in pixels.
        masks: the masks that were found in it.
        image_id: number of the picture.
        first_id: number of its first mask.
    """
    own = {"image_id": image_id, "category_id": 1, "iscrowd": 0}
    return {
        "image": {"id": image_id, "file_name": name, "height": height, "width": width},
        "annotations": [
            mask_entry(number, mask) | own | {"score": mask.iou}
            for number, mask in enumerate(masks, start=first_id)
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


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def _is_row(line: bytes) -> bool:
    """Return whether a line is complete; after a crash of the machine it may hold anything."""
    with suppress(ValueError, KeyError, TypeError):
        row = json.loads(line)
        return isinstance(row["image"]["file_name"], str) and isinstance(row["annotations"], list)
    return False
