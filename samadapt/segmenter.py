"""An adapter directory in use: images and volumes to label maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from samadapt.data.reader import read_image, reader_for, write_prediction
from samadapt.data.types import Array, Volume
from samadapt.errors import AdapterError, DataError, PromptError, nearest
from samadapt.evaluation.embeddings import Embeddings
from samadapt.evaluation.inference import embed, segment_objects, segment_semantic
from samadapt.evaluation.loaded import Loaded, load_ready, make_ready
from samadapt.methods import store
from samadapt.methods.opening import open_base
from samadapt.prompts.manual import SlicePrompts, slice_prompts
from samadapt.prompts.objects import ObjectPrompts
from samadapt.training.precision import Precision, choose_device, choose_precision

if TYPE_CHECKING:
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.model import Sam

Given = tuple[SlicePrompts, SlicePrompts, SlicePrompts]
"""Boxes, points and point labels as the caller gave them."""

LARGE = 512
"""Model side in pixels above which slices are embedded one by one outside a GPU."""


def load_adapter(
    directory: str | Path,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    name: str = "default",
) -> Segmenter:
    """Load an adapter with its base model, ready to segment.

    The base is found by the name that the adapter records, or by the file that it was trained
    with if that is still there, and checked against the recorded hash.

    Args:
        directory: an adapter directory, as a run writes it.
        checkpoint: file of the base weights, if it is not where the adapter says.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"fp32"``, by the fastest exact way, so that masks do not depend on the
            machine; ``"bf16"``; or ``"auto"``: as in training, bf16 where that is clearly faster.
        name: by which ``Segmenter.use`` comes back to it, after ``Segmenter.add`` brought others.

    Raises:
        AdapterError: the directory is refused; names the file and the fault.
        WeightsError: the base weights are not found or are of another kind.
        ConfigError: this machine has no such device or precision.
    """
    target = choose_device(device)
    arithmetic = choose_precision(precision, target)
    directory = Path(directory).expanduser()
    record = store.read_record(directory)
    base, _ = open_base(directory, record, checkpoint)
    segmenter = Segmenter.__new__(Segmenter)
    segmenter._begin(load_ready(directory, base.to(target)), arithmetic, base, name)
    return segmenter


class Segmenter:
    """An adapted model that obeys its record: intensity, axis, geometry and prompt policy.

    Args:
        sam: the adapted model.
        record: what the adapter was trained for.
        precision: what it computes in; fp32 by default.

    ``add`` brings further adapters of the same base, ``use`` switches between them. Adapters that
    leave the encoder alone share the embeddings of the last images.

    Attributes:
        active: name of the adapter in use.
        precision: what it computes in, and why.

    Raises:
        ConfigError: the record's intensity rule is none.
        PromptError: the record's prompt policy is none.
        AdapterError: the record's preprocessing is not the model's.
    """

    def __init__(
        self, sam: Sam, record: store.AdapterRecord, precision: Precision | None = None
    ) -> None:
        """Read the rules from the record."""
        precision = precision or choose_precision("fp32", sam.device)
        self._begin(make_ready(sam, record, keeps_encoder=False), precision, None, "default")

    def _begin(self, first: Loaded, precision: Precision, base: Sam | None, name: str) -> None:
        self.precision = precision
        self._base = base
        self._adapters = {name: first}
        self._embeddings = Embeddings()
        self.use(name)

    @property
    def names(self) -> list[str]:
        """The adapters that can be used, in the order of their arrival."""
        return list(self._adapters)

    @property
    def sam(self) -> Sam:
        """The adapted model in use, in evaluation mode."""
        return self._now.sam

    @property
    def record(self) -> store.AdapterRecord:
        """The record of the adapter in use."""
        return self._now.record

    @property
    def policy(self) -> PromptPolicy:
        """The prompt policy of the adapter in use."""
        return self._now.policy

    @property
    def classes(self) -> list[str]:
        """Class names of the adapter in use; label k is ``classes[k - 1]``."""
        return list(self._now.record.classes)

    def add(self, directory: str | Path, name: str) -> None:
        """Load another adapter of the same base, which stays in memory once.

        Args:
            directory: an adapter directory.
            name: for ``use``.

        Raises:
            AdapterError: it is refused, is for another base, or the name is taken.
        """
        if name in self._adapters:
            raise AdapterError(f"there is an adapter {name!r} already; remove it, or name another")
        if self._base is None:
            raise AdapterError(
                "this segmenter was made from an adapted model; one from "
                "samadapt.load_adapter(directory) can take further adapters"
            )
        self._adapters[name] = load_ready(Path(directory).expanduser(), self._base)

    def use(self, name: str) -> None:
        """Segment with another adapter from now on; costs nothing.

        Raises:
            AdapterError: there is none of that name.
        """
        if name not in self._adapters:
            self._unknown(name)
        self.active, self._now = name, self._adapters[name]

    def remove(self, name: str) -> None:
        """Forget an adapter that is not in use.

        Raises:
            AdapterError: there is none of that name, or it is in use.
        """
        if name not in self._adapters:
            self._unknown(name)
        if name == self.active:
            raise AdapterError(f"{name!r} is in use; use another one before removing it")
        encoder = self._adapters.pop(name).encoder
        if encoder not in [adapter.encoder for adapter in self._adapters.values()]:
            self._embeddings.forget(encoder)

    def _unknown(self, name: str) -> NoReturn:
        raise AdapterError(
            f"there is no adapter {name!r}; there are {', '.join(self._adapters)}"
            f"{nearest(name, self._adapters)}"
        )

    def segment(
        self,
        image: ArrayLike | str | Path,
        *,
        boxes: SlicePrompts = None,
        points: SlicePrompts = None,
        point_labels: SlicePrompts = None,
        channel: int | str | None = None,
    ) -> Array:
        """Segment an image or a volume.

        An adapter trained without prompts labels every pixel with its class and takes none.
        One trained with boxes or points needs them and labels the objects 1; an object is a box,
        a set of points, or both, and objects are united.

        A volume's slices count from the left, the back or below (0 is the first), along the axis
        that the adapter was trained on. Coordinates on a slice are those of the upright picture,
        (x, y) in pixels from its top left, as the overlays of a run show it. Slices without a
        prompt in a mapping are left empty.

        Args:
            image: (h, w) or (h, w, 3) RGB, in the values of the files trained on (HU for CT); or
                the path of a file that ``samadapt.data.read_image`` reads, or the folder of a
                DICOM series.
            boxes: (p, 4) or (4,) XYXY pixels of the original image. For a volume: these for every
                slice, or ``{slice index: boxes}``.
            points: (k, 2) (x, y) for one object, or (p, k, 2); for a volume as the boxes.
            point_labels: (k,) or (p, k); 1 foreground, 0 background, -1 padding; None: all 1.
            channel: which volume of a 4D file: its index, or its name in a ``dataset.json`` in or
                above the file's folder.

        Returns:
            uint8 labels: (h, w) for an image; for a volume (x, y, z) in the axes of the file, as
            nibabel orders them.

        Raises:
            PromptError: a prompt is missing, not wanted, or not within the image.
            DataError: the image cannot be read or is not of these shapes.
        """
        prompts = (boxes, points, point_labels)
        if not isinstance(image, str | Path):
            volume = _as_volume(np.asarray(image))
            return self._segment(volume, prompts)[:, :, 0]
        volume = self._read(Path(image), channel)
        labels = self._segment(volume, prompts)
        if volume.source is None:
            return labels[:, :, 0]
        from samadapt.data.nifti_grid import to_source

        return to_source(labels, volume.source)

    def predict_file(
        self,
        input: str | Path,
        output: str | Path,
        *,
        boxes: SlicePrompts = None,
        points: SlicePrompts = None,
        point_labels: SlicePrompts = None,
        channel: int | str | None = None,
    ) -> dict[str, Any]:
        """Segment a file and write the labels: PNG for a picture, NIfTI for a volume.

        A PNG holds the class number of each pixel; a NIfTI file lies on the grid of its source,
        with its affine. Prompts as in ``segment``.

        Args:
            input: picture, volume, or folder of a DICOM series.
            output: ``.png`` for a picture, ``.nii.gz`` or ``.nii`` for a volume (also ``.nrrd``
                or ``.mha`` for NRRD and MetaImage, ``.npz`` for MedSAM's); replaced if it exists.
            boxes: see ``segment``.
            points: see ``segment``.
            point_labels: see ``segment``.
            channel: see ``segment``.

        Returns:
            ``{"output": path, "shape": (h, w, d) as sliced, "voxels": {class name: count}}``.

        Raises:
            DataError: a file cannot be read or written; said before anything is computed where
                that can be known.
            PromptError: as ``segment``.
        """
        source, target = Path(input).expanduser(), Path(output).expanduser()
        check_files(source, target)
        volume = self._read(source, channel)
        labels = self._segment(volume, (boxes, points, point_labels))
        write_prediction(labels, volume, target)
        counts = np.bincount(labels.ravel(), minlength=len(self.classes) + 1)
        names = self.classes if self.policy.is_semantic or len(self.classes) == 1 else ["object"]
        voxels = {name: int(counts[label]) for label, name in enumerate(names, start=1)}
        return {"output": target, "shape": volume.shape, "voxels": voxels}

    def _read(self, path: Path, channel: int | str | None) -> Volume:
        return read_image(path.expanduser(), self.record.axis, channel)

    def _segment(self, volume: Volume, given: Given) -> Array:
        """Labels (h, w, d) uint8, arranged as the volume."""
        depth = volume.shape[2]
        prompts = self._prompts(given, volume)
        rule = self._now.intensity
        values = rule(volume)
        labels = np.zeros(volume.shape, dtype=np.uint8)
        wanted = list(range(depth)) if prompts is None else [i for i in prompts if len(prompts[i])]
        for start in range(0, len(wanted), self._batch_size):
            batch = wanted[start : start + self._batch_size]
            images = [rule.picture(values, index, is_color=volume.is_color) for index in batch]
            objects = None if prompts is None else [prompts[index] for index in batch]
            with self.precision.autocast(self.sam.device):
                planes = self._planes(images, objects)
            for index, plane in zip(batch, planes, strict=True):
                labels[:, :, index] = plane
        return labels

    def _planes(self, images: list[Array], objects: list[ObjectPrompts] | None) -> list[Array]:
        """Labels (h, w) of images (h, w, 3), with the objects prompted in each."""
        if len(self._adapters) > 1:
            embeddings, frames = self._embeddings(self.sam, self._now.encoder, images)
        else:
            embeddings, frames = embed(self.sam, images)
        if objects is None:
            return segment_semantic(self.sam, embeddings, frames, len(self.classes))
        return segment_objects(
            self.sam,
            embeddings,
            frames,
            objects,
            threshold=self.record.threshold,
            multimask=self.policy.is_ambiguous,
        )

    @property
    def _batch_size(self) -> int:
        is_cpu = self.sam.device.type == "cpu"
        return 1 if is_cpu and self.sam.image_size > LARGE else 8

    def _prompts(self, given: Given, volume: Volume) -> dict[int, ObjectPrompts] | None:
        """Checked prompts by slice; None for an adapter that takes none.

        Raises:
            PromptError: a prompt is missing, not wanted, or wrong.
        """
        if self.policy.is_semantic:
            if any(value is not None for value in given):
                raise PromptError(
                    "this adapter was trained without prompts and finds its classes "
                    f"({', '.join(self.classes)}) by itself; leave boxes and points out"
                )
            return None
        if all(value is None for value in given):
            raise PromptError(
                f"this adapter was trained with {self.policy.kind} prompts and needs one; give "
                "boxes=[[x0, y0, x1, y1]] or points=[[x, y]], in pixels of the image"
            )
        return slice_prompts(*given, volume.shape)


def _as_volume(image: Array) -> Volume:
    """An array as a picture.

    Raises:
        DataError: another shape, no numbers, or NaN.
    """
    is_color = image.ndim == 3 and image.shape[2] == 3
    if not (image.ndim == 2 or is_color) or image.size == 0 or image.dtype.kind not in "uifb":
        raise DataError(
            f"an image must be numbers (h, w) or (h, w, 3) RGB; got {image.dtype} {image.shape}. "
            "Give a volume as the path of a NIfTI file"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError("the image holds NaN or infinite values; replace them")
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    return Volume(image if is_color else image[:, :, None], is_color=is_color)


def check_files(source: Path, target: Path) -> None:
    """Refuse, before any model is loaded, a file that cannot be read or written.

    Raises:
        DataError: naming the file.
    """
    if not source.exists():
        raise DataError(f"{source}: the input file does not exist")
    if target.is_dir():
        raise DataError(f"{target}: output must be a file name; it is a folder")
    if not target.parent.is_dir():
        raise DataError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: output must not be the input file")
    endings = reader_for(source).output_suffixes
    if not target.name.lower().endswith(endings):
        raise DataError(
            f"{target}: the labels of {source.name} are written as {' or '.join(endings)}; "
            "choose such a name"
        )
