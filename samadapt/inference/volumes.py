"""Segment one volume or picture with an adapter, slice by slice, as the adapter's record says.

A picture is a volume of one slice, or is cut into tiles, which are then embedded as slices are.
Every slice goes the way that ``sam/embed.py`` and ``sam/decode.py`` describe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from samadapt.data.stacks import Stacks
from samadapt.data.tiles import PictureTile, tiling
from samadapt.data.types import SliceRef, Volume
from samadapt.errors import DataError, PromptError
from samadapt.inference.embeddings import Embeddings
from samadapt.inference.options import PredictionOptions, class_ids
from samadapt.inference.postprocess import postprocess
from samadapt.inference.propagate import Propagation, plan_walks
from samadapt.prompts.simulate import objects_in
from samadapt.prompts.user_prompts import object_classes, slice_prompts, tile_prompts
from samadapt.sam.decode import (
    object_logits,
    object_numbers,
    region_labels,
    semantic_labels,
    semantic_logits,
)
from samadapt.sam.embed import embed
from samadapt.sam.geometry import make_frame
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.inference.bundle import AdapterBundle
    from samadapt.sam.types import Frame, ImagePrompts
    from samadapt.training.precision import Precision

LARGE = 512
"""Side of the model's square, in pixels, above which slices are embedded one by one on a CPU."""

Progress = Callable[[int, int], None]
"""Called with the number of slices that are done and the number of all slices."""


@dataclass
class Segmentation:
    """What was found in a volume or a picture.

    Attributes:
        labels: (h, w, d) uint8 class ids; (K, h, w, d) where classes may overlap, with k in the
            map of class k.
        probabilities: (K, h, w, d) uint8, 255 times the probability of each class, or None. They
            are the model's own: ``keep_largest`` and ``fill_holes`` do not change them.
        instances: int32 object numbers from 1, in the shape of ``labels``, or None. If the adapter
            takes no prompts, the objects are the connected components of each class.
        instance_classes: class id of each object.
    """

    labels: Array
    probabilities: Array | None = None
    instances: Array | None = None
    instance_classes: Sequence[int] = ()

    @property
    def maps(self) -> Sequence[Array]:
        """The label maps (h, w, d): one for all classes, or one for each."""
        return list(self.labels) if self.labels.ndim == 4 else [self.labels]


class SlicePictures:
    """The slices of a volume, or the tiles of a picture, as the model sees them.

    Args:
        volume: the values of the file. They are kept once, in their own type.
        adapter: its intensity rule is fitted to the whole volume and applied to each slice.
        tiles: the tiles of a picture, or None.
    """

    def __init__(
        self, volume: Volume, adapter: AdapterBundle, tiles: Sequence[PictureTile] | None = None
    ) -> None:
        self.volume, self.tiles = volume, tiles
        self.rule = adapter.intensity.fitted(volume)

    def __call__(self, index: int) -> Array:
        """Return a slice or tile, (h, w, 3) uint8."""
        values = self.volume.image
        if self.tiles is not None:
            values, index = self.tiles[index].cut(values), 0
        picture = self.rule.picture_of(values, index, is_color=self.volume.is_color)
        return np.ascontiguousarray(picture)


