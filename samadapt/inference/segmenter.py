"""An adapter directory in use: images and volumes to label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from samadapt.adapters.base_model import open_base
from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.data.channels import Channel
from samadapt.data.formats.base import ReaderOptions, parse_axis
from samadapt.data.formats.dicom.series_choice import general_choice
from samadapt.data.formats.nifti.affine import check_spacing_source
from samadapt.data.formats.shared.exif import Exif, parse_exif
from samadapt.errors import AdapterError, nearest
from samadapt.inference import files
from samadapt.inference.bundle import AdapterBundle, load_bundle, make_bundle
from samadapt.inference.embeddings import Embeddings
from samadapt.inference.inputs import Source, chosen_channels, is_source
from samadapt.inference.options import Carry, Options
from samadapt.inference.volumes import Progress, VolumePredictor, as_picture
from samadapt.prompts.user_prompts import SlicePrompts
from samadapt.system.arrays import Array
from samadapt.training.precision import Precision, choose_device, choose_precision

if TYPE_CHECKING:
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.model import Sam


def load_adapter(
    directory: str | Path,
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    name: str = "default",
) -> Segmenter:
    """Load an adapter with its base model, ready to segment.

    The base is found by the name that the adapter records, or as a file of the recorded name in the
    adapter's directory or the working folder, and checked against the recorded hash.

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
    record = read_record(directory)
    base, _ = open_base(directory, record, checkpoint)
    segmenter = Segmenter.__new__(Segmenter)
    segmenter._begin(load_bundle(directory, base.to(target)), arithmetic, base, name)
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

    def __init__(self, sam: Sam, record: AdapterRecord, precision: Precision | None = None) -> None:
        """Read the rules from the record."""
        precision = precision or choose_precision("fp32", sam.device)
        self._begin(make_bundle(sam, record, keeps_encoder=False), precision, None, "default")

    def _begin(
        self, first: AdapterBundle, precision: Precision, base: Sam | None, name: str
    ) -> None:
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
    def record(self) -> AdapterRecord:
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
        self._adapters[name] = load_bundle(Path(directory).expanduser(), self._base)

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
        image: ArrayLike | str | Path | Sequence[str | Path],
        *,
        channel: Channel | Sequence[Channel] | None = None,
        spacing: str | None = None,
        series: str | None = None,
        progress: Progress | None = None,
        boxes: SlicePrompts = None,
        points: SlicePrompts = None,
        point_labels: SlicePrompts = None,
        labels: str | Sequence[str] | None = None,
        propagate: bool = False,
        carry: Carry = "prompt",
        slices: Sequence[int] | None = None,
        vanish: float = 0.1,
        keep_largest: bool | Sequence[str] = False,
        fill_holes: bool | Sequence[str] = False,
        tile: int | None = None,
        exif: Exif | None = None,
    ) -> Array:
        """Segment an image or a volume.

        An adapter trained without prompts labels every pixel with its class and takes none.
        One trained with boxes or points needs them; an object is a box, a set of points, or both,
        and where objects overlap the higher logit wins. Each object has a class of the adapter.

        A volume's slices count from the left, the back or below (0 is the first), along the axis
        that the adapter was trained on. Coordinates on a slice are those of the upright picture,
        (x, y) in pixels from its top left, as the overlays of a run show it. Slices without a
        prompt in a mapping are left empty, unless ``propagate`` carries an object there. The k-th
        box of every slice is object k; ``None`` in its place says that it has none there.

        Args:
            image: (h, w) or (h, w, 3) RGB, in the values of the files trained on (HU for CT), or
                (h, w, c) for an adapter of c channels; or the path of a file that
                ``samadapt.data`` reads, or of a DICOM series' folder. Where the channels are
                files: a list of them, a pattern with ``{channel}``, or the case's folder.
            channel: which volumes of a 4D file, or which files: an index, a name, or a list of as
                many as the adapter sees; None: those that it was trained on.
            spacing: ``"affine"`` or ``"pixdim"``: which is true where a NIfTI header contradicts
                itself; None: as the adapter was trained, where such a file may be refused.
            series: which of several DICOM series in a folder: a modality (``"CT"``), a series
                number, ``"largest"``, or the digits that the message shows; None: as trained.
            progress: called with the number of slices done and of all.
            boxes: (p, 4) or (4,) XYXY pixels of the original image. For a volume: these for every
                slice, or ``{slice index: boxes}``.
            points: (k, 2) (x, y) for one object, or (p, k, 2); for a volume as the boxes.
            point_labels: (k,) or (p, k); 1 foreground, 0 background, -1 padding; None: all 1.
            labels: class name of each object, or one for all; needed where the adapter has
                several classes.
            propagate: carry each object from the slices where it is prompted both ways; where two
                prompted slices are, the nearer one leads.
            carry: what the mask of a slice gives to the next: its ``"prompt"`` (the box around
                each part of it, a little wider; for adapters trained with points the innermost
                point), the ``"mask"`` itself as logits, or ``"both"``. Masks serve adapters whose
                base was trained with them, as SAM; not LiteMedSAM.
            slices: [first, last] to which objects are carried; None: until they vanish.
            vanish: an object ends where its area falls below this share of that on the slice
                where it was prompted.
            keep_largest: of these classes (True: all) only the largest component stays, in 3D
                for a volume.
            fill_holes: holes in these classes are filled, cavities in 3D for a volume, after
                ``keep_largest``.
            tile: pixels a side of the tiles that a picture is cut into (``data/tiles.py``); an
                object gets its prompt in every tile that sees a part of its box, or one of its
                foreground points. None: as the adapter was trained; 0: not at all.
            exif: ``"apply"``: a picture file is turned as its EXIF orientation says; ``"ignore"``:
                its pixels stay as they are stored; None: as the adapter was trained, or applied.

        Returns:
            uint8 labels: (h, w) for an image; for a volume file in the axes and the shape of the
            file. Where the adapter's classes may overlap, masks of 0 and 1, with the class as a
            further first axis.

        Raises:
            PromptError: a prompt is missing, not wanted, or not within the image; or an option
                names what is not there.
            DataError: the image cannot be read or is not of these shapes.
        """
        options = Options(
            boxes=boxes,
            points=points,
            point_labels=point_labels,
            labels=labels,
            propagate=propagate,
            carry=carry,
            slices=slices,
            vanish=vanish,
            keep_largest=keep_largest,
            fill_holes=fill_holes,
            tile=tile,
        )
        predictor = self._predictor(options)
        if is_source(image):
            volume = files.read_one(image, self._reading(channel, spacing, series, exif))
        else:
            volume = as_picture(np.asarray(image), len(self._now.intensity.inputs))
        found = predictor.segment(volume, options, progress).labels
        if self.record.overlapping:
            found = (found > 0).astype(np.uint8)
        if volume.source is None:
            return found[..., 0]
        from samadapt.data.formats.shared.volume_slices import to_source

        if found.ndim == 4:
            return np.stack([to_source(mask, volume.source) for mask in found])
        return to_source(found, volume.source)

    def predict_file(
        self,
        input: Source,
        output: str | Path,
        *,
        channel: Channel | Sequence[Channel] | None = None,
        spacing: str | None = None,
        series: str | None = None,
        exif: Exif | None = None,
        progress: Progress | None = None,
        probabilities: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Segment a file and write the labels in the format that the output's ending names.

        - ``.png`` (pictures): the class number of each pixel, with a palette of colours.
        - ``.json`` (pictures): COCO, an annotation an object; for adapters without prompts a
          component of a class is an object.
        - ``.nii.gz``, ``.nii`` (volumes): class numbers on the grid of the source, with its affine.
        - ``.dcm`` (DICOM series): a SEG object, a segment a class, without any patient's field.

        Args:
            input: a file that ``samadapt.data`` reads, or the folder of a DICOM series; where the
                channels are files, see ``inference/inputs.py``.
            output: replaced if it exists.
            channel: see ``segment``.
            spacing: see ``segment``.
            series: see ``segment``.
            exif: see ``segment``.
            progress: see ``segment``.
            probabilities: also write the probability of each class beside the output:
                ``NAME_probabilities.nii.gz``, 4D, in steps of 1/255, class k being volume k - 1;
                for a picture ``NAME_probabilities.npz`` with uint8 (K, h, w), 255 being 1.
            options: prompts and options of ``segment``.

        Returns:
            ``{"output": path, "shape": (h, w, d) as sliced, "voxels": {class name: count}}``, and
            ``"probabilities": path`` if they were asked for.

        Raises:
            DataError: a file cannot be read or written; said before anything is computed where
                that can be known.
            PromptError: as ``segment``.
            MissingExtraError: the output's format needs a package that is not installed.
        """
        wanted = Options(**options, probabilities=probabilities)
        how = self._reading(channel, spacing, series, exif)
        return files.predict_file(
            self._predictor(wanted), input, Path(output), wanted, how, progress
        )

    def predict_folder(
        self,
        input: Source,
        output: str | Path,
        *,
        channel: Channel | Sequence[Channel] | None = None,
        spacing: str | None = None,
        series: str | None = None,
        exif: Exif | None = None,
        progress: Callable[[str], Progress] | None = None,
        probabilities: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Segment every image of a folder; a file that cannot be done does not stop the others.

        Args:
            input: a folder; hidden files and folders in it are left alone, except the folder of a
                DICOM series. Where the channels are files: a folder or a pattern of several cases;
                see ``inference/inputs.py``.
            output: a folder, made if its parent exists, for files of the same stems: PNG for
                pictures, NIfTI for volumes. Or a ``.json`` file: COCO, for pictures.
            channel: see ``segment``.
            spacing: see ``segment``.
            series: see ``segment``.
            exif: see ``segment``.
            progress: called with the name of each file; returns what ``segment`` calls.
            probabilities: see ``predict_file``.
            options: prompts and options of ``segment``, the same for each file.

        Returns:
            For each image ``{"input": path}`` with what ``predict_file`` returns, or with
            ``"error": message``.

        Raises:
            DataError: there is no image in the folder, or the output cannot be made.
            PromptError: the options do not fit the adapter, whatever the image.
            MissingExtraError: the output's format needs a package that is not installed.
        """
        wanted = Options(**options, probabilities=probabilities)
        how = self._reading(channel, spacing, series, exif)
        return files.predict_folder(
            self._predictor(wanted), input, Path(output), wanted, how, progress
        )

    def _reading(
        self,
        channel: Channel | Sequence[Channel] | None,
        spacing: str | None,
        series: str | None,
        exif: Exif | None,
    ) -> ReaderOptions:
        """Return how images are read: as the caller says, else as the adapter was trained."""
        check_spacing_source(spacing)
        return ReaderOptions(
            axis=parse_axis(self.record.axis),
            channel=chosen_channels(self.record, channel),
            spacing=spacing or self.record.data_options.get("spacing"),
            series=series or general_choice(self.record.data_options.get("series")),
            exif=parse_exif(exif or self.record.data_options.get("exif")),
        )

    def _predictor(self, options: Options) -> VolumePredictor:
        """What segments with the adapter in use; refuses options that do not fit it."""
        shared = self._embeddings if len(self._adapters) > 1 else None
        predictor = VolumePredictor(self._now, self.precision, shared)
        predictor.check(options)
        return predictor
