"""Predictions as COCO JSON: an annotation for each object, with a run-length encoded mask."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.errors import MissingExtraError
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.inference.volumes import Segmentation


@dataclass
class CocoFile:
    """The content of one COCO JSON file, to which pictures are added.

    Attributes:
        classes: class names; category k is ``classes[k - 1]``.
        images: COCO's ``images``.
        annotations: COCO's ``annotations``.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """

    classes: Sequence[str]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        coco_masks()

    def add(self, name: str, found: Segmentation) -> None:
        """Add a picture and the objects that were found in it."""
        height, width, _ = found.labels.shape[-3:]
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        instances = np.zeros(1) if found.instances is None else found.instances[..., 0]
        for number, class_id in enumerate(found.instance_classes, start=1):
            mask = instances == number
            if mask.ndim == 3:  # one map for each class, because they may overlap
                mask = mask.any(axis=0)
            if not mask.any():
                continue
            # pycocotools wants column-major uint8 and returns the counts as bytes.
            encoded = coco_masks().encode(np.asfortranarray(mask, dtype=np.uint8))
            annotation: dict[str, Any] = {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": int(class_id),
                "segmentation": {
                    "size": [height, width],
                    "counts": encoded["counts"].decode("ascii"),
                },
                "area": int(coco_masks().area(encoded)),
                "bbox": [float(side) for side in coco_masks().toBbox(encoded)],
                "iscrowd": 0,
            }
            confidence = found.objects[number].confidence if number in found.objects else None
            if confidence is not None:
                annotation["score"] = confidence
            self.annotations.append(annotation)

    def extend(self, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
        """Add the pictures and annotations of another file; their numbers go on from its own."""
        pictures, objects = len(self.images), len(self.annotations)
        self.images += [image | {"id": pictures + image["id"]} for image in images]
        self.annotations += [
            one | {"id": objects + one["id"], "image_id": pictures + one["image_id"]}
            for one in annotations
        ]

    def text(self) -> str:
        """Return the content of the file."""
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": k, "name": n} for k, n in enumerate(self.classes, start=1)],
        }
        return json.dumps(content)

    def write(self, path: Path) -> None:
        """Write the file; replace an older one."""
        atomic.write_text(path, self.text())


def coco_masks() -> Any:
    """Return the mask functions of pycocotools.

    Raises:
        MissingExtraError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise MissingExtraError("pycocotools", "coco") from None
    return mask