class VolumePredictor:
    """An adapter that segments volumes and pictures.

    Args:
        adapter: the adapter.
        precision: what it computes in.
        embeddings: a store that several adapters share; None: there is one adapter.
    """

    def __init__(
        self, adapter: AdapterBundle, precision: Precision, embeddings: Embeddings | None = None
    ) -> None:
        if embeddings is None and adapter.stack > 1:
            embeddings = Embeddings()  # the slices that follow belong to the same stack
        self.adapter, self.precision, self.embeddings = adapter, precision, embeddings
        self.sam, self.policy = adapter.sam, adapter.policy
        self.classes = list(adapter.record.classes)
        self.overlapping = adapter.record.overlapping
        self.threshold = adapter.record.threshold
        # A GPU needs several slices at a time to be busy. On a CPU, where a large slice keeps all
        # cores busy, embedding ahead would only waste work: slices after the last object of a
        # propagation are skipped.
        is_cpu = self.sam.device.type == "cpu"
        self.batch_size = 1 if is_cpu and self.sam.image_size > LARGE else 8
        self.ahead = 1 if is_cpu else 8

    def check(self, options: PredictionOptions) -> None:
        """Refuse options that this adapter cannot follow, whatever the image is.

        Raises:
            PromptError: a prompt is missing or not wanted, or a class is unknown.
        """
        for option in ("keep_largest", "fill_holes"):
            class_ids(getattr(options, option), self.classes, option)
        if self.policy.is_semantic and options.has_prompts:
            raise PromptError(
                "this adapter was trained without prompts and finds its classes "
                f"({', '.join(self.classes)}) by itself; leave boxes and points out, and labels "
                "and propagate"
            )
        if not self.policy.is_semantic and options.boxes is None and options.points is None:
            raise PromptError(
                f"this adapter was trained with {self.policy.kind} prompts and needs one; give "
                "boxes=[[x0, y0, x1, y1]] or points=[[x, y]], in pixels of the image"
            )

    def tiles(self, volume: Volume, options: PredictionOptions) -> Sequence[PictureTile] | None:
        """Return the tiles that a picture is cut into; None if it is seen whole.

        Raises:
            PromptError: ``tile`` is given for a volume.
        """
        is_picture = volume.source is None and volume.shape[2] == 1
        if options.tile and not is_picture:
            raise PromptError(
                f"tile={options.tile} cuts pictures into tiles, and this is a volume, whose slices "
                "are seen whole; leave tile out"
            )
        trained = self.adapter.tiling
        # A side that the user chooses keeps the overlap of training.
        overlap = None if trained is None else trained.overlap
        cut = trained if options.tile is None else tiling(options.tile, overlap)
        return cut.tiles(*volume.shape[:2]) if cut and is_picture else None

    def segment(
        self,
        volume: Volume,
        options: PredictionOptions,
        progress: Progress | None = None,
        *,
        instances: bool = False,
    ) -> Segmentation:
        """Segment a volume or a picture.

        Args:
            volume: the image as read, before the intensity rule.
            options: prompts and options.
            progress: called after each slice.
            instances: also return which object each pixel belongs to.

        Raises:
            PromptError: the options do not fit the adapter or the volume.
            DataError: the adapter sees stacks of slices, and this is a single image.
        """
        self.check(options)
        if self.adapter.stack > 1 and volume.shape[2] == 1:
            raise DataError(
                f"this adapter was trained with peft.depth={self.adapter.stack}: it sees "
                "neighbouring slices of a volume together, and this is one image"
            )
        run = _Prediction(self, volume, options, progress, instances)
        with self.precision.autocast(self.sam.device), torch.no_grad():
            if self.policy.is_semantic:
                run.semantic()
            elif options.propagate:
                run.propagated()
            else:
                run.prompted()
        found = run.found
        largest = class_ids(options.keep_largest, self.classes, "keep_largest")
        filled = class_ids(options.fill_holes, self.classes, "fill_holes")
        for k, labels in enumerate(found.maps, start=1):
            # With overlap, map k holds the pixels of class k alone.
            own = [k] if self.overlapping else range(1, len(self.classes) + 1)
            postprocess(
                labels,
                [class_id for class_id in largest if class_id in own],
                [class_id for class_id in filled if class_id in own],
            )
        if found.instances is not None:
            numbers = found.instances if self.overlapping else [found.instances]
            for labels, objects in zip(found.maps, numbers, strict=True):
                run.settle_instances(labels, objects)
        return found


