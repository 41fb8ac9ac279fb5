"""Load an adapter directory and segment images and volumes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from samadapt.adapters.base_model import open_base
from samadapt.adapters.record import UNET_RECORD, AdapterRecord, digest_of, read_record
from samadapt.baselines.store import load_unet
from samadapt.data.channels import Channel
from samadapt.data.formats.base import ReaderOptions
from samadapt.data.formats.nifti.affine import SpacingSource
from samadapt.data.formats.shared.exif import Exif
from samadapt.errors import AdapterError, DataError, nearest
from samadapt.inference.bundle import AdapterBundle, load_bundle, make_bundle
from samadapt.inference.drawn_files import with_drawn_files
from samadapt.inference.embedding_cache import EmbeddingCache
from samadapt.inference.ensemble import check_agreement, member_directories
from samadapt.inference.files import (
    PredictionPlan,
    plan_prediction,
    read_one,
)
from samadapt.inference.inputs import Source, chosen_channels, is_source, reader_options
from samadapt.inference.objects import FoundObject
from samadapt.inference.options import Carry, PredictionOptions, Propagate, SecondPassBy, Tta
from samadapt.inference.planned_predictions import predict_planned
from samadapt.inference.prediction_store import PredictionStore, recorded_options
from samadapt.inference.volumes import Progress, VolumePredictor, as_picture
from samadapt.prompts.user_drawings import SliceMasks, SliceScribbles
from samadapt.prompts.user_prompts import SlicePrompts
from samadapt.system.arrays import Array
from samadapt.training.compilation import check_compile, compile_parts
from samadapt.training.precision import Precision, choose_device, choose_precision

if TYPE_CHECKING:
    from samadapt.data.intensity import IntensityRule
    from samadapt.data.types import Volume
    from samadapt.inference.volumes import Segmentation
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.model import Sam
    from samadapt.sam.segmentation_model import SegmentationModel


def load_adapter(
    directory: str | Path | Sequence[str | Path],
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    name: str = "default",
    compile: bool = False,
) -> Segmenter:
    """Load an adapter, or several, with their base model, ready to segment.

    The base weights come from ``checkpoint`` if it is given. Otherwise a file of the recorded name
    is looked for in the adapter's directory and the working folder. If there is none, the published
    weights of the recorded model are used. The weights are checked against the recorded hash.

    Several adapters segment together: the probabilities that each of them gives are averaged. They
    share one base model in memory, and the work of the blocks that none of them changed.

    Args:
        directory: an adapter directory, as a run writes it; ``"hf:USER/NAME"`` or
            ``"hf:USER/NAME@REVISION"``, an adapter on the Hugging Face Hub; the run directory of a
            cross-validation, whose folds then segment together; or a list of them. Or ``baseline/``
            of a run with ``baseline=unet``, a U-Net that needs no base.
        checkpoint: file of the base weights; None: they are found as described above.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"mps"``.
        precision: ``"fp32"``, so that masks do not depend on the machine; ``"bf16"``; or
            ``"auto"``, as in training: bf16 if that is clearly faster.
        name: name for ``Segmenter.use``, if ``Segmenter.add`` brings further adapters.
        compile: run the encoder's blocks and the decoder through ``torch.compile``. Masks may
            differ in single pixels at their borders.

    Raises:
        AdapterError: a directory is refused, or adapters differ in what they see or mean; names
            the file and the fault.
        WeightsError: the base weights are not found or are of another kind.
        ConfigError: this machine has no such device or precision or cannot compile, or a name of
            the Hub is wrong.
        DownloadError: the Hub cannot be reached, and the adapter is not in the cache.
    """
    target = choose_device(device)
    if compile:
        check_compile(target)
    arithmetic = choose_precision(precision, target)
    directories = member_directories(directory)
    if len(directories) == 1 and (directories[0] / UNET_RECORD).is_file():
        unet, kept = load_unet(directories[0])
        if compile:
            compile_parts(unet)
        return Segmenter(unet.to(target), kept, arithmetic)
    records = [read_record(one) for one in directories]
    check_agreement(directories, records)
    base, _ = open_base(directories[0], records[0], checkpoint)
    base = base.to(target)
    # Not by __init__, which takes an adapted model: with the base, further adapters can be added.
    segmenter = Segmenter.__new__(Segmenter)
    bundles = _load_members(directories, records, base, compiled=compile)
    segmenter._set_up(bundles, arithmetic, base, name, compiled=compile)
    return segmenter


def _load_members(
    directories: Sequence[Path], records: Sequence[AdapterRecord], base: Sam, *, compiled: bool
) -> list[AdapterBundle]:
    """Load adapters onto one base model."""
    bundles = [load_bundle(*one, base) for one in zip(directories, records, strict=True)]
    for bundle in bundles if compiled else ():
        compile_parts(bundle.sam)
    return bundles


@dataclass(frozen=True)
class SegmentedImage:
    """What was found in an image or a volume, on the grid that ``Segmenter.segment`` describes.

    Attributes:
        labels: what ``Segmenter.segment`` returns.
        probabilities: (K, ...) float32 probability of each class, 0..1 in steps of 1/255, if it was
            asked for.
        uncertainty: float32 entropy of the probabilities, as a share of the largest one, 0..1, if
            it was asked for. It is log2(K + 1) bits for K classes and the background, and one bit
            for prompted objects and for classes that may overlap, of which the most uncertain one
            counts. Pixels outside of all prompted slices have 0.
        mutual_information: float32, 0..1, if it was asked for: how much of that entropy is
            disagreement between the adapters and mirrored copies.
        objects: the objects, if they were asked for, in pixels of the upright picture or slices.
        no_confidence: why the objects have no confidence; empty if they have one, or were not asked
            for.
        instances: int32 number of the object of each pixel from 1, 0 for none, on the grid of
            ``labels``, if the adapter separates objects (``head=instances``) or objects were asked
            for. The k-th of ``objects`` has the number k unless nothing of an object was left.
    """

    labels: Array
    probabilities: Array | None = None
    uncertainty: Array | None = None
    mutual_information: Array | None = None
    objects: Sequence[FoundObject] = ()
    no_confidence: str = ""
    instances: Array | None = None


class Segmenter:
    """An adapted model that segments as its record says: intensity, axis, geometry and prompts.

    ``add`` loads further adapters of the same base model and ``use`` switches between them.
    Adapters that leave the image encoder unchanged share the embeddings of the last images.

    Args:
        sam: the adapted model.
        record: what the adapter was trained for.
        precision: what the model computes in; fp32 by default.

    Attributes:
        active: name of the adapter in use.
        precision: what the model computes in, and why.

    Raises:
        ConfigError: the record's intensity rule is not valid.
        PromptError: the record's prompt policy is not valid.
        AdapterError: the record's preprocessing is not that of the model.
    """

    def __init__(
        self, sam: SegmentationModel, record: AdapterRecord, precision: Precision | None = None
    ) -> None:
        """Read the rules from the record."""
        precision = precision or choose_precision("fp32", sam.device)
        self._set_up([make_bundle(sam, record, keeps_encoder=False)], precision, None, "default")

    def _set_up(
        self,
        first: Sequence[AdapterBundle],
        precision: Precision,
        base: Sam | None,
        name: str,
        *,
        compiled: bool = False,
    ) -> None:
        self.precision = precision
        self._compiled = compiled
        self._base = base
        self._adapters = {name: list(first)}
        self._embeddings = EmbeddingCache()
        self.use(name)

    @property
    def _active_bundle(self) -> AdapterBundle:
        """The first member in use, which stands for all: they differ in their weights alone."""
        return self._members[0]

    @property
    def names(self) -> list[str]:
        """Names of the loaded adapters, in the order in which they were loaded."""
        return list(self._adapters)

    @property
    def member_count(self) -> int:
        """Number of adapters in use that predict together."""
        return len(self._members)

    @property
    def sam(self) -> SegmentationModel:
        """The adapted model in use, in evaluation mode; of several members the first."""
        return self._active_bundle.sam

    @property
    def record(self) -> AdapterRecord:
        """The record of the adapter in use; of several members the first."""
        return self._active_bundle.record

    @property
    def policy(self) -> PromptPolicy:
        """The prompt policy of the adapter in use."""
        return self._active_bundle.policy

    @property
    def intensity(self) -> IntensityRule:
        """The rule of the adapter in use that maps the values of the files to 0..255."""
        return self._active_bundle.intensity

    @property
    def stack(self) -> int:
        """Number of slices of a volume that the adapter in use sees together."""
        return self._active_bundle.stack

    @property
    def classes(self) -> list[str]:
        """Class names of the adapter in use; label k is ``classes[k - 1]``."""
        return list(self._active_bundle.record.classes)

    def add(self, directory: str | Path | Sequence[str | Path], name: str) -> None:
        """Load another adapter of the same base model, which is held in memory once.

        Args:
            directory: an adapter directory, or several; see ``load_adapter``.
            name: name for ``use``.

        Raises:
            AdapterError: the adapter is refused or is for another base, or the name is taken.
        """
        if name in self._adapters:
            raise AdapterError(
                f"there is an adapter {name!r} already; remove it, or choose another name"
            )
        if self._base is None:
            raise AdapterError(
                "this segmenter was made from an adapted model; one from "
                "samadapt.load_adapter(directory) can take further adapters"
            )
        directories = member_directories(directory)
        records = [read_record(one) for one in directories]
        check_agreement(directories, records)
        self._adapters[name] = _load_members(
            directories, records, self._base, compiled=self._compiled
        )

    def use(self, name: str) -> None:
        """Segment with another loaded adapter from now on. This costs no time.

        Raises:
            AdapterError: no adapter has this name.
        """
        if name not in self._adapters:
            self._unknown(name)
        self.active, self._members = name, self._adapters[name]

    def remove(self, name: str) -> None:
        """Drop a loaded adapter that is not in use.

        Raises:
            AdapterError: no adapter has this name, or it is in use.
        """
        if name not in self._adapters:
            self._unknown(name)
        if name == self.active:
            raise AdapterError(f"{name!r} is in use; use another one before removing it")
        dropped = [member.encoder for member in self._adapters.pop(name)]
        # Adapters with the encoder of the base share its embeddings; the last of them drops these.
        left = [member.encoder for members in self._adapters.values() for member in members]
        for encoder in dropped:
            if encoder not in left:
                self._embeddings.forget(encoder)

    def _unknown(self, name: str) -> NoReturn:
        raise AdapterError(
            f"there is no adapter {name!r}; there are {', '.join(self._adapters)}"
            f"{nearest(name, self._adapters)}"
        )

    def segment(
        self,
        image: ArrayLike | str | Path | Sequence[str | Path],
        *,
        channel: Channel | Sequence[Channel] | None = None,
        spacing: SpacingSource | None = None,
        series: str | None = None,
        progress: Progress | None = None,
        boxes: SlicePrompts = None,
        points: SlicePrompts = None,
        point_labels: SlicePrompts = None,
        scribbles: SliceScribbles | str | Path = None,
        scribble_labels: SliceScribbles = None,
        masks: SliceMasks | str | Path = None,
        labels: str | Sequence[str] | None = None,
        propagate: Propagate = False,
        carry: Carry = "prompt",
        slices: Sequence[int] | None = None,
        vanish: float = 0.1,
        keep_largest: bool | Sequence[str] | None = None,
        fill_holes: bool | Sequence[str] = False,
        tile: int | None = None,
        exif: Exif | None = None,
        tta: Tta | None = None,
        second_pass: SecondPassBy | None = None,
    ) -> Array:
        """Segment an image or a volume.

        An adapter that was trained without prompts labels every pixel with its class and takes no
        prompts. One that was trained with prompts needs them. An object is a box, a set of points,
        scribbles, a rough mask, or several of these, and has a class of the adapter. Where objects
        overlap, the higher logit wins.

        The slices of a volume are numbered from 0 along the axis that the adapter was trained on.
        Slice 0 is the leftmost (sagittal; the patient's left), rearmost (coronal) or lowest
        (axial). Coordinates on a slice are those of the upright picture, (x, y) in pixels from its
        top left, as the overlays of a run show it. If prompts are given by slice, the other slices
        are left empty, unless ``propagate`` carries an object there. The k-th box of every slice is
        object k; ``None`` in its place means that the object has no box on that slice.

        Args:
            image: (h, w) or (h, w, 3) RGB, in the values of the training files (HU for CT), or
                (h, w, c) for an adapter of c channels. Or the path of a file that
                ``samadapt.data`` reads, or of the folder of a DICOM series. If the channels are
                files: a list of them, a pattern with ``{channel}``, or the folder of the case.
            channel: which volumes of a 4D file, or which files: an index, a name, or a list of as
                many as the adapter sees; None: those that it was trained on.
            spacing: ``"affine"`` or ``"pixdim"``: which voxel size is true if a NIfTI header
                contradicts itself; None: as in training, where such a file may be refused.
            series: which of several DICOM series in a folder: a modality (``"CT"``), a series
                number, ``"largest"``, or the digits that the message shows; None: as in training.
            progress: called after each slice with the number of slices done and of all slices.
            boxes: (p, 4) or (4,) XYXY pixels of the original image. For a volume: these for every
                slice, or ``{slice index: boxes}``.
            points: (k, 2) (x, y) for one object, or (p, k, 2); for a volume as the boxes.
            point_labels: (k,) or (p, k); 1 foreground, 0 background, -1 padding; None: all 1.
            scribbles: a curve (k, 2) (x, y) for one object, or for each object a curve, a list of
                curves, or None; for a volume as the boxes; or a JSON file with such a value. They
                reach the model as points at equal distances along each curve.
            scribble_labels: 1 (inside) or 0 (background) in the place of each curve; None: all 1.
            masks: rough masks: (h, w) numbers of objects, or (p, h, w) masks that may overlap; for
                a volume ``{slice index: masks}``; or a file of the image's format and size. With
                several classes and without ``labels`` the numbers are those of classes.
            labels: class name of each object, or one for all. It is required if the adapter has
                several classes.
            propagate: carry each object in both directions from the slices on which it is prompted.
                Slices between two prompted ones are segmented from the nearer one. ``True``: by
                prompts that are made from the mask of the slice before; ``"memory"``: by the memory
                of SAM 2, which needs a SAM 2 and a weights file with it.
            carry: how a slice's mask prompts the next slice. ``"prompt"``: by the box around each
                part of the mask, a little wider, or for adapters trained with points by the
                innermost point. ``"mask"``: by the logits of the mask, as a mask prompt. This suits
                base models that were trained with mask prompts, such as SAM, but not LiteMedSAM.
                ``"both"``: by both.
            slices: [first, last] slice to which objects are carried; None: until they vanish.
            vanish: an object ends when its area falls below this share of its area on the slice
                on which it was prompted.
            keep_largest: keep only the largest component of each of these classes (True: of all
                classes), in 3D for a volume. None: of the classes that the adapter records, and
                only in volumes.
            fill_holes: fill the holes in these classes (True: in all classes), after
                ``keep_largest``. In a volume only cavities are filled: holes that are closed on all
                sides in 3D.
            tile: side in pixels of the tiles that a picture is cut into (``data/tiles.py``). An
                object gets its prompt in every tile that sees a part of its box, or one of its
                foreground points. None: as in training; 0: the picture is seen whole.
            exif: ``"apply"``: turn a picture file as its EXIF orientation says; ``"ignore"``:
                leave its pixels as they are stored; None: as in training, or ``"apply"``.
            tta: ``"flip"``: average the probabilities over the image and its mirrored copies, which
                are turned back: from left to right, and under a microscope also upside down.
                Refused for classes that name a side; see ``data/mirroring.py``.
            second_pass: ``"base"``: for an adapter that was trained without prompts. The components
                of each class prompt the base model, and its masks are averaged with the first ones
                where the two agree; see ``evaluation/second_pass.py``.

        Returns:
            uint8 labels: (h, w) for an image; in the axes and the shape of the file for a volume
            file. If the adapter's classes may overlap, masks of 0 and 1 with the class as an
            additional first axis.

        Raises:
            PromptError: a prompt is missing, not wanted or outside the image, or an option names
                a class that does not exist.
            DataError: the image cannot be read, or an array has none of the shapes that ``image``
                allows.
        """
        options = PredictionOptions(
            boxes=boxes,
            points=points,
            point_labels=point_labels,
            scribbles=scribbles,
            scribble_labels=scribble_labels,
            masks=masks,
            labels=labels,
            propagate=propagate,
            carry=carry,
            slices=slices,
            vanish=vanish,
            keep_largest=keep_largest,
            fill_holes=fill_holes,
            tile=tile,
            exif=exif,
            channel=channel,
            spacing=spacing,
            series=series,
            tta=tta,
            second_pass=second_pass,
        )
        return self._segment(image, options, progress).labels

    def predict(
        self,
        image: ArrayLike | str | Path | Sequence[str | Path],
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> SegmentedImage:
        """Segment an image or a volume, and say how sure the model is.

        Args:
            image: see ``segment``.
            progress: see ``segment``.
            options: prompts and options of ``segment``; ``probabilities=True``, ``objects=True``
                (class, box, area and confidence of each object), ``uncertainty=True`` or
                ``"mutual_information"``, which gives both maps.

        Returns:
            The labels, and what was asked for.

        Raises:
            PromptError: see ``segment``; or the disagreement of a single pass is asked for.
            DataError: see ``segment``.
        """
        return self._segment(image, PredictionOptions(**options), progress)

    def _segment(
        self,
        image: ArrayLike | str | Path | Sequence[str | Path],
        options: PredictionOptions,
        progress: Progress | None,
    ) -> SegmentedImage:
        predictor = self._predictor(options)
        if is_source(image):
            volume = read_one(image, self.reader_options(options))
        else:
            volume = as_picture(np.asarray(image), len(self._active_bundle.intensity.inputs))
        options = with_drawn_files(options, volume, self.reader_options(options))
        found = predictor.segment(volume, options, progress)
        labels = _on_grid(found.labels, volume)
        # The map of class k holds k, and the caller gets masks of 0 and 1.
        if self.record.overlapping:
            labels = (labels > 0).astype(np.uint8)
        probabilities, uncertainty, mutual_information = (
            None if values is None else _on_grid(values, volume)
            for values in (found.probabilities, found.uncertainty, found.mutual_information)
        )
        if probabilities is not None:
            probabilities = probabilities.astype(np.float32) / 255
        return SegmentedImage(
            labels=labels,
            probabilities=probabilities,
            uncertainty=uncertainty,
            mutual_information=mutual_information,
            objects=list(found.objects.values()),
            no_confidence=predictor.uncalibrated(options) if options.objects else "",
            instances=None if found.instances is None else _on_grid(found.instances, volume),
        )

    def segment_volume(
        self,
        volume: Volume,
        options: PredictionOptions,
        progress: Progress | None = None,
        *,
        instances: bool = False,
    ) -> Segmentation:
        """Segment an image that was read with ``reader_options``, in the frame of its slices.

        Args:
            volume: the image as read.
            options: prompts and options.
            progress: see ``segment``.
            instances: also number the objects.

        Raises:
            PromptError: see ``segment``.
            DataError: see ``segment``.
        """
        return self._predictor(options).segment(volume, options, progress, instances=instances)

    def predict_file(
        self,
        input: Source,
        output: str | Path,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Segment a file and write the labels in the format that the output's ending names.

        Args:
            input: a file that ``samadapt.data`` reads, or the folder of a DICOM series. If the
                channels are files, see ``inference/inputs.py``.
            output: the file to write; see ``inference/outputs.py``. It is replaced if it exists.
            progress: see ``segment``.
            options: prompts and options of ``segment``; and ``probabilities=True``, which also
                writes the probability of each class beside the output:
                ``NAME_probabilities.nii.gz``, 4D, in steps of 1/255, volume k - 1 for class k; for
                a picture ``NAME_probabilities.npz`` with uint8 (K, h, w), 255 for 1.

        Returns:
            ``{"output": path, "shape": (h, w, d) as sliced, "voxels": {class name: count}}``;
            ``"probabilities": path`` if they were asked for; ``"masks": {class name: path}`` if
            classes may overlap; ``"warnings": [text]`` if the reader has any.

        Raises:
            DataError: a file cannot be read or written. Everything that can be checked in advance
                is checked before the computation starts.
            PromptError: see ``segment``.
            MissingExtraError: the output's format needs a package that is not installed.
        """
        wanted = PredictionOptions(**options)
        plan = self._plan(input, output, wanted)
        if plan.is_folder:
            raise DataError(
                f"{plan.target}: predict_file segments one case, so the output must be a file, for "
                f"example {plan.target}.nii.gz; for a folder of images use predict_folder"
            )
        # `predict_plan` asks for the progress of each image by its name. Here there is one.
        (row,) = self.predict_plan(
            plan, wanted, progress=None if progress is None else lambda name: progress
        )
        return row

    def predict_folder(
        self,
        input: Source,
        output: str | Path,
        *,
        progress: Callable[[str], Progress] | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Segment every image of a folder; an image that fails does not stop the others.

        Args:
            input: a folder. Hidden files and folders in it are skipped, except the folder of a
                DICOM series. If the channels are files: a folder or a pattern of several cases;
                see ``inference/inputs.py``.
            output: a folder, made if its parent exists, for files of the same stems: PNG for
                pictures, NIfTI for volumes. Or a ``.json`` file: COCO, for pictures.
            progress: called with the name of each file; returns what ``segment`` calls.
            options: see ``predict_file``; the same for each file.

        Returns:
            For each image ``{"input": path}`` together with what ``predict_file`` returns, or with
            ``"error": message``.

        Raises:
            DataError: the input is not a folder of images, or the output cannot be made.
            PromptError: the options do not fit the adapter, whatever the image is.
            MissingExtraError: the output's format needs a package that is not installed.
        """
        wanted = PredictionOptions(**options)
        plan = self._plan(input, output, wanted)
        if not plan.is_folder:
            raise DataError(
                f"{input}: expected a folder of images; got one image. Use predict_file"
            )
        return self.predict_plan(plan, wanted, progress=progress)

    def predict_plan(
        self,
        plan: PredictionPlan,
        options: PredictionOptions,
        *,
        progress: Callable[[str], Progress] | None = None,
        store: PredictionStore | None = None,
    ) -> list[dict[str, Any]]:
        """Segment the images of a plan, which ``plan_prediction`` makes before a model is loaded.

        Args:
            plan: what to read and write.
            options: prompts and options.
            progress: called with the name of each file; returns what ``segment`` calls.
            store: what an earlier call has written, which is skipped; None: all images are done.

        Returns:
            One row per image; see ``predict_file``, and ``predict_folder`` for a folder.

        Raises:
            UserError: the options do not fit, or the plan is for one image and it fails.
        """
        how = self.reader_options(options)
        return predict_planned(self._predictor(options), plan, options, how, progress, store)

    def settings_of(self, options: PredictionOptions) -> dict[str, Any]:
        """Return what decides a prediction: base, adapters, number format and options.

        Args:
            options: prompts and options, as the command line gives them.

        Raises:
            PromptError: the options do not fit the adapter.
        """
        self._predictor(options)
        records = [member.record for member in self._members]
        return {
            "base": self.record.base,
            "base_sha256": self.record.base_sha256,
            # Of the record, which holds that of the weights.
            "adapters_sha256": [
                record.record_sha256 or digest_of(asdict(record)) for record in records
            ],
            "precision": self.precision.name + (", compiled" if self._compiled else ""),
            "options": recorded_options(options),
        }

    def _plan(
        self, input: Source, output: str | Path, options: PredictionOptions
    ) -> PredictionPlan:
        self._predictor(options)  # options that do not fit the adapter are reported first
        channels = chosen_channels(self.record, options.channel)
        return plan_prediction(input, Path(output), channels)

    def reader_options(self, options: PredictionOptions) -> ReaderOptions:
        """Return how images are read: as the user says, else as in training."""
        return reader_options(
            self.record,
            channel=options.channel,
            spacing=options.spacing,
            series=options.series,
            exif=options.exif,
        )

    def _predictor(self, options: PredictionOptions) -> VolumePredictor:
        """Return what segments with the adapter in use; refuse options that do not fit it."""
        # With a single adapter nothing is asked for twice, so hashing images would be wasted.
        shared = self._embeddings if len(self._adapters) > 1 else None
        predictor = VolumePredictor(self._members, self.precision, shared)
        predictor.check(options)
        return predictor


def _on_grid(values: Array, volume: Volume) -> Array:
    """Return maps (..., h, w, d) on the grid of the file; an array or a picture has none."""
    if volume.source is None:
        return values[..., 0]
    from samadapt.data.formats.shared.volume_slices import to_source

    if values.ndim == 4:
        return np.stack([to_source(one, volume.source) for one in values])
    return to_source(values, volume.source)
