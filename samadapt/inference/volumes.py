"""Segment one volume or picture with an adapter, slice by slice, as the adapter's record says.

A picture is a volume of one slice, or is cut into tiles, which are then embedded as slices are.
Every slice goes the way that ``sam/embed.py`` and ``sam/decode.py`` describe: once, or once for
each adapter of an ensemble and each mirrored copy (``passes.py``). Then the probabilities of these
passes are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.data.mirroring import mirrors_of, refuse_sides
from samadapt.data.stacks import Stacks
from samadapt.data.tiles import PictureTile, tiling
from samadapt.data.types import SliceRef, Volume
from samadapt.errors import DataError, PromptError
from samadapt.evaluation.instances import components
from samadapt.evaluation.postprocess import postprocess
from samadapt.evaluation.second_pass import SecondPass
from samadapt.inference.asked_prompts import (
    asked_classes,
    asked_policy,
    asked_prompts,
    why_uncalibrated,
)
from samadapt.inference.clicks_in_turn import answers_to_prompts
from samadapt.inference.embedding_cache import EmbeddingCache
from samadapt.inference.memory_propagation import check_memory, make_propagation
from samadapt.inference.objects import FoundObject, list_objects
from samadapt.inference.options import PredictionOptions, class_ids
from samadapt.inference.passes import EmbeddedPass, embed_passes
from samadapt.inference.propagate import Walk, check_start, plan_walks
from samadapt.inference.walk_together import walk_together
from samadapt.prompts.user_prompts import tile_prompts
from samadapt.sam.decode import (
    merge_objects,
    region_labels,
    semantic_labels,
    semantic_logits,
)
from samadapt.sam.geometry import make_frame
from samadapt.sam.mean_prediction import DecodedObjects, MeanLogits, object_means
from samadapt.sam.mirror import AS_IT_IS, Mirror, mirrored_prompts, turned_back
from samadapt.sam.watershed import INSTANCE_HEAD
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.data.intensity import IntensityRule
    from samadapt.inference.bundle import AdapterBundle
    from samadapt.sam.types import Frame, ImagePrompts
    from samadapt.training.precision import Precision

LARGE = 512
"""Side of the model's square, in pixels, above which slices are embedded one by one on a CPU."""