class _Prediction:
    """One call of ``VolumePredictor.segment`` and what it has found so far."""

    def __init__(
        self,
        model: VolumePredictor,
        volume: Volume,
        options: PredictionOptions,
        progress: Progress | None,
        instances: bool,
    ) -> None:
        self.model, self.options, self.progress = model, options, progress
        self.shape = volume.shape
        height, width, depth = volume.shape
        self.tiles = model.tiles(volume, options)
        self.count = depth if self.tiles is None else len(self.tiles)
        self.pictures = SlicePictures(volume, model.adapter, self.tiles)
        self.stacks = Stacks(model.adapter.stack, lambda case: self.count)

        def blank(dtype: type, *leading: int) -> Array:
            # In memory (..., d, h, w), so that a slice is contiguous; the view is (..., h, w, d).
            return np.moveaxis(np.zeros((*leading, depth, height, width), dtype), -3, -1)

        maps = (len(model.classes),) if model.overlapping else ()
        self.found = Segmentation(blank(np.uint8, *maps))
        if options.probabilities:
            self.found.probabilities = blank(np.uint8, len(model.classes))
        if instances:
            self.found.instances = blank(np.int32, *maps)

    def semantic(self) -> None:
        """Label every slice or tile without prompts."""
        count, overlapping = len(self.model.classes), self.model.overlapping
        label = region_labels if overlapping else semantic_labels
        for batch, embeddings, frames in self._batches(range(self.count)):
            each = semantic_logits(
                self.model.sam,
                embeddings,
                frames,
                count,
                background_token=self.model.policy.background_token,
            )
            for index, logits in zip(batch, each, strict=True):
                self._put(self.found.labels, index, label(logits, count)[0].cpu().numpy())
                if self.found.probabilities is not None and overlapping:
                    self._keep_probabilities(index, logits[0, 0].sigmoid())
                elif self.found.probabilities is not None:
                    # The logit of the background is 0. Its probability is not kept.
                    scores = torch.cat([torch.zeros_like(logits[0, 0, :1]), logits[0, 0]])
                    self._keep_probabilities(index, scores.softmax(0)[1:])

    def prompted(self) -> None:
        """Segment what is prompted on each slice or tile."""
        prompts = self._prompts()
        if self.tiles is not None and 0 in prompts:
            prompts = {i: tile_prompts(prompts[0], tile) for i, tile in enumerate(self.tiles)}
        wanted = [index for index in prompts if len(prompts[index])]
        for batch, embeddings, frames in self._batches(wanted):
            objects = [prompts[index] for index in batch]
            masks = object_logits(
                self.model.sam,
                embeddings,
                frames,
                objects,
                multimask=self.model.policy.is_ambiguous,
            )
            for index, item, (logits, _), frame in zip(batch, objects, masks, frames, strict=True):
                self._keep(index, item.numbers.tolist(), logits, frame)

    def propagated(self) -> None:
        """Carry what is prompted on some slices to the others.

        Raises:
            PromptError: there is one slice, or the prompts do not say on which slices they are.
        """
        options, model, depth = self.options, self.model, self.shape[2]
        if depth == 1:
            raise PromptError("propagate=true carries objects through a volume; this is one image")
        if not any(isinstance(value, Mapping) for value in (options.boxes, options.points)):
            raise PromptError(
                "propagate=true starts from the slices that you name: give the prompts by slice, "
                "as boxes={12: [[x0, y0, x1, y1]]}"
            )
        prompts = self._prompts()
        up, down = plan_walks(prompts, depth, options.slices)
        steps = len({i for walk in up for i in range(walk.start, walk.limit + 1)})
        steps += len({i for walk in down for i in range(walk.limit, walk.start)})
        propagation = Propagation(
            sam=model.sam,
            embed=self._embed,
            policy=model.policy,
            threshold=model.threshold,
            carry=options.carry,
            vanish=options.vanish,
            ahead=model.ahead,
            advance=self._counter(steps),
        )
        frame = make_frame(self.shape[:2], model.sam.image_size, model.sam.preprocessing.resize)
        for index, found in propagation(prompts, up, down):
            numbers = sorted(found)
            self._keep(index, numbers, torch.stack([found[n] for n in numbers]), frame)

    def settle_instances(self, labels: Array, instances: Array) -> None:
        """Let the objects of a map follow what postprocessing did to its labels.

        Without prompts the objects are the components of the labels, numbered slice by slice.

        Args:
            labels: (h, w, d) class ids.
            instances: (h, w, d) object numbers, changed in place.
        """
        from scipy.ndimage import distance_transform_edt

        found = self.found
        if not self.model.policy.is_semantic:
            instances[labels == 0] = 0
            # Filled holes have a label and no object yet; they get the nearest one of their class.
            for class_id in np.unique(labels[(labels > 0) & (instances == 0)]):
                own = (instances > 0) & (labels == class_id)
                nearest = distance_transform_edt(~own, return_distances=False, return_indices=True)
                gaps = (labels == class_id) & (instances == 0)
                instances[gaps] = instances[tuple(nearest[:, gaps])]
            return
        for index in range(self.shape[2]):
            ids, masks = objects_in(labels[:, :, index], "component")
            for number, mask in enumerate(masks, start=1 + len(found.instance_classes)):
                instances[:, :, index][mask] = number
            found.instance_classes = [*found.instance_classes, *ids.tolist()]

    def _prompts(self) -> dict[int, ImagePrompts]:
        """Return the user's prompts by slice, with the classes that the user names."""
        options = self.options
        prompts = slice_prompts(options.boxes, options.points, options.point_labels, self.shape)
        count = max((int(item.numbers.max(initial=0)) for item in prompts.values()), default=0)
        ids = object_classes(options.labels, count, self.model.classes)
        self.found.instance_classes = ids.tolist()
        # Indexed by object number: the class of each object, and 0 for number 0, the background.
        self.class_of = np.concatenate([[0], ids])
        return {
            index: replace(item, class_ids=self.class_of[item.numbers])
            for index, item in prompts.items()
        }

    def _batches(self, wanted: Sequence[int]) -> Iterator[tuple[list[int], Tensor, list[Frame]]]:
        """Yield the wanted slices in batches, with their embeddings and frames."""
        advance, size = self._counter(len(wanted)), self.model.batch_size
        for start in range(0, len(wanted), size):
            batch = list(wanted[start : start + size])
            yield batch, *self._embed(batch)
            for _ in batch:
                advance()

    def _embed(self, indices: Sequence[int]) -> tuple[Tensor, list[Frame]]:
        """Embed slices or tiles, together with the other slices of their stacks."""
        whole, rows = self.stacks.whole([SliceRef("", index) for index in indices])
        images = [self.pictures(ref.index) for ref in whole]
        if self.model.embeddings is None:
            return embed(self.model.sam, images)
        found, frames = self.model.embeddings(
            self.model.sam, self.model.adapter.encoder, images, self.stacks.size
        )
        return found[rows], [frames[row] for row in rows]

    def _keep(self, index: int, numbers: Sequence[int], logits: Tensor, frame: Frame) -> None:
        """Merge the masks of a slice's objects; the highest logit wins.

        Classes that may overlap take no pixels from each other.

        Args:
            index: of the slice or tile.
            numbers: of the p objects.
            logits: (p, 1, 4g, 4g) in the model frame.
            frame: of the slice.
        """
        classes = self.class_of[list(numbers)]
        for class_id in np.unique(classes) if self.model.overlapping else [0]:
            own = np.flatnonzero((classes == class_id) | (class_id == 0))
            wins = object_numbers(self.model.sam, logits[own], frame, self.model.threshold)
            # `wins` counts the objects in `own` from 1; `merged` has their numbers in the volume.
            merged = np.concatenate([[0], np.asarray(numbers)[own]]).astype(np.int32)[wins]
            # 0 stands for all classes, which then share one map.
            place = class_id - 1 if class_id else ...
            self._put(self.found.labels[place], index, self.class_of[merged])
            if self.found.instances is not None:
                self._put(self.found.instances[place], index, merged)
        if self.found.probabilities is not None:
            planes = self.model.sam.postprocess(logits[None].float(), frame)
            ids, best = self.class_of[list(numbers)], planes[0, :, 0].sigmoid()
            for class_id in np.unique(ids):
                of_class = best[torch.as_tensor(ids == class_id, device=best.device)]
                self._keep_probabilities(index, of_class.amax(0)[None], class_id - 1)

    def _keep_probabilities(self, index: int, values: Tensor, first: int = 0) -> None:
        """Keep the probabilities (n, h, w) of n classes from ``first`` on, in steps of 1/255."""
        if self.found.probabilities is not None:
            scaled = (values * 255).round().to(torch.uint8).cpu().numpy()
            self._put(self.found.probabilities[first : first + len(scaled)], index, scaled)

    def _put(self, whole: Array, index: int, part: Array) -> None:
        """Write a slice (..., h, w) into (..., h, w, d), or what a tile owns into its picture."""
        if self.tiles is None:
            whole[..., index] = part
        else:
            self.tiles[index].put(part, whole[..., 0])

    def _counter(self, total: int) -> Callable[[], None]:
        """Return a function that tells ``progress`` that one more slice of ``total`` is done."""
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if self.progress is not None:
                self.progress(done, total)

        return advance


def as_picture(image: Array, channels: int = 0) -> Volume:
    """Return an array as a picture.

    Args:
        image: (h, w), (h, w, 3) RGB, or (h, w, channels).
        channels: number of channels, for an adapter that sees several; 0: one channel, or RGB.

    Raises:
        DataError: another shape, values that are not numbers, or NaN.
    """
    is_color = image.ndim == 3 and image.shape[2] == (channels or 3)
    if (
        not ((image.ndim == 2 and not channels) or is_color)
        or image.size == 0
        or image.dtype.kind not in "uifb"
    ):
        shapes = f"(h, w, {channels})" if channels else "(h, w) or (h, w, 3) RGB"
        raise DataError(
            f"an image must be numbers {shapes}; got {image.dtype} {image.shape}. "
            "Give a volume as the path of a NIfTI file"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError("the image holds NaN or infinite values; replace them")
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    if channels:
        return Volume(image[:, :, None])
    return Volume(image if is_color else image[:, :, None], is_color=is_color)
