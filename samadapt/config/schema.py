"""Every key that a run takes: its type, its default, its bounds and what it means.

The keys of ``train`` are in ``train.py``, and those of ``baseline`` in ``baseline.py``.

A key is a field of a group, ``train.steps``, or of ``Config`` itself, ``seed``. The values are
checked where an object is built, so ``Train(steps=-5)`` raises an error that names the key. Nothing
here imports torch: ``samadapt show`` and ``--help`` must answer at once.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic.dataclasses import dataclass

from samadapt.config.baseline import Baseline
from samadapt.config.described import DescribesOption, OfDataSet, OfModel
from samadapt.config.prompt_settings import PromptSettings
from samadapt.config.train import MAX_LR, Train
from samadapt.errors import nearest
from samadapt.methods import METHODS
from samadapt.methods.base import Method
from samadapt.sam.watershed import SEED_HEIGHT, SMOOTHING
from samadapt.sam.weights.builds import BUILDS
from samadapt.system.limits import MAX_GB, MAX_SECONDS
from samadapt.system.machine import parse_bytes
from samadapt.system.settings import List, OnOff, Settings, Whole, with_fields
from samadapt.training.losses import LOSSES, loss_keys

MAX_HEAD_SIDE, LARGE_HEAD_SIDE = 320, 160
"""Largest side, in pixels, that a dense head takes by default; its cost grows with the square."""

MAX_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""


def _known_build(name: str) -> str:
    """Return the name of a model that exists; a function, because tests add models of their own."""
    if name not in BUILDS:
        known = ", ".join(BUILDS)
        raise ValueError(f"expected one of {known}; got {name!r}{nearest(name, BUILDS)}")
    return name


def _not_one(every: int) -> int:
    if every == 1:
        raise ValueError(
            "1 would hold out every case and leave none to train on; use at least 2, or 0, which "
            "holds out nothing"
        )
    return every


BuildName = Annotated[str, AfterValidator(_known_build), WithJsonSchema({"enum": list(BUILDS)})]


def _known_loss(name: str) -> str:
    """Return the name of a loss that exists; a function, because losses can be registered later."""
    known = ("auto", *LOSSES)
    if name not in known:
        listed = ", ".join(known)
        raise ValueError(f"expected one of {listed}; got {name!r}{nearest(name, known)}")
    return name


TRACKERS = (
    *("tensorboard", "wandb", "mlflow", "trackio", "swanlab"),
    *("dvclive", "clearml", "comet_ml", "aim"),
)
"""The experiment trackers that accelerate knows; importing it here would import torch."""


def _as_names(value: Any) -> Any:
    """Return a list of one name for a name."""
    return [value] if isinstance(value, str) else value


def _known_trackers(names: list[str]) -> list[str]:
    """Return the trackers, each once."""
    for name in names:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise ValueError(f"expected a list of {known}; got {name!r}{nearest(name, TRACKERS)}")
    return list(dict.fromkeys(names))


Trackers = Annotated[
    List[str],
    BeforeValidator(_as_names),
    AfterValidator(_known_trackers),
    WithJsonSchema({"type": "array", "items": {"enum": list(TRACKERS)}}),
]
LossName = Annotated[str, AfterValidator(_known_loss), WithJsonSchema({"enum": ["auto", *LOSSES]})]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
PositiveNumber = Annotated[float, Field(gt=0)]
ClassTable = dict[str, Whole | str | List[Whole | str]]


@dataclass(frozen=True)
class Model(Settings):
    """Which SAM is adapted, and the file of its weights."""

    section: ClassVar[str] = "model"

    name: BuildName = Field(
        default="lite_medsam", description="name of the model; `samadapt ls models` lists them"
    )
    checkpoint: OfModel[str | None] = Field(
        default=None,
        description="file of the pretrained weights; null: search for it by the model's name",
    )
    image_size: OfModel[Annotated[Whole, Field(ge=1)] | Literal["fit"] | None] = Field(
        default=None,
        description="side of the square that images are resized to, in pixels; fit: small where "
        "the training pictures are small, see docs/how-to/few-labels.md; null: the size that the "
        "model was pretrained with",
    )
    input_channels: OfModel[Whole | None] = Field(
        default=None,
        ge=4,
        le=64,
        description="number n of image channels, for data.channel with more than three: a trained "
        "1x1 convolution maps n channels to the three of SAM, and starts as their mean; features "
        "are not cached then; null: at most three channels",
    )
    quantize: OfModel[Literal["none", "nf4"]] = Field(
        default="none",
        description="how the encoder's frozen weights are stored; nf4: in 4 bits (QLoRA), on CUDA "
        "GPUs, with the extra qlora",
    )


@dataclass(frozen=True)
class Data(Settings):
    """Which images and masks are read, which slices of them are used, and how they are split."""

    section: ClassVar[str] = "data"

    name: str = Field(
        default="mni152",
        description="name of a data set or of a file format (`samadapt ls data`); auto: what lies "
        "in data.root decides",
    )
    root: OfDataSet[str | None] = Field(default=None, description="folder of the data set")
    image: OfDataSet[str | None] = Field(
        default=None,
        description="image file or pattern below data.root, such as a.nii, */ct.nii.gz or "
        "*/*_{channel}.nii.gz; the last * stands for the name of the case",
    )
    label: OfDataSet[str | None] = Field(
        default=None,
        description="label file or pattern below data.root, such as */seg.nii.gz; files that it "
        "matches are not read as images",
    )
    axis: OfDataSet[str | None] = Field(
        default=None,
        description="axis along which volumes are cut into slices; null: the data set's own",
    )
    channel: OfDataSet[Annotated[Whole, Field(ge=0)] | str | List[Whole | str] | None] = Field(
        default=None,
        description="index or name of the channel of a multi-channel image; [a,b,c]: up to three "
        "channels as red, green and blue",
    )
    spacing: OfDataSet[Literal["affine", "pixdim"] | None] = Field(
        default=None,
        description="which voxel size to trust where a NIfTI header holds two that differ; null: "
        "such files are refused",
    )
    series: OfDataSet[str | None] = Field(
        default=None,
        description="which DICOM series to read from a folder of several: a modality such as CT, a "
        "series number, largest, or the digits that an error message shows; CT,largest combines "
        "two conditions",
    )
    intensity: OfDataSet[str | List[str] | dict[str, Any] | None] = Field(
        default=None,
        description="how intensities are scaled: mri, ct:soft_tissue, ct:-160,240, "
        "ct:soft_tissue+lung+bone (three channels), microscopy or rgb; [mri,mri]: one rule for "
        "each channel; null: the data set's own; auto: the same, and where nothing is declared ct "
        "or mri by the values",
    )
    neighbours: Whole = Field(
        default=0,
        ge=0,
        description="distance n of the slices beside slice i: i - n, i and i + n become red, green "
        "and blue; 0: slice i alone",
    )
    classes: OfDataSet[List[str] | ClassTable | None] = Field(
        default=None,
        description="classes to learn: [names], {name: value}, {name: [values]}, or "
        "{name: '#ff0000'} for masks in colours; null: all classes; data.labels means the same",
    )
    background: OfDataSet[str | List[str] | None] = Field(
        default=None,
        description="background colour, or list of colours, of masks in colours; rest: every "
        "colour that data.classes does not name; null: black",
    )
    exif: OfDataSet[Literal["apply", "ignore"] | None] = Field(
        default=None,
        description="apply: masks were drawn on the pictures as their EXIF orientation shows them; "
        "ignore: on the stored pixels; null: apply, and an error where that is uncertain",
    )
    merge_classes: bool = Field(
        default=False, description="merge all classes into one foreground class"
    )
    ignore: OfDataSet[Whole | str | List[Whole | str] | None] = Field(
        default=None,
        description="value, colour or list of them in masks whose pixels have no loss and no "
        "score, such as 255; null: what the data set declares; []: none",
    )
    instances: OfDataSet[bool] = Field(
        default=False,
        description="each number in a mask is one object, and all objects have one class",
    )
    mask_threshold: OfDataSet[float | None] = Field(
        default=None,
        description="mask values of at least this are foreground, for anti-aliased masks; null: "
        "mask values are class numbers",
    )
    annotated: OfDataSet[str | None] = Field(
        default=None,
        description="CSV or JSON file that lists the annotated classes and slices of each case; "
        "all others have no loss and no score",
    )
    regions: OfDataSet[dict[str, Whole | List[Whole]] | None] = Field(
        default=None,
        description="classes that may overlap, such as {whole: [1, 2, 3], core: [1, 3]}; each gets "
        "a mask of its own; use it instead of data.classes",
    )
    empty_slices: Literal["auto", "drop", "keep"] | Annotated[float, Field(ge=0, le=1)] = Field(
        default="auto",
        description="what to do with training slices that hold no class: drop, keep, or the share "
        "to keep; auto: keep them for prompts=semantic only",
    )
    slice_step: Whole = Field(default=1, ge=1, description="train on every n-th slice")
    tile: OfDataSet[Whole | None] = Field(
        default=None,
        ge=0,
        description="side in pixels of the tiles into which larger pictures are cut; null or 0: "
        "pictures stay whole",
    )
    tile_overlap: float = Field(
        default=0.125,
        ge=0,
        le=0.5,
        description="smallest overlap of neighbouring tiles, as a share of their side",
    )
    held_out: OfDataSet[str | None] = Field(
        default=None,
        description="text file that lists the held-out cases, the name of one a line; null: every "
        "n-th case (data.val_every)",
    )
    val_every: Annotated[Whole, Field(ge=0), AfterValidator(_not_one)] = Field(
        default=5,
        description="hold out every n-th case for the final scores; 0: hold out nothing, so that "
        "every case trains and nothing is scored",
    )
    fold: OfDataSet[Whole | None] = Field(
        default=None,
        ge=0,
        description="hold out this fold of a cross-validation instead, from 0 to data.folds - 1",
    )
    folds: Whole = Field(
        default=5,
        ge=2,
        description="number of folds for data.fold; each case is held out in one fold",
    )
    max_cases: OfDataSet[Whole | None] = Field(
        default=None, ge=1, description="use only the first n cases; null: all cases"
    )
    train_cases: OfDataSet[Whole | None] = Field(
        default=None,
        ge=1,
        description="train on n of the training cases only, those that choose the best step "
        "included; fewer cases are a part of more, and the held-out cases stay the same; null: all",
    )
    draw: Whole = Field(
        default=0,
        ge=0,
        le=MAX_SEED,
        description="which training cases data.train_cases uses: another number draws others",
    )
    patient: OfDataSet[str | None] = Field(
        default=None,
        description="regular expression with one group that finds the patient in a case name, such "
        "as '(.+)_[0-9]+'; all cases of a patient stay in one split; null: what the "
        "files say",
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="what to do about a broken file: stop, or skip it with a warning",
    )
    max_gb: float = Field(
        default=MAX_GB,
        gt=0,
        description="largest size in GB, unpacked, that the header of a file may declare; larger "
        "files are refused",
    )
    max_seconds: float = Field(
        default=MAX_SECONDS,
        gt=0,
        description="longest time in seconds that reading one file may take",
    )


@dataclass(frozen=True)
class Head(Settings):
    """What predicts the classes of a picture without a prompt, for ``prompts=semantic``."""

    section: ClassVar[str] = "head"

    name: Literal["sam", "unet", "instances"] = Field(
        default="sam",
        description="sam: a mask token of the mask decoder for each class; unet: a U-Net on the "
        "picture at its own resolution that reads features of the encoder, added to them; "
        "instances: the same U-Net also predicts how far each pixel is from the centre and the "
        "border of its object, and a watershed separates the objects of each class; also for "
        "baseline=unet",
    )
    size: OfDataSet[Whole | None] = Field(
        default=None,
        ge=16,
        le=2048,
        description="side of the square that pictures are resized to for the U-Net, in pixels; "
        f"null: the longest side of the training pictures, at most {MAX_HEAD_SIDE}",
    )
    width: Whole = Field(
        default=32, ge=4, le=256, description="channels of the U-Net at its finest scale"
    )
    scales: Whole = Field(
        default=4, ge=2, le=6, description="scales of the U-Net, each half as fine as the last"
    )
    sam_logits: bool | None = Field(
        default=None,
        description="add the logits of SAM's mask tokens to those of the U-Net; null: if the mask "
        "decoder trains, because without training its tokens know no classes",
    )
    patch: Whole | None = Field(
        default=None,
        ge=1,
        le=8,
        description="side of the blocks of pixels that are one cell of the U-Net's finest scale; "
        f"null: 2 where the square is larger than {LARGE_HEAD_SIDE} pixels, else 1",
    )
    depth: Annotated[Whole, Field(ge=1, le=64)] | Literal["auto"] = Field(
        default=1,
        description="neighbouring slices of a volume that the U-Net sees together; 1: each alone; "
        "auto: 4 if all cases are volumes, else 1",
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of a random change of gamma, of brightness and of noise in the "
        "picture that the U-Net sees in training; cached features stay as they are, so it costs "
        "no pass of the encoder",
    )
    lr: float = Field(default=3e-3, gt=0, le=MAX_LR, description="peak learning rate of the U-Net")
    seed_height: float = Field(
        default=SEED_HEIGHT,
        gt=0,
        lt=1,
        description="with head=instances: how far a peak of the distances must rise above the pass "
        "to a higher one to be an object of its own; lower: more objects that touch are "
        "separated, and more are split",
    )
    smoothing: float = Field(
        default=SMOOTHING,
        ge=0,
        le=20,
        description="with head=instances: standard deviation in pixels of the Gaussian that "
        "smooths the distances before seeds are looked for; higher: fewer objects are split",
    )


@dataclass(frozen=True)
class LossChoice(Settings):
    """Which loss is minimised, and the weights of its terms (20 : 1 : 1 in the SAM paper)."""

    section: ClassVar[str] = "loss"

    name: LossName = Field(
        default="auto",
        description="name of the loss; `samadapt ls losses` lists them; auto: dice_ce for "
        "prompts=semantic, else sam",
    )
    class_weights: Literal["balanced"] | List[PositiveNumber] | dict[str, PositiveNumber] | None = (
        Field(
            default=None,
            description="weights of the classes for prompts=semantic: a list in the order of the "
            "classes, {class: weight}, which may also name the background, or balanced: the "
            "inverse of each share of the training pixels, background included; what is not named "
            "weighs 1; null: all weigh 1",
        )
    )


def _keys_of_losses() -> dict[str, tuple[Any, Any]]:
    """Return type and field of each key that a loss brings, so that a new loss needs no line here.

    A recipe's value of a key that one loss alone takes is dropped with the recipe's loss.
    """
    keys = {}
    for name, key in loss_keys().items():
        annotation = key.annotation
        if len(key.losses) == 1:
            annotation = Annotated.__class_getitem__((annotation, DescribesOption("loss")))  # type: ignore[attr-defined]
        about = f"{key.description}; for {', '.join(key.losses)}"
        keys[name] = (annotation, Field(default=key.default, description=about))
    return keys


if TYPE_CHECKING:
    Loss = LossChoice
else:
    Loss = with_fields(LossChoice, "Loss", _keys_of_losses(), __name__)


@dataclass(frozen=True)
class Cache(Settings):
    """Where features of the frozen blocks are kept; they are computed once for each image."""

    section: ClassVar[str] = "cache"

    enabled: OnOff[Literal["auto", "on", "off"]] = Field(
        default="auto",
        description="whether features are cached; auto: yes, except with train.augment and "
        "cache.variants=0, where every step needs new ones",
    )
    where: Literal["auto", "memory", "disk"] = Field(
        default="auto",
        description="where features are kept; auto: on the disk, where later runs find them, while "
        "they fit into half of its free space; else in memory, while a quarter of it is enough",
    )
    dir: str | None = Field(
        default=None, description="folder of the features on the disk; null: OUTPUT.DIR/features"
    )
    max_gb: float | None = Field(
        default=None,
        gt=0,
        description="largest size of that folder in GB; the features that were unused for longest "
        "are deleted; null: no limit",
    )
    variants: Annotated[Whole, Field(ge=0)] | Literal["auto"] = Field(
        default=0,
        description="number of versions of each training slice to cache with train.augment, one of "
        "them unchanged; auto: as many as give about 250 in all at 168 pixels, more at smaller "
        "sizes, and at most 16 of each; none where most of the encoder is adapted; 0: slices are "
        "augmented anew in every step",
    )


@dataclass(frozen=True)
class Eval(Settings):
    """How the held-out cases are scored before and after the training."""

    section: ClassVar[str] = "eval"

    batch_size: Whole = Field(default=8, ge=1, description="slices in a forward pass")
    overlays: Whole = Field(
        default=3,
        ge=0,
        description="number of cases to draw: 1 is the best, 2 adds the median, 3 the worst",
    )
    max_cases: Whole | None = Field(
        default=None,
        ge=0,
        description="score only the first n held-out cases; 0: none, while settings are compared "
        "by the validation cases; null: all",
    )
    nsd_tolerance_mm: float = Field(
        default=1.0,
        ge=0,
        description="tolerance of the normalised surface Dice in mm; in pixels for pictures "
        "without a spacing",
    )
    instances: bool | Literal["components"] = Field(
        default=False,
        description="also compute average precision and panoptic quality: true for numbered "
        "objects, components for connected components",
    )
    keep_largest: Literal["auto"] | List[str] | None = Field(
        default=None,
        description="classes of which predictions without prompts keep only the largest component, "
        "in 3D where there are volumes; the adapter records them and `predict` follows; auto: "
        "those with one component in every training volume; null: none, and in `evaluate` those "
        "that the adapter records",
    )
    tta: Literal["flip"] | None = Field(
        default=None,
        description="flip: average final scores over mirrored copies too, left-right and in "
        "microscopy also upside down; null: the image alone",
    )
    second_pass: Literal["base"] | None = Field(
        default=None,
        description="base: final scores without prompts average with the masks of the base model, "
        "prompted with the components that were found; null: the first pass alone",
    )


def _memory(text: str) -> str:
    """Check an amount of memory."""
    parse_bytes(text)
    return text


@dataclass(frozen=True)
class Output(Settings):
    """Where run directories are written, and who follows the runs."""

    section: ClassVar[str] = "output"

    dir: str = Field(default="runs", description="folder in which run directories are created")
    trackers: Trackers = Field(
        default_factory=list,
        description="experiment trackers that follow a training, such as [tensorboard,mlflow]; "
        "see docs/how-to/track-and-compare-runs.md; []: none",
    )


@dataclass(frozen=True)
class Config(Settings):
    """Everything that one run of `samadapt finetune` depends on."""

    model: Model = field(default_factory=Model)
    peft: Method = field(default_factory=lambda: METHODS["lora"]())
    data: Data = field(default_factory=Data)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    head: Head = field(default_factory=Head)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    baseline: Baseline = field(default_factory=Baseline)
    cache: Cache = field(default_factory=Cache)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    seed: Whole = Field(default=0, ge=0, le=MAX_SEED, description="seed of every random choice")
    precision: Precision = Field(
        default="auto",
        description="number format of the computation; auto: bf16 where the device is fast in it, "
        "else fp16 on GPUs with tensor cores",
    )
    device: Device = Field(
        default="auto",
        description="where to compute; auto: cuda if there is one, then mps, then cpu",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile, for GPUs; minutes to start",
    )
    memory: Annotated[str, AfterValidator(_memory)] | None = Field(
        default=None,
        description="memory, such as 8GB, that the ways of computing are fitted to",
    )
    resume: str | None = Field(default=None, description="run directory to continue")
    init: str | None = Field(
        default=None,
        description="adapter or run directory, or hf:USER/NAME[@REVISION], whose weights the "
        "training starts from; what does not fit starts anew; null: the base model",
    )
    init_sha256: str | None = Field(
        default=None,
        description="sha256 of the weights of that adapter, so that it cannot be another one; the "
        "run stores it; null: not compared",
    )
    folds: Whole | None = Field(
        default=None,
        ge=2,
        description="run a cross-validation of n folds: train n adapters one after another and "
        "score every case once; null: one run",
    )
    privacy: bool = Field(
        default=False,
        description="replace case names by stable pseudonyms; RUN_DIR/privacy_key.json says which "
        "is which",
    )
    recipe: str = Field(default="", description="name of a recipe, or path of a YAML file")