MEASURES = {
    "uncertainty": MeanLogits.entropy,
    "mutual_information": MeanLogits.mutual_information,
}
"""The maps of a prediction's uncertainty, and how each follows from the mean of the passes."""

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
            takes no prompts, the objects are those that it separates, or else the connected
            components of each class.
        instance_classes: class id of each object.
        foreground: float16 probability, 0..1, of the most probable class or object at each pixel,
            in the shape of ``labels``, or None.
        distances: (2K, h, w, d) float16 distances of the objects that the model separates, or None;
            see ``sam/watershed.py``.
        uncertainty: (h, w, d) float32 entropy, 0..1, or None; see ``MeanLogits.entropy``.
        mutual_information: (h, w, d) float32, 0..1, or None; see ``MeanLogits``.
        objects: the objects by their number, if they were asked for.
    """

    labels: Array
    probabilities: Array | None = None
    instances: Array | None = None
    instance_classes: Sequence[int] = ()
    foreground: Array | None = None
    distances: Array | None = None
    uncertainty: Array | None = None
    mutual_information: Array | None = None
    objects: dict[int, FoundObject] = field(default_factory=dict)

    @property
    def maps(self) -> Sequence[Array]:
        """The label maps (h, w, d): one for all classes, or one for each."""
        return self.planes(self.labels)

    def planes(self, values: Array) -> Sequence[Array]:
        """Return values in the shape of ``labels`` as maps (h, w, d)."""
        return list(values) if values.ndim == 4 else [values]


class SlicePictures:
    """The slices of a volume, or the tiles of a picture, as the model sees them.

    Args:
        volume: the values of the file. They are kept once, in their own type.
        rule: the intensity rule, which is fitted to the whole volume and applied to each slice.
        tiles: the tiles of a picture, or None.
    """

    def __init__(
        self, volume: Volume, rule: IntensityRule, tiles: Sequence[PictureTile] | None
    ) -> None:
        self.volume, self.tiles = volume, tiles
        self.rule = rule.fitted(volume)

    def __call__(self, index: int) -> Array:
        """Return a slice or tile, (h, w, 3) uint8."""
        values = self.volume.image
        if self.tiles is not None:
            values, index = self.tiles[index].cut(values), 0
        picture = self.rule.picture_of(values, index, is_color=self.volume.is_color)
        return np.ascontiguousarray(picture)


class VolumePredictor:
    """Adapters that segment volumes and pictures together; usually it is one.

    Args:
        members: the adapters, which agree in everything but their weights.
        precision: what they compute in.
        embeddings: a store that several adapters share; None: nothing is asked for twice.
    """

    def __init__(
        self,
        members: Sequence[AdapterBundle],
        precision: Precision,
        embeddings: EmbeddingCache | None = None,
    ) -> None:
        adapter = members[0]
        if embeddings is None and adapter.stack > 1:
            embeddings = EmbeddingCache()  # the slices that follow belong to the same stack
        self.members, self.precision = members, precision
        self.adapter, self.embeddings = adapter, embeddings
        self.sam, self.policy = adapter.sam, adapter.policy
        self.classes = list(adapter.record.classes)
        self.overlapping = adapter.record.overlapping
        self.threshold = adapter.record.threshold
        self.watershed = adapter.sam.watershed
        # A GPU needs several slices at a time to be busy. On a CPU, where a large slice keeps all
        # cores busy, embedding ahead would only waste work: slices after the last object of a
        # propagation are skipped.
        is_cpu = self.sam.device.type == "cpu"
        self.batch_size = 1 if is_cpu and self.sam.image_size > LARGE else 8
        self.ahead = 1 if is_cpu else 8

    def check(self, options: PredictionOptions) -> None:
        """Refuse options that this adapter cannot follow, whatever the image is.

        Raises:
            PromptError: a prompt is missing or not wanted, a class is unknown, or an option needs
                more than this adapter can do.
        """
        for option in ("keep_largest", "fill_holes"):
            class_ids(getattr(options, option) or False, self.classes, option)
        if options.tta and self.policy.finds_classes:
            refuse_sides(self.classes, f"tta={options.tta}")
        self.second_pass(options)
        check_memory(self.sam, options)
        asked_twice = options.tta is not None or options.second_pass is not None
        several = len(self.members) > 1 or asked_twice
        if options.uncertainty == "mutual_information" and not several:
            raise PromptError(
                "uncertainty=mutual_information is how much several passes disagree, and this is "
                "one pass; name several adapters, add tta=flip, or use uncertainty=true"
            )
        if self.policy.is_semantic and options.has_prompts and not self.keeps_prompts:
            raise PromptError(
                "this adapter was trained without prompts and finds its classes "
                f"({', '.join(self.classes)}) by itself; leave boxes and points out, and labels "
                "and propagate"
            )
        if not self.policy.finds_classes and not options.has_objects:
            raise PromptError(
                f"this adapter was trained with {self.policy.kind} prompts and needs one; give "
                "boxes=[[x0, y0, x1, y1]], points=[[x, y]] or scribbles=[[x, y], ...], in pixels "
                "of the image, or masks=FILE"
            )

    def tiles(
        self, size: tuple[int, int], options: PredictionOptions, *, is_picture: bool
    ) -> Sequence[PictureTile] | None:
        """Return the tiles that a picture of a size (h, w) is cut into; None if it is seen whole.

        Raises:
            PromptError: ``tile`` is given for a volume.
        """
        if options.tile and not is_picture:
            raise PromptError(
                f"tile={options.tile} cuts pictures into tiles, and this is a volume, whose slices "
                "are seen whole; leave tile out"
            )
        trained = self.adapter.tiling
        # A side that the user chooses keeps the overlap of training.
        overlap = None if trained is None else trained.overlap
        cut = trained if options.tile is None else tiling(options.tile, overlap)
        return cut.tiles(*size) if cut and is_picture else None

    def second_pass(self, options: PredictionOptions) -> SecondPass | None:
        """Return what refines the classes that are found without prompts, if it is asked for.

        Raises:
            PromptError: this adapter takes prompts, or there is no promptable base for its images.
        """
        if options.second_pass is None:
            return None
        if not self.policy.finds_classes:
            raise PromptError(
                f"second_pass={options.second_pass} refines what is found without prompts, and "
                f"this adapter was trained with {self.policy.kind} prompts; leave it out"
            )
        base = self.adapter.base
        if base is None:
            raise PromptError(
                f"second_pass={options.second_pass} prompts the base model, and none is known: "
                "this is a U-Net, or a model that was not loaded from a directory; leave it out"
            )
        if base.input_channels != self.sam.input_channels:
            raise PromptError(
                f"second_pass={options.second_pass} prompts the base model, which sees "
                f"{base.input_channels} channels, and the adapter {self.sam.input_channels}; leave "
                "it out"
            )
        return SecondPass(base)

    @property
    def keeps_prompts(self) -> bool:
        """Whether an adapter that finds classes by itself also answers to prompts."""
        return all(member.record.keeps_prompts for member in self.members)

    def uncalibrated(self, options: PredictionOptions) -> str:
        """Return why objects get no confidence; empty if they get one."""
        return why_uncalibrated(self.members, options)

    def _kept(self, options: PredictionOptions, slices: int) -> bool | Sequence[str]:
        """Return the classes of which only the largest component is kept.

        A single slice of an organ may show it in several pieces, so what was recorded for volumes
        is left out there.
        """
        if options.keep_largest is not None:
            return options.keep_largest
        of_volumes = any(member.record.axis is not None for member in self.members)
        if not self.policy.is_semantic or (slices == 1 and of_volumes):
            return False
        recorded = [set(member.record.keep_largest) for member in self.members]
        return sorted(set.intersection(*recorded))

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
            DataError: the adapter sees stacks of slices, and this is a single image; or it
                separates objects, and this is a volume.
        """
        self.check(options)
        if self.policy.is_mixed or (self.policy.is_semantic and options.has_prompts):
            # Mask tokens that keep their meaning answer to prompts as those of the base do.
            asked = copy(self)
            asked.policy = asked_policy(self.policy, options)
            return asked.segment(volume, options, progress, instances=instances)
        if self.watershed is not None and volume.shape[2] > 1:
            raise DataError(
                f"this adapter was trained with head={INSTANCE_HEAD}: it separates the objects of "
                f"a picture, and this is a volume of {volume.shape[2]} slices, whose objects span "
                "slices; give single pictures"
            )
        if self.adapter.stack > 1 and volume.shape[2] == 1:
            raise DataError(
                f"this adapter sees {self.adapter.stack} neighbouring slices of a "
                "volume together (peft.depth, head.depth), and this is one image"
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
        largest = class_ids(self._kept(options, run.shape[2]), self.classes, "keep_largest")
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
            for labels, numbers in zip(found.maps, found.planes(found.instances), strict=True):
                run.settle_instances(labels, numbers)
        if found.instances is not None and found.foreground is not None:
            curves = [one.curve for one in self.members if not isinstance(one.curve, str)]
            found.objects = list_objects(
                found.planes(found.instances),
                found.planes(found.foreground),
                found.instance_classes,
                self.classes,
                [] if self.uncalibrated(options) else curves,
            )
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
        self.shape = height, width, depth = volume.shape
        is_picture, rule = volume.source is None and depth == 1, model.adapter.intensity
        # The mirrored copies of the slices that are seen, each as the reversed axes.
        self.mirrors = mirrors_of(rule, is_picture=is_picture) if options.tta else (AS_IT_IS,)
        self.second_pass = model.second_pass(options)
        self.tiles = model.tiles((height, width), options, is_picture=is_picture)
        self.count = depth if self.tiles is None else len(self.tiles)
        self.pictures = SlicePictures(volume, rule, self.tiles)
        self.stacks = Stacks(model.adapter.stack, lambda case: self.count)

        def blank(dtype: type, *leading: int) -> Array:
            # In memory (..., d, h, w), so that a slice is contiguous; the view is (..., h, w, d).
            return np.moveaxis(np.zeros((*leading, depth, height, width), dtype), -3, -1)

        maps = (len(model.classes),) if model.overlapping else ()
        found = self.found = Segmentation(blank(np.uint8, *maps))
        if options.probabilities:
            found.probabilities = blank(np.uint8, len(model.classes))
        if instances or options.objects or model.watershed is not None:
            found.instances = blank(np.int32, *maps)
        if model.watershed is not None:
            found.distances = blank(np.float16, 2 * len(model.classes))
        if options.objects:
            found.foreground = blank(np.float16, *maps)
        if options.uncertainty:
            found.uncertainty = blank(np.float32)
        if options.uncertainty == "mutual_information":
            found.mutual_information = blank(np.float32)

    def semantic(self) -> None:
        """Label every slice or tile without prompts."""
        count, overlapping = len(self.model.classes), self.model.overlapping
        label = region_labels if overlapping else semantic_labels
        for batch, passes in self._batches(range(self.count)):
            # Generators: the logits of one slice at a time are in memory at the size of the image.
            decoded = [
                semantic_logits(
                    one.member.sam,
                    one.embeddings,
                    one.frames,
                    count,
                    background_token=self.model.policy.background_token,
                )
                for one in passes
            ]
            for index, *each in zip(batch, *decoded, strict=True):
                mean = MeanLogits(exclusive=not overlapping)
                apart = MeanLogits(exclusive=False)  # of the distances, if the model predicts some
                for one, logits in zip(passes, each, strict=True):
                    planes = turned_back(logits[0, 0], one.mirror)
                    mean.add(planes[:count])
                    apart.add(planes[count:])
                if self.second_pass is not None:
                    self.second_pass.add_to(mean, self.pictures(index))
                labels = label(mean.logits[None, None], count)[0]
                self._put(self.found.labels, index, labels.cpu().numpy())
                self._keep_classes(index, mean)
                if self.found.distances is not None:
                    distances = apart.probabilities.half().cpu().numpy()
                    self._put(self.found.distances, index, distances)

    def prompted(self) -> None:
        """Segment what is prompted on each slice or tile."""
        prompts = self._prompts()
        if self.tiles is not None and 0 in prompts:
            prompts = {i: tile_prompts(prompts[0], tile) for i, tile in enumerate(self.tiles)}
        wanted = [index for index in prompts if len(prompts[index])]
        for batch, passes in self._batches(wanted):
            objects = [prompts[index] for index in batch]
            decoded = [self._decode(one, objects) for one in passes]
            for index, item, *masks in zip(batch, objects, *decoded, strict=True):
                self._keep(index, item.numbers.tolist(), masks)

    def propagated(self) -> None:
        """Carry what is prompted on some slices to the others.

        Raises:
            PromptError: there is one slice, or the prompts do not say on which slices they are.
        """
        options, depth = self.options, self.shape[2]
        check_start(options, depth)
        prompts = self._prompts()
        up, down = plan_walks(prompts, depth, options.slices)
        steps = len({i for walk in up for i in range(walk.start, walk.limit + 1)})
        steps += len({i for walk in down for i in range(walk.limit, walk.start)})
        passes = [(member, mirror) for mirror in self.mirrors for member in self.model.members]
        advance = self._counter(steps * len(passes))
        sam = self.model.sam
        frame = make_frame(self.shape[:2], sam.image_size, sam.preprocessing.resize)
        walks = [self._walk(*one, prompts, frame, up, down, advance) for one in passes]
        for index, numbers, logits in walk_together(walks):
            masks = [
                DecodedObjects(member.sam, found.to(sam.device), frame, mirror)
                for (member, mirror), found in zip(passes, logits, strict=True)
            ]
            self._keep(index, numbers, masks)

    def _walk(
        self,
        member: AdapterBundle,
        mirror: Mirror,
        prompts: Mapping[int, ImagePrompts],
        frame: Frame,
        up: Sequence[Walk],
        down: Sequence[Walk],
        advance: Callable[[], None],
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Carry the objects through the volume in one pass; yield what it finds on each slice."""

        def embed(indices: Sequence[int]) -> tuple[Tensor, list[Frame]]:
            (one,) = self._embed(indices, [member], [mirror])
            return one.embeddings, one.frames

        propagation = make_propagation(
            self.options,
            depth=self.shape[2],
            sam=member.sam,
            embed=embed,
            policy=self.model.policy,
            threshold=self.model.threshold,
            ahead=self.model.ahead,
            advance=advance,
        )
        seen = {i: mirrored_prompts(item, mirror, frame) for i, item in prompts.items()}
        return propagation(seen, up, down)

    def settle_instances(self, labels: Array, instances: Array) -> None:
        """Let the objects of a map follow what postprocessing did to its labels.

        Without prompts the objects are those that the model separates in a picture, or else the
        components of the labels, in 3D for a volume.

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
        if self.model.watershed is not None and found.distances is not None:
            classes, planes = len(self.model.classes), found.distances[..., 0]
            separated = self.model.watershed.separate_classes(labels[None, ..., 0], planes, classes)
            for class_id, _, own in separated:
                known = len(found.instance_classes)
                instances[..., 0][own > 0] = own[own > 0] + known
                found.instance_classes = [*found.instance_classes, *[class_id] * int(own.max())]
            return
        # A picture has 8 neighbours, not lines of one pixel along its only slice.
        at = (..., 0) if self.shape[2] == 1 else ...
        for class_id in np.unique(labels[labels > 0]).tolist():
            parts = components(labels[at] == class_id)
            known = len(found.instance_classes)
            instances[at][parts > 0] = parts[parts > 0] + known
            found.instance_classes = [*found.instance_classes, *[class_id] * int(parts.max())]

    def _prompts(self) -> dict[int, ImagePrompts]:
        """Return the user's prompts by slice, with the classes that the user names."""
        prompts = asked_prompts(self.options, self.shape, self.model.policy.scribble_points)
        ids = asked_classes(self.options, prompts, self.model.classes)
        self.found.instance_classes = ids.tolist()
        # Indexed by object number: the class of each object, and 0 for number 0, the background.
        self.class_of = np.concatenate([[0], ids])
        return {
            index: replace(item, class_ids=self.class_of[item.numbers])
            for index, item in prompts.items()
        }

    def _batches(self, wanted: Sequence[int]) -> Iterator[tuple[list[int], list[EmbeddedPass]]]:
        """Yield the wanted slices in batches, as each pass sees them."""
        advance, size = self._counter(len(wanted)), self.model.batch_size
        for start in range(0, len(wanted), size):
            batch = list(wanted[start : start + size])
            yield batch, self._embed(batch, self.model.members, self.mirrors)
            for _ in batch:
                advance()

    def _embed(
        self,
        indices: Sequence[int],
        members: Sequence[AdapterBundle],
        mirrors: Sequence[Mirror],
    ) -> list[EmbeddedPass]:
        """Embed slices or tiles, together with the other slices of their stacks."""
        whole, rows = self.stacks.whole([SliceRef("", index) for index in indices])
        images = [self.pictures(ref.index) for ref in whole]
        passes = embed_passes(members, mirrors, images, self.model.embeddings, self.stacks.size)
        if self.stacks.size == 1:
            return list(passes)
        return [
            replace(one, embeddings=one.embeddings[rows], frames=[one.frames[row] for row in rows])
            for one in passes
        ]

    def _decode(self, one: EmbeddedPass, prompts: Sequence[ImagePrompts]) -> list[DecodedObjects]:
        """Decode the prompted objects of some images in one pass."""
        seen = [
            mirrored_prompts(item, one.mirror, frame)
            for item, frame in zip(prompts, one.frames, strict=True)
        ]
        sam, policy = one.member.sam, self.model.policy
        given = sam, one.embeddings, one.frames, seen, policy
        masks = answers_to_prompts(*given, multimask=policy.multimask)
        return [
            DecodedObjects(sam, logits, frame, one.mirror)
            for (logits, _), frame in zip(masks, one.frames, strict=True)
        ]

    def _keep(self, index: int, numbers: Sequence[int], masks: Sequence[DecodedObjects]) -> None:
        """Merge the masks of a slice's objects; the highest logit wins.

        Classes that may overlap take no pixels from each other.

        Args:
            index: of the slice or tile.
            numbers: of the p objects.
            masks: the p objects as each pass decoded them.
        """
        classes, shape = self.class_of[list(numbers)], masks[0].frame.original
        for class_id in np.unique(classes) if self.model.overlapping else [0]:
            own = np.flatnonzero((classes == class_id) | (class_id == 0))
            planes = (mean.logits for _, mean in object_means(masks, own))
            wins = merge_objects(planes, shape, self.model.threshold)
            # `wins` counts the objects in `own` from 1; `merged` has their numbers in the volume.
            merged = np.concatenate([[0], np.asarray(numbers)[own]]).astype(np.int32)[wins]
            # 0 stands for all classes, which then share one map.
            place = class_id - 1 if class_id else ...
            self._put(self.found.labels[place], index, self.class_of[merged])
            if self.found.instances is not None:
                self._put(self.found.instances[place], index, merged)
        self._keep_objects(index, classes, masks)

    def _keep_classes(self, index: int, mean: MeanLogits) -> None:
        """Keep the probabilities and the uncertainty of a slice that was labelled, if asked for."""
        found = self.found
        if found.probabilities is not None or found.foreground is not None:
            shares = mean.probabilities
            self._keep_probabilities(index, shares)
            self._keep_foreground(index, shares if self.model.overlapping else shares.amax(0))
        for name, plane in self._measures(mean).items():
            self._put(getattr(found, name), index, plane.cpu().numpy())

    def _keep_objects(self, index: int, classes: Array, masks: Sequence[DecodedObjects]) -> None:
        """Keep the probabilities and the uncertainty of a slice's objects, if asked for."""
        found = self.found
        if all(v is None for v in (found.probabilities, found.foreground, found.uncertainty)):
            return
        best: dict[int, Tensor] = {}  # by class id, of its most probable object
        largest: dict[str, Tensor] = {}
        for rows, mean in object_means(masks, np.arange(len(classes))):
            shares = mean.probabilities
            for class_id in np.unique(classes[rows]).tolist():
                own = torch.as_tensor(classes[rows] == class_id, device=shares.device)
                top = shares[own].amax(0)
                best[class_id] = torch.maximum(best.get(class_id, top), top)
            for name, plane in self._measures(mean).items():
                largest[name] = torch.maximum(largest.get(name, plane), plane)
        for class_id, top in best.items():
            self._keep_probabilities(index, top[None], class_id - 1)
            if self.model.overlapping:
                self._keep_foreground(index, top, class_id - 1)
        if best and not self.model.overlapping:
            self._keep_foreground(index, torch.stack(list(best.values())).amax(0))
        for name, plane in largest.items():
            self._put(getattr(found, name), index, plane.cpu().numpy())

    def _measures(self, mean: MeanLogits) -> dict[str, Tensor]:
        """Return the maps (h, w) of the uncertainty that were asked for, by their name."""
        asked = [name for name in MEASURES if getattr(self.found, name) is not None]
        return {name: MEASURES[name](mean) for name in asked}

    def _keep_probabilities(self, index: int, values: Tensor, first: int = 0) -> None:
        """Keep the probabilities (n, h, w) of n classes from ``first`` on, in steps of 1/255."""
        if self.found.probabilities is not None:
            scaled = (values * 255).round().to(torch.uint8).cpu().numpy()
            self._put(self.found.probabilities[first : first + len(scaled)], index, scaled)

    def _keep_foreground(self, index: int, values: Tensor, place: Any = ...) -> None:
        """Keep the probability of the most probable class or object, in one map or in all."""
        if self.found.foreground is not None:
            self._put(self.found.foreground[place], index, values.half().cpu().numpy())

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
