"""The base classes of named losses, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from samadapt.system.settings import SETTINGS, Settings, annotation_of, settings_fields

if TYPE_CHECKING:
    from samadapt.training.mask_losses import ExtraTerm, LossFunction, MaskTerm

Target = Literal["objects", "classes", "regions"]
"""What a loss compares: the masks of prompted objects; classes of which each pixel has at most one;
or regions, classes that may overlap. The last two have no prompts."""

EVERY_TARGET: frozenset[Target] = frozenset({"objects", "classes", "regions"})
WITHOUT_PROMPTS: frozenset[Target] = frozenset({"classes", "regions"})

# A key that several losses take means the same in all of them.
FocalWeight = Annotated[float, Field(ge=0, description="weight of the focal loss")]
DiceWeight = Annotated[
    float, Field(ge=0, description="weight of the Dice loss, or of the loss in its place")
]
IouWeight = Annotated[
    float, Field(ge=0, description="weight of the squared error of the predicted IoU")
]
ObjectScoreWeight = Annotated[
    float,
    Field(
        ge=0,
        description="weight of the cross-entropy of SAM 2's object score, which says whether the "
        "prompted object is in the image; the first SAM has none",
    ),
]
EntropyWeight = Annotated[float, Field(ge=0, description="weight of the cross-entropy")]

LOSSES: dict[str, type[NamedLoss]] = {}
"""Every loss by its name in ``loss=NAME``; ``register`` fills it."""


# Validators take a few milliseconds to build, and a run uses one loss.
@dataclass(frozen=True, config=ConfigDict(**SETTINGS, defer_build=True))
class NamedLoss(Settings):
    """A loss that users choose by name. Its fields are keys of the group ``loss``.

    A new loss is one file in this package: a subclass with ``@register("name")`` that overrides
    ``build``, or a subclass of ``MaskTermLoss`` with one term. A key that another loss has too must
    have the same type, default and description. ``tests/training/losses/test_contract.py`` then
    checks the loss.
    """

    section: ClassVar[str] = "loss"
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    """One line for ``samadapt ls losses``."""
    fits: ClassVar[frozenset[Target]] = EVERY_TARGET
    """What the loss can compare."""

    def build(
        self, target: Target, classes: int, weights: Sequence[float] | None = None
    ) -> LossFunction:
        """Return the function that computes the loss.

        Args:
            target: one of ``fits``.
            classes: number K of classes; not used for objects.
            weights: K + 1 weights of the background and the classes; None: all are equal. They are
                always None for objects.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")


@dataclass(frozen=True)
class MaskTermLoss(NamedLoss):
    """A loss with one special term that compares whole masks.

    Everything else is as in ``sam`` for objects and as in ``dice_ce`` for classes. A subclass
    overrides ``overlap`` to replace Dice, or ``extra`` to add a term.
    """

    focal: FocalWeight = 20.0
    dice: DiceWeight = 1.0
    iou: IouWeight = 1.0
    object_score: ObjectScoreWeight = 1.0
    cross_entropy: EntropyWeight = 1.0

    def overlap(self) -> MaskTerm:
        """Return what is computed in the place of Dice; Dice itself if it is not overridden."""
        from samadapt.training.mask_losses import dice_of_masks

        return dice_of_masks

    def extra(self) -> ExtraTerm | None:
        """Return one more term, or None."""
        return None

    def build(
        self, target: Target, classes: int, weights: Sequence[float] | None = None
    ) -> LossFunction:
        """Return the loss with the special term."""
        from samadapt.training.mask_losses import object_loss, region_loss, semantic_loss

        overlap, extra = self.overlap(), self.extra()
        if target == "objects":
            return object_loss(
                focal=self.focal,
                dice=self.dice,
                iou=self.iou,
                object_score=self.object_score,
                overlap=overlap,
                extra=extra,
            )
        make = region_loss if target == "regions" else semantic_loss
        return make(
            classes,
            cross_entropy=self.cross_entropy,
            dice=self.dice,
            overlap=overlap,
            extra=extra,
            weights=weights,
        )


def targets_text(fits: frozenset[Target]) -> str:
    """Return what a loss can compare in the words of the keys that decide about it."""
    if "objects" not in fits:
        return "prompts=semantic" + ("" if "regions" in fits else " without data.regions")
    return "all prompts" if fits == EVERY_TARGET else "prompts with boxes or points"


def register(name: str) -> Callable[[type[Any]], type[Any]]:
    """Return a decorator that makes a loss available as ``loss=name``."""

    def add(cls: type[Any]) -> type[Any]:
        cls.name = name
        LOSSES[name] = cls
        return cls

    return add


@plain_dataclass(frozen=True)
class LossKey:
    """A key of the group ``loss``.

    Attributes:
        annotation: type with bounds.
        default: the value that applies when the key is not set.
        description: what the key means.
        losses: names of the losses that take the key.
    """

    annotation: Any
    default: Any
    description: str
    losses: tuple[str, ...]


def loss_keys() -> dict[str, LossKey]:
    """Return the keys of all losses by name."""
    keys: dict[str, LossKey] = {}
    for loss in LOSSES.values():
        for name, field in settings_fields(loss).items():
            others = keys[name].losses if name in keys else ()
            keys[name] = LossKey(
                annotation_of(field), field.default, field.description or "", (*others, loss.name)
            )
    return keys
