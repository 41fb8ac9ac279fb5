"""The keys of the stages of ``samadapt engine``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.prediction_machine import ChosenModel
from samadapt.config.schema import Config
from samadapt.errors import ConfigError
from samadapt.inference.mask_options import MaskOptions
from samadapt.system.settings import List, Settings, Whole


def _of_the_paper(name: str, value: Any) -> Any:
    """Return a key of automatic masks with the value of SAM's paper as its default."""
    item = next(item for item in fields(MaskOptions) if item.name == name)
    about = dict(item.metadata)
    about["description"] = str(about["description"]).partition("; null:")[0]
    return Field(default=value, **about)


@dataclass(frozen=True)
class AutomaticArguments(ChosenModel, MaskOptions):
    """The keys of ``samadapt engine automatic``: files, model, and how masks are kept.

    The defaults are those of Kirillov et al. 2023, appendix B.
    """

    input: str = Field(default="", description="folder of pictures or volumes, or one of them")
    output: str = Field(
        default="",
        description="folder to write: the JSON of SA-1B for pictures, numbers on the grid of the "
        "source for volumes; or one .json, COCO, for all pictures",
    )
    format: Literal["sa1b", "png"] = Field(
        default="sa1b",
        description="for pictures in a folder: sa1b: a JSON file with every mask whole; png: the "
        "number of the mask of each pixel",
    )
    preview: bool = Field(
        default=False, description="also write OUTPUT_preview.png, the masks over the image"
    )
    overwrite: bool = Field(
        default=False, description="find all masks anew, instead of continuing the folder"
    )
    masks_per_point: Literal["three", "one"] = _of_the_paper("masks_per_point", "three")
    refine: Whole = _of_the_paper("refine", 0)
    min_iou: float = _of_the_paper("min_iou", 0.88)
    relative_iou: float = _of_the_paper("relative_iou", 0.0)
    min_stability: float = _of_the_paper("min_stability", 0.95)
    crop_layers: Whole = _of_the_paper("crop_layers", 2)
    crop_points_factor: Whole = _of_the_paper("crop_points_factor", 2)
    min_area: Whole = _of_the_paper("min_area", 100)
    min_mask_area: Whole = _of_the_paper("min_mask_area", 100)
    max_mask_share: float = _of_the_paper("max_mask_share", 0.95)


@dataclass(frozen=True)
class InWorkspace(Settings):
    """The key that every stage in a workspace takes."""

    workspace: str = Field(
        default="", description="folder of the workspace: proposals, accepted masks and rounds"
    )

    def check_workspace(self) -> None:
        """Refuse arguments without a workspace.

        Raises:
            ConfigError: the key is missing.
        """
        if not self.workspace:
            raise ConfigError("workspace: this key is required; it names the engine's folder")


@dataclass(frozen=True)
class EngineModel(ChosenModel, MaskOptions, InWorkspace):
    """The model of a stage, and how it draws masks."""

    adapter: str | List[str] | None = Field(  # type: ignore[assignment]
        default=None,
        description="adapter directory, or hf:USER/NAME[@REVISION]; a list, or the run "
        "directory of a cross-validation: several that segment together; null: that of the last "
        "round, or the base model that model names",
    )
    prompts: str | None = Field(
        default=None,
        description="YAML or JSON file with the prompts of each image, such as "
        "case_01: {boxes: [[10, 20, 90, 80]]}; null: an adapter of prompts=semantic finds its "
        "classes, and any other model everything",
    )
    tta: Literal["flip"] | None = Field(
        default=None,
        description="flip: the mirrored copy is a second view: predictions are averaged, and rank "
        "measures how much the two disagree",
    )


@dataclass(frozen=True)
class ProposeArguments(EngineModel):
    """The keys of ``samadapt engine propose``."""

    input: str | None = Field(
        default=None, description="folder of the images, for a new workspace; null: it has begun"
    )
    classes: List[str] | None = Field(
        default=None,
        description="class names of a new workspace; null: those of the model",
    )
    objects: bool | None = Field(
        default=None,
        description="for a new workspace: true: masks number the objects of one class; false: they "
        "hold class numbers; null: true if everything is found without prompts",
    )
    names: List[str] | None = Field(
        default=None,
        description="images to propose for, also labelled ones; null: all without an accepted mask",
    )
    top: Whole | None = Field(
        default=None, ge=1, description="propose for the first n of the last ranking alone"
    )


@dataclass(frozen=True)
class RankArguments(EngineModel):
    """The keys of ``samadapt engine rank``."""

    diversity: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="weight of being unlike the labelled images; the rest is how unsure the model "
        "is",
    )
    top: Whole = Field(default=20, ge=1, description="images to show; ranking.csv lists all")


@dataclass(frozen=True)
class AcceptArguments(InWorkspace):
    """The keys of ``samadapt engine accept``."""

    input: str | None = Field(
        default=None,
        description="corrected masks: a folder of PNG, NIfTI, NRRD or MetaImage, of labelme's "
        "files, or a COCO file; null: WORKSPACE/correct, of which names says what is done",
    )
    format: Literal["auto", "masks", "coco", "labelme"] = Field(
        default="auto", description="what the input holds; auto: its files decide"
    )
    names: List[str] | None = Field(
        default=None, description="accept these images alone; null: all that the input holds"
    )
    images: str | None = Field(
        default=None,
        description="folder of the images, for a new workspace that begins with masks drawn by "
        "hand; null: it has begun",
    )
    classes: dict[str, Whole] | None = Field(
        default=None,
        description="value of each class in mask files, such as {cell: 255}; null: 1, 2, ... in "
        "the order of the workspace",
    )
    objects: bool | None = Field(
        default=None,
        description="for a new workspace: true: masks number the objects of one class; null: they "
        "hold class numbers",
    )
    by: str = Field(default="", description="who corrected the masks, for the record")
    held_out: bool = Field(
        default=False,
        description="these masks measure every round and never train; the images are refused as "
        "training data from now on",
    )


@dataclass(frozen=True, kw_only=True)
class RetrainArguments(Config):
    """The keys of ``samadapt engine retrain``: the workspace, and those of a run."""

    workspace: str = Field(
        description="folder of the workspace, whose accepted masks are the training data"
    )
