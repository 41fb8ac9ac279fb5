"""How a run prompts its objects. The policy is recorded with the adapter and used at prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from samadapt.errors import PromptError
from samadapt.prompts.shares import MIXED, check_shares, normalised

Kind = Literal["box", "point", "scribble", "mask", "interactive", "semantic", "auto", "mixed"]
Objects = Literal["component", "class"]
Variant = Literal["sam", "sam2"]

AUTO: Kind = "auto"
"""The kind of prompts that a small network makes (``sam/prompt_generator.py``)."""

CLICKS: dict[Variant, int] = {"sam": 8, "sam2": 7}
"""Corrections of an object in one training step, in the paper of SAM and in the code of SAM 2."""

SCORED_CLICKS = 3
"""Clicks on each object with which a model that was trained with clicks is scored: the first in its
middle, and two corrections."""


@dataclass(frozen=True)
class PromptPolicy:
    """How an object of the ground truth becomes a prompt.

    Attributes:
        kind: ``"box"`` or ``"point"`` for each object; ``"scribble"``: points along a curve
            (``prompts/scribbles.py``); ``"mask"``: a rough mask (``prompts/rough_masks.py``);
            ``"interactive"``: a point or a box, then clicks that correct the mask
            (``training/click_rounds.py``); ``"semantic"``: no prompt, but one mask token for each
            class, so that one pass predicts all classes (as in SAMed); ``"auto"``: no prompt
            either, but a network that makes one for each class (as in AutoSAM); or ``"mixed"``:
            each batch has one of these, by ``shares``.
        objects: one prompt for each connected ``"component"`` of a class, or one for the whole
            ``"class"`` in the image.
        jitter: standard deviation of the noise on each side of a box in training, as a share of
            the box's width or height (SAM: 0.1).
        max_jitter_px: bound of that noise, in pixels of an image whose longest side is 1024
            (SAM: 20).
        min_area: objects of fewer pixels than this get no prompt.
        max_objects: number of objects of an image that one step trains on. They are drawn with
            chances proportional to their diameter. Predictions and scores take all objects.
        background_token: for ``"semantic"``: the logit of the background is that of a token, and
            not 0. It is mask token 0 (the single mask), as in SAMed, or one of its own where the
            classes have tokens of their own.
        keep_promptable: for ``"semantic"``: the classes have tokens of their own, so that the mask
            tokens keep answering to prompts. Models of more than three classes always have them.
        clicks: for ``"interactive"``: corrections of an object in one training step; None: as many
            as the variant has.
        variant: for ``"interactive"``: the training of the ``"sam"`` paper, or that of
            ``"sam2"``, whose noise on boxes is uniform; see ``training/click_rounds.py``.
        negatives: share of training examples with nothing to find, see ``prompts/absent.py`` and
            ``training/draws.py``; None: slices as they are, and prompts on objects alone.
        click_disks: for ``"interactive"``: the mask that goes back shows the clicks
            (``sam/click_disks.py``), in training as in predictions, and the answer obeys them.
        clip: slices of a training clip, on the first of which objects are prompted
            (``training/clips.py``), and from one slice of a volume carried to the others in scores
            (``runs/carried_objects.py``); 1: each slice is prompted.
        shares: for ``"mixed"``: the share of each kind of prompt among the batches, with clips on
            their first slices; they add up to 1.
        every_kind: for ``"mixed"``: each batch trains with all kinds, weighted by their shares.
        mask_noise: for ``"mask"``: how rough the masks are, as a share of the object's width.
        scribble_points: number of points along a scribble.
        scribble_outside: for ``"scribble"``: chance that the objects of a training step also get a
            scribble in the background.
    """

    kind: Kind = "box"
    objects: Objects = "component"
    jitter: float = 0.1
    max_jitter_px: float = 20.0
    min_area: int = 0
    max_objects: int = 4
    background_token: bool = False
    keep_promptable: bool = False
    clicks: int | None = None
    variant: Variant = "sam"
    negatives: float | None = None
    every_kind: bool = False
    mask_noise: float = 0.3
    scribble_points: int = 8
    scribble_outside: float = 0.5
    click_disks: bool = False
    clip: int = 1
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_mixed(self) -> bool:
        """Whether batches differ in their kind of prompt."""
        return self.kind == MIXED

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of prompts that the model is trained for."""
        return tuple(self.shares) if self.is_mixed else (self.kind,)

    @property
    def main_kind(self) -> str:
        """The kind with the largest share, the first of equals; its scores come first."""
        return max(self.kinds, key=lambda kind: self.shares.get(kind, 1.0))

    @property
    def finds_classes(self) -> bool:
        """Whether the model also predicts classes without prompts."""
        return self.is_semantic or "semantic" in self.kinds

    def of_kind(self, kind: str) -> PromptPolicy:
        """Return how one of ``kinds`` is prompted, as in a run of that kind alone."""
        if kind == self.kind:
            return self
        kept = self.keep_promptable or self.is_mixed
        return replace(self, kind=kind, shares={}, keep_promptable=kept)  # type: ignore[arg-type]

    def answering(self, *, points: bool) -> PromptPolicy:
        """Return how a model that is mixed, or finds classes, answers to the prompts of a user.

        Args:
            points: whether there are points; otherwise there are boxes alone.
        """
        # Boxes alone were trained to give one mask, and a frozen model does so best. Else the best
        # of several answers a single prompt, and one mask further ones.
        is_box = not points and ("box" in self.kinds or self.kind == AUTO)
        return replace(self, kind="box" if is_box else "interactive", shares={})

    @property
    def is_semantic(self) -> bool:
        """Whether the model predicts classes, without prompts."""
        return self.kind in ("semantic", AUTO)

    @property
    def is_interactive(self) -> bool:
        """Whether clicks correct the mask."""
        return self.kind == "interactive"

    @property
    def is_drawing(self) -> bool:
        """Whether a prompt is drawn: a scribble or a mask, made from the object's whole shape."""
        return self.kind in ("scribble", "mask")

    @property
    def multimask(self) -> bool | None:
        """Whether an object gets several masks, because a point may mean a part or the whole.

        None: an object with a single prompt does, and one with more prompts gets one mask.
        """
        if self.is_mixed:
            return None if {"point", "interactive"} & set(self.kinds) else False
        return None if self.is_interactive else self.kind == "point"

    @property
    def corrections(self) -> int:
        """Number of clicks that correct an object in one training step."""
        return CLICKS[self.variant] if self.clicks is None else self.clicks

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as plain values for ``samadapt.json``."""
        values = asdict(self)
        if self.clip == 1:
            del values["clip"]
        if not self.is_mixed:
            del values["shares"], values["every_kind"]  # only this kind has them
        if self.negatives is None:
            del values["negatives"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PromptPolicy:
        """Return the policy that ``to_dict`` wrote.

        Raises:
            PromptError: a key or the kind is unknown.
        """
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown or values.get("kind", "box") not in get_args(Kind):
            raise PromptError(f"not a prompt policy: {dict(values)!r}")
        shares = values.get("shares", {})
        if values.get("kind") == MIXED:
            try:
                shares = normalised(check_shares(shares))
            except (TypeError, ValueError, AttributeError) as error:
                raise PromptError(f"not a prompt policy: shares: {error}") from error
        elif shares:
            raise PromptError(f"not a prompt policy: {dict(values)!r}")
        return cls(**{**values, "shares": shares})
