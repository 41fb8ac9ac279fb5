"""The keys ``prompts.*``: how prompts are made from the ground truth."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from samadapt.config.described import OfPrompts
from samadapt.prompts.policy import Kind, Variant
from samadapt.prompts.shares import check_first_shares, check_shares
from samadapt.system.settings import Settings, Whole

# `samadapt ls` shows the texts of this table.
PROMPTS = {
    "box": "the bounding box of an object, with noise in training",
    "point": "a random point inside an object; the decoder predicts several masks for it",
    "scribble": "points along a curve through an object, and often one through the background",
    "mask": "a rough mask of an object, which the model corrects",
    "interactive": "a point or a box, then clicks that correct the mask, as in the SAM paper",
    "semantic": "no prompt: one mask token for each class, as in SAMed",
    "auto": "no prompt: a small network makes one for each class, as in AutoSAM; needs peft=none",
    "propagate": "a prompt on the first slice of a clip, carried through it by the memory of SAM 2",
    "mixed": "shares of several kinds in one run: one adapter for all (prompts.shares)",
}

Shares = Annotated[dict[str, float], AfterValidator(check_shares)]
FirstShares = Annotated[str | dict[str, float], AfterValidator(check_first_shares)]


@dataclass(frozen=True)
class PromptSettings(Settings):
    """How prompts are made from the ground truth; the defaults are those of the SAM paper."""

    section: ClassVar[str] = "prompts"

    name: Literal[Kind, "propagate"] = Field(
        default="box",
        description="kind of prompt: box; point; scribble, a curve; mask, a rough mask; "
        "interactive, a point or a box and then clicks that correct the mask; semantic, which "
        "needs no prompt and predicts one mask for each class; auto, a network that makes the "
        "prompts of a frozen model; propagate, a prompt on one slice that the memory of SAM 2 "
        "carries through the next; or mixed, batches of several kinds by prompts.shares",
    )
    objects: Literal["component", "class"] = Field(
        default="component",
        description="what one prompt covers: a connected component, or a whole class in the slice",
    )
    jitter: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="standard deviation of the noise on box sides, as a share of the side's length",
    )
    max_jitter_px: float = Field(
        default=20.0,
        ge=0,
        description="largest noise on a box side, in pixels of an image whose longest side is 1024",
    )
    min_area: Whole = Field(
        default=0, ge=0, description="objects of fewer pixels than this get no prompt"
    )
    max_objects: Whole = Field(
        default=4,
        ge=1,
        description="number of objects of an image that train in one step; large objects are drawn "
        "more often",
    )
    keep_promptable: bool = Field(
        default=False,
        description="with prompts=semantic: give the classes tokens of their own, so that the mask "
        "tokens of SAM keep answering to prompts; with more than three classes, and with "
        "prompts=mixed, it is always so",
    )
    background_token: bool = Field(
        default=False,
        description="with classes found without prompts: the background has a token too, and takes "
        "the pixels where its logit is the highest, as in SAMed; false: its logit is 0",
    )
    clicks: Annotated[Whole, Field(ge=1, le=100)] | None = Field(
        default=None,
        description="clicks that correct an object in one step of prompts=interactive; the decoder "
        "runs a few times more often than that, so fewer clicks are faster; null: 8, or 7 as "
        "SAM 2 trains",
    )
    variant: Variant | None = Field(
        default=None,
        description="how prompts=interactive trains: as in the SAM paper, or as SAM 2: uniform "
        "noise on boxes, a tenth of the clicks drawn from the whole object, a click on the "
        "background where the mask is right, and no round without a click; null: sam2 if the model "
        "is a SAM 2, else sam",
    )
    negatives: Annotated[float, Field(ge=0, le=0.9)] | None = Field(
        default=None,
        description="share of training examples with nothing to find: of the slices of "
        "prompts=semantic, those that hold no class; of the objects of other prompts, boxes and "
        "clicks moved to where nothing is, which want an empty mask; scores then also ask there; "
        "null: slices as they are, and prompts on objects alone",
    )
    clip: OfPrompts[Annotated[Whole, Field(ge=2, le=16)] | None] = Field(
        default=None,
        description="neighbouring slices of a training clip of prompts=propagate, of which "
        "train.batch_size clips make a batch; null: 4",
    )
    first: OfPrompts[FirstShares | None] = Field(
        default=None,
        description="prompt on the first slice of a clip of prompts=propagate: box, point, mask, "
        "or how often each kind is drawn for a batch, such as {box: 1, point: 1, mask: 2}; scores "
        "start from each kind; null: box",
    )
    shares: OfPrompts[Shares | None] = Field(
        default=None,
        description="with prompts=mixed: how often each kind of prompt is drawn for a batch, such "
        "as {box: 1, interactive: 2, semantic: 1}; they need not add up to 1; null: box, point, "
        "mask, interactive and semantic equally often",
    )
    click_disks: bool = Field(
        default=False,
        description="with prompts=interactive: draw a disk at each click into the mask that goes "
        "back to the model, in training and in predictions, and let the answer obey each click "
        "where it is; helps bases that were trained with boxes alone, such as LiteMedSAM",
    )
    every_kind: bool = Field(
        default=False,
        description="with prompts=mixed: train each batch with every kind of prompt, whose losses "
        "are weighted by their shares; the encoder runs once for all of them, so a step costs more "
        "of the decoder alone; false: draw one kind for each batch",
    )
    mask_noise: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="how rough the masks of prompts=mask are, as a share of the object's largest "
        "width: they are shifted, eroded or dilated, wavy and have holes; 0: exact",
    )
    scribble_points: Annotated[Whole, Field(ge=2, le=100)] = Field(
        default=8,
        description="points at equal distances along a scribble that reach the model; also for the "
        "scribbles of a user",
    )
    scribble_outside: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="chance that the objects of a training step with prompts=scribble also get a "
        "scribble in the background beside them",
    )
