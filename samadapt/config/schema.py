"""The typed schema of a run, and how a command line and a recipe become one.

``compose("medical", ["peft.rank=16"])``: the command line wins over the recipe, the recipe over the
defaults below. Everything wrong with a command line comes out in one ``ConfigError``. Nothing here
imports torch, so that ``samadapt show`` and ``--help`` answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from samadapt.config.overrides import parse, read_yaml
from samadapt.errors import ConfigError, nearest
from samadapt.methods import METHODS
from samadapt.methods.base import Method
from samadapt.sam.weights.builds import BUILDS
from samadapt.system.limits import MAX_GB, MAX_SECONDS
from samadapt.system.typed import knob


@dataclass(frozen=True)
class Model:
    """Which SAM, and from which file."""

    name: str = knob("lite_medsam", help="`samadapt ls models`", choices=lambda: BUILDS)
    checkpoint: str | None = knob(None, help="weights file; null finds them by name", bound=True)
    image_size: int | None = knob(
        None,
        help="side of the model's square in pixels; null is the build's own",
        above=0,
        bound=True,
    )
    input_channels: int | None = knob(
        None,
        help="n: a trained 1x1 projection of n channels (data.channel) to SAM's three, at first "
        "their mean; features are not kept; null: up to three",
        low=4,
        high=64,
    )


@dataclass(frozen=True)
class Data:
    """Which images and masks, and which of their slices."""

    name: str = knob("mni152", help="data set card or format: `samadapt ls data`")
    root: str | None = knob(None, help="folder of the data set", bound=True)
    image: str | None = knob(
        None,
        help="image file or pattern below root: 'a.nii', '*/ct.nii.gz', '*/*_{channel}.nii.gz'; "
        "the last * names the case",
        bound=True,
    )
    label: str | None = knob(
        None, help="label file or pattern: '*/seg.nii.gz'; what it matches is no image", bound=True
    )
    axis: str | None = knob(
        None, help="axis of a volume that is sliced; null: the card's", bound=True
    )
    channel: int | str | list[int | str] | None = knob(
        None,
        help="index or name of the channel of a multi-channel image; [a,b,c]: up to three as red, "
        "green, blue",
        low=0,
        bound=True,
    )
    spacing: Literal["affine", "pixdim"] | None = knob(
        None,
        help="which voxel size is true where a NIfTI header contradicts itself; null: refuse it",
        bound=True,
    )
    series: str | None = knob(
        None,
        help="DICOM series where a folder holds several: a modality (CT), a series number, "
        "largest, or the digits that a message shows; CT,largest narrows twice",
        bound=True,
    )
    intensity: str | list[str] | dict[str, Any] | None = knob(
        None,
        help="mri, ct:soft_tissue, ct:-160,240, ct:soft_tissue+lung+bone (three channels), "
        "microscopy, rgb; [mri,mri]: one for each channel; null: the card's",
        bound=True,
    )
    neighbours: int = knob(
        0, help="n: slices i - n, i, i + n of a volume as red, green, blue; 0: slice i alone", low=0
    )
    classes: list[str] | dict[str, int | str | list[int | str]] | None = knob(
        None,
        help="names, or {name: value or values}, or {name: '#ff0000'} for masks in colours; null: "
        "all. Also: data.labels",
        bound=True,
    )
    background: str | list[str] | None = knob(
        None,
        help="colour of the background of masks in colours, or a list; rest: every colour that "
        "data.classes does not name; null: black",
        bound=True,
    )
    exif: Literal["apply", "ignore"] | None = knob(
        None,
        help="apply: masks are drawn on pictures as their EXIF orientation turns them; ignore: on "
        "the stored pixels; null: apply, and an error where that is not certain",
        bound=True,
    )
    merge_classes: bool = knob(False, help="all classes as one foreground")
    ignore: int | str | list[int | str] | None = knob(
        None,
        help="mask value or values, or colours, without loss and score, such as 255; null: what "
        "the data declares; []: none",
        bound=True,
    )
    instances: bool = knob(
        False, help="each number of a mask is one object of one class", bound=True
    )
    mask_threshold: float | None = knob(
        None,
        help="values of a mask from here on are foreground, for anti-aliased masks; null: values "
        "are classes",
        bound=True,
    )
    annotated: str | None = knob(
        None,
        help="CSV or JSON of the annotated classes and slices of each case; the others have no "
        "loss and no score",
        bound=True,
    )
    regions: dict[str, int | list[int]] | None = knob(
        None,
        help="classes that may overlap, {whole: [1, 2, 3], core: [1, 3]}, each with a mask of its "
        "own; instead of data.classes",
        bound=True,
    )
    empty_slices: Literal["auto", "drop", "keep"] | float = knob(
        "auto",
        help="training slices without a class, or the share kept; auto: keep for semantic only",
        low=0,
        high=1,
    )
    slice_step: int = knob(1, help="train on every n-th slice", low=1)
    tile: int | None = knob(
        None,
        help="cut larger pictures into tiles of n pixels a side; null, 0: whole",
        low=0,
        bound=True,
    )
    tile_overlap: float = knob(
        0.125, help="of neighbouring tiles, at least this share of the side", low=0, high=0.5
    )
    val_every: int = knob(5, help="every n-th case is held out", low=2)
    fold: int | None = knob(
        None,
        help="hold out this fold of a cross-validation, 0 to data.folds - 1",
        low=0,
        bound=True,
    )
    folds: int = knob(5, help="folds of data.fold; each case is held out in exactly one", low=2)
    max_cases: int | None = knob(None, help="use only the first n cases", low=1, bound=True)
    patient: str | None = knob(
        None,
        help="pattern of case names with one group, the patient, as '(.+)_[0-9]+'; all cases of "
        "one are on one side; null: what the files say",
        bound=True,
    )
    on_error: Literal["stop", "skip"] = knob("stop", help="what a broken file does")
    max_gb: float = knob(
        MAX_GB,
        help="GB that the header of one file may declare, unpacked; more is refused",
        above=0,
    )
    max_seconds: float = knob(MAX_SECONDS, help="seconds that reading one file may take", above=0)


@dataclass(frozen=True)
class Prompts:
    """Prompts made from the ground truth, as the SAM paper makes them."""

    name: Literal["box", "point", "semantic"] = knob(
        "box", help="semantic: none, a mask token a class"
    )
    objects: Literal["component", "class"] = knob("component", help="what one prompt stands for")
    jitter: float = knob(
        0.1, help="standard deviation of box noise, share of the side", low=0, below=1
    )
    max_jitter_px: float = knob(20.0, help="its bound, where the longest side is 1024 px", low=0)
    min_area: int = knob(0, help="objects below this many pixels get no prompt", low=0)
    max_objects: int = knob(
        4, help="objects of an image that train in one step, large ones more often", low=1
    )


@dataclass(frozen=True)
class Loss:
    """Which loss, and its weights (SAM's are 20 : 1 : 1)."""

    name: Literal["auto", "sam", "dice_ce"] = knob(
        "auto", help="auto: dice_ce for semantic, else sam"
    )
    focal: float = knob(20.0, help="weight of the focal loss", low=0)
    dice: float = knob(1.0, help="weight of the Dice loss", low=0)
    iou: float = knob(1.0, help="weight of the IoU head's squared error", low=0)
    cross_entropy: float = knob(1.0, help="weight of the cross-entropy", low=0)


Augmentation = Literal["flip", "rotate", "scale", "crop", "intensity", "noise", "bias_field"]


DECODER_LR = 1e-3

MAX_LR = 1.0
"""AdamW moves each weight by about the learning rate in a step; above 1 nothing is learned."""

MAX_SEED = 2**32 - 1
"""The largest that NumPy takes."""


@dataclass(frozen=True)
class Train:
    """The training loop."""

    steps: int = knob(150, help="optimizer steps", low=1)
    batch_size: int = knob(4, help="slices a step; whole stacks of peft.depth", low=1)
    accumulate: int = knob(1, help="batches summed into one step", low=1)
    lr: float | None = knob(
        None,
        help="peak learning rate of what is injected; null: the method's own, `samadapt ls peft`",
        above=0,
        high=MAX_LR,
        bound="peft",
    )
    decoder_lr: float | None = knob(
        None,
        help=f"peak rate of the decoder; null: lr, {DECODER_LR:g} where that is null",
        above=0,
        high=MAX_LR,
    )
    weight_decay: float = knob(0.01, help="AdamW's", low=0)
    warmup_steps: int = knob(10, help="steps of linear warm-up", low=0)
    schedule: Literal["cosine", "poly", "constant"] = knob("cosine", help="decay after warm-up")
    clip: float = knob(1.0, help="largest gradient norm; 0 is off", low=0)
    validate_every: int = knob(50, help="steps between validations; 0: at the end only", low=0)
    validate_cases: int | None = knob(None, help="cases in a validation; null: all", low=1)
    checkpoint_every: int = knob(50, help="steps between checkpoints; 0: at the end only", low=0)
    augment: tuple[Augmentation, ...] = knob(
        (), help="random changes of each training slice, each with probability 1/2"
    )
    recompute: bool = knob(
        False, help="run each trained block again in backward: less memory, slower, same result"
    )


@dataclass(frozen=True)
class Cache:
    """Features of the frozen blocks, computed once an image."""

    enabled: Literal["auto", "on", "off"] = knob(
        "auto", help="auto: unless augmentation without variants forbids it"
    )
    where: Literal["auto", "memory", "disk"] = knob(
        "auto", help="auto: on half of the disk, for later runs too; else in a quarter of memory"
    )
    dir: str | None = knob(None, help="folder on the disk; null: OUTPUT.DIR/features")
    max_gb: float | None = knob(
        None, help="GB that the folder may take; the longest unused are removed", above=0
    )
    variants: int = knob(
        0,
        help="versions kept of each training slice with train.augment, one of them unchanged; 0: "
        "augmented anew in every step",
        low=0,
    )


@dataclass(frozen=True)
class Eval:
    """Scores before and after."""

    batch_size: int = knob(8, help="slices a forward pass", low=1)
    overlays: int = knob(3, help="best, median and worst cases drawn", low=0)
    max_cases: int | None = knob(None, help="score only the first n held-out cases", low=1)
    nsd_tolerance_mm: float = knob(
        1.0, help="tolerance of the normalised surface Dice; px for pictures without spacing", low=0
    )
    instances: bool | Literal["components"] = knob(
        False, help="average precision and panoptic quality of numbered objects, or of components"
    )


@dataclass(frozen=True)
class Output:
    """Where results go."""

    dir: str = knob("runs", help="parent of the run directories")


Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Config:
    """Everything one `finetune` run depends on."""

    model: Model = field(default_factory=Model)
    peft: Method = field(default_factory=lambda: METHODS["lora"]())
    data: Data = field(default_factory=Data)
    prompts: Prompts = field(default_factory=Prompts)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    cache: Cache = field(default_factory=Cache)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    seed: int = knob(0, help="of every random choice", low=0, high=MAX_SEED)
    precision: Precision = knob("auto", help="auto: bf16 where the device is fast in it")
    device: Device = knob("auto", help="auto: cuda, then mps, then cpu")
    resume: str | None = knob(None, help="run directory to continue")
    folds: int | None = knob(
        None, help="train so many folds one after another, scoring every case once", low=2
    )
    privacy: bool = knob(
        False, help="stable pseudonyms for case names; who is who is in RUN_DIR/privacy_key.json"
    )
    recipe: str = knob("", help="recipe name or YAML file")


def compose(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a recipe with ``key=value`` overrides.

    Args:
        recipe: name of a file in ``recipes/`` without its suffix, or a path to a YAML file.
        overrides: ``group=option`` or ``group.key=value``, in Hydra's grammar.

    Raises:
        ConfigError: naming every unknown key, wrong type and value out of range.
    """
    path = recipe_path(recipe)
    base = {"recipe": recipe, **read_yaml(path)}
    return with_rates(parse(Config, overrides, base, origin=str(path)))


def with_rates(config: Config) -> Config:
    """Return the configuration with the learning rates that it leaves to the method."""
    train = config.train
    lr = config.peft.lr if train.lr is None else train.lr
    decoder_lr = train.decoder_lr
    if decoder_lr is None:
        decoder_lr = DECODER_LR if train.lr is None else train.lr
    return replace(config, train=replace(train, lr=lr, decoder_lr=decoder_lr))


def from_arguments(arguments: Sequence[str]) -> Config:
    """Return the configuration of a command line that names ``recipe=`` or ``resume=``.

    ``resume=RUN_DIR`` starts from the configuration stored in the run directory.

    Raises:
        ConfigError: also when neither is given.
    """
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if named.get("resume", "null") != "null":
        return from_yaml(Path(named["resume"]) / "config.yaml", arguments)
    if "recipe" not in named:
        raise ConfigError(f"name a recipe, recipe=NAME ({', '.join(recipes())}), or resume=RUN_DIR")
    others = [argument for argument in arguments if not argument.startswith("recipe=")]
    return compose(named["recipe"], others)


def from_yaml(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that a run directory stored in ``config.yaml``.

    Raises:
        ConfigError: for a missing or broken file, and as ``compose``.
    """
    return with_rates(parse(Config, overrides, read_yaml(path), origin=str(path)))


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML text that ``from_yaml`` reads back."""
    import yaml

    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return text


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain values; ``peft`` with its ``name`` first."""
    nested: dict[str, Any] = {"name": config.name} if isinstance(config, Method) else {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            value = to_dict(value)
        nested[item.name] = list(value) if isinstance(value, tuple) else value
    return nested


def validate(config: Config) -> None:
    """Check a configuration that was built in Python as one from a command line is checked.

    Raises:
        ConfigError: naming every problem.
    """
    parse(Config, (), to_dict(config), origin="")


def recipes() -> dict[str, Path]:
    """Return the shipped recipes by name."""
    return {path.stem: path for path in sorted(_recipe_folder().glob("*.yaml"))}


def _recipe_folder() -> Path:
    """Return the folder of the recipes: package data in a wheel, the root's in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: naming the nearest recipe.
    """
    if recipe in (known := recipes()):
        return known[recipe]
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return path
    raise ConfigError(
        f"recipe: expected {', '.join(known)} or a path to a .yaml file; "
        f"got {recipe!r}{nearest(recipe, known)}"
    )
