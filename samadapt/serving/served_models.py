"""The models that a server offers. Adapters of the same base share it in memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from samadapt.adapters.base_model import open_base
from samadapt.adapters.record import UNET_RECORD, read_record
from samadapt.errors import AdapterError, nearest
from samadapt.inference.bundle import encoder_of_base, load_bundle
from samadapt.inference.ensemble import member_directories
from samadapt.inference.inputs import reader_options
from samadapt.inference.volumes import VolumePredictor
from samadapt.prompts.policy import PromptPolicy
from samadapt.training.precision import Precision, choose_device, choose_precision

if TYPE_CHECKING:
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.inference.bundle import AdapterBundle
    from samadapt.sam.model import Sam
    from samadapt.sam.segmentation_model import SegmentationModel

BASE = "base"
"""Name of the base model without an adapter."""


@dataclass(frozen=True)
class ServedModel:
    """One model that answers to prompts, or finds classes.

    Attributes:
        name: what clients call it.
        bundle: the model and the rules of its record.
        precision: what it computes in.
        is_base: it is the base, seen with the rules of the first adapter.
    """

    name: str
    bundle: AdapterBundle
    precision: Precision
    is_base: bool = False

    @property
    def sam(self) -> SegmentationModel:
        """The model."""
        return self.bundle.sam

    @property
    def classes(self) -> list[str]:
        """Names of the classes; label k is ``classes[k - 1]``."""
        return list(self.bundle.record.classes)

    @property
    def takes_prompts(self) -> bool:
        """Whether the model answers to prompts."""
        return not self.bundle.policy.is_semantic or self.bundle.record.keeps_prompts

    @property
    def finds_classes(self) -> bool:
        """Whether the model finds its classes without prompts."""
        return self.bundle.policy.finds_classes

    @property
    def reader_options(self) -> ReaderOptions:
        """How its images are read, as in training."""
        return reader_options(self.bundle.record)

    @property
    def channels(self) -> int:
        """Number of channels of its images; 1 also stands for pictures in colours."""
        return len(self.bundle.intensity.inputs) or 1

    @property
    def notes(self) -> list[str]:
        """What a user must know about its answers to prompts."""
        if not self.takes_prompts:
            return ["it was trained without prompts: it finds its classes, and takes no clicks"]
        notes = []
        kinds = self.bundle.policy.kinds
        if self.bundle.policy.finds_classes:
            notes.append("it finds its classes, and answers to prompts as well")
        elif not self.is_base:
            notes.append(f"it was trained with prompts={','.join(kinds)} and is best with these")
        if self.bundle.tiling is not None:
            notes.append(
                "it was trained on tiles of pictures; a prompt is answered on the whole picture, "
                "so small objects of large pictures are better cut out first"
            )
        return notes

    def policy(self, *, points: bool) -> PromptPolicy:
        """Return how the model answers to a prompt.

        Args:
            points: whether the prompt has points; otherwise it is a box or a mask alone.
        """
        own = self.bundle.policy
        if own.is_mixed or own.is_semantic:
            return own.answering(points=points)
        return own

    def predictor(self) -> VolumePredictor:
        """Return what segments whole images with this model."""
        return VolumePredictor([self.bundle], self.precision)


class ServedModels:
    """The models by name, the first one being the default.

    Args:
        models: at least one.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        """Yield the models in their order."""
        return iter(self._models.values())

    @property
    def first(self) -> ServedModel:
        """The default."""
        return next(iter(self._models.values()))

    def get(self, name: str | None) -> ServedModel:
        """Return a model by its name; None: the default.

        Raises:
            AdapterError: no model has this name.
        """
        if name is None:
            return self.first
        if name not in self._models:
            raise AdapterError(
                f"adapter: there is no {name[:100]!r}; there are {', '.join(self._models)}"
                f"{nearest(name[:100], self._models)}"
            )
        return self._models[name]


def load_models(
    directories: Sequence[str | Path],
    *,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> ServedModels:
    """Load adapters, those of the same base and image size over one model of it.

    Args:
        directories: adapter directories, or ``hf:USER/NAME``.
        checkpoint: file of the base weights, if all adapters have the same base; None: they are
            found as ``load_adapter`` finds them.
        device: where to compute.
        precision: what the models compute in.

    Raises:
        AdapterError: a directory is refused, or ``checkpoint`` is given for several bases.
        WeightsError: the base weights are not found or are of another kind.
        ConfigError: this machine has no such device or precision.
    """
    places = [_one_adapter(name) for name in directories]
    target = choose_device(device)
    arithmetic = choose_precision(precision, target)
    records = [read_record(place) for place in places]
    named = dict.fromkeys(record.base for record in records)
    if checkpoint is not None and len(named) > 1:
        raise AdapterError(
            f"checkpoint={checkpoint}: is the file of one base model, and these adapters have "
            f"{' and '.join(named)}; leave it out, and put each file into its adapter's folder"
        )
    bases: dict[Hashable, Sam] = {}
    models: list[ServedModel] = []
    for given, place, record in zip(directories, places, records, strict=True):
        key = encoder_of_base(record)
        if key not in bases:
            bases[key] = open_base(place, record, checkpoint)[0].to(target)
        bundle = load_bundle(place, record, bases[key])
        name = _free_name(str(given), place, [model.name for model in models])
        models.append(ServedModel(name, bundle, arithmetic))
    first, base = models[0].bundle, bases[encoder_of_base(records[0])]
    # A model of other channels, or a dense head, sees what the base cannot see.
    if first.sam.input_channels == base.input_channels:
        # Boxes get one mask: the tokens for several masks of some bases were never trained.
        policy = PromptPolicy("box", objects=first.policy.objects)
        record = replace(
            first.record, classes=[], head={}, overlapping=False, prompt=policy.to_dict()
        )
        bundle = replace(first, sam=base.eval(), record=record, policy=policy, stack=1)
        bundle = replace(bundle, encoder=encoder_of_base(record), curve="it is the base model")
        models.append(ServedModel(BASE, bundle, arithmetic, is_base=True))
    return ServedModels(models)


def _one_adapter(name: str | Path) -> Path:
    """Return the directory of one adapter.

    Raises:
        AdapterError: it is a cross-validation or a U-Net.
    """
    places = member_directories(name)
    if len(places) > 1:
        raise AdapterError(
            f"{name}: is a cross-validation of {len(places)} adapters, and a click is answered by "
            f"one; name one of them, as adapter={places[0]}"
        )
    if (places[0] / UNET_RECORD).is_file():
        raise AdapterError(f"{name}: is a U-Net, which takes no prompts; use samadapt predict")
    return places[0]


def _free_name(given: str, place: Path, taken: Sequence[str]) -> str:
    """Return a name for an adapter: its folder, the run that it belongs to, or its Hub name."""
    resolved = place.resolve()
    name = resolved.parent.name if resolved.name == "adapter" else resolved.name
    if given.startswith("hf:"):
        name = given.rpartition("/")[2]
    name = "".join(c if c.isalnum() or c in "-_.@" else "-" for c in name) or "adapter"
    number, free = 2, name
    while free in (*taken, BASE):
        free, number = f"{name}-{number}", number + 1
    return free
