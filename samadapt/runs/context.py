"""What every run has: a device, a data set and a model, opened as the configuration says.

The configuration itself stays with the functions that read it; the context holds what it became.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from samadapt import console
from samadapt.adapters.four_bits import round_frozen
from samadapt.adapters.injection import Injection, inject
from samadapt.config.schema import LARGE_HEAD_SIDE, MAX_HEAD_SIDE
from samadapt.data.case_index import CaseIndex
from samadapt.data.checks.resumed_run import check_unchanged
from samadapt.data.dataset import Dataset, open_dataset
from samadapt.data.intensity import describe_intensity
from samadapt.data.pseudonyms import hide_names, open_key, write_key
from samadapt.data.splits import listed_names
from samadapt.data.training_draw import use_training_cases
from samadapt.errors import ConfigError, DataError, RunError
from samadapt.methods.base import Method, frozen_blocks, method_for
from samadapt.prompts.policy import AUTO, Kind, Objects, PromptPolicy, Variant
from samadapt.prompts.shares import DEFAULT_SHARES, MIXED, normalised
from samadapt.runs.baseline import open_baseline
from samadapt.runs.environment import environment, recorded_precision, seed_all, write_json
from samadapt.runs.run_description import configuration_text, run_title, trained_name
from samadapt.runs.same_run import check_same_data, check_same_machines
from samadapt.sam.attention.kernels import describe_attention
from samadapt.sam.dense_head import HeadSettings
from samadapt.sam.model import Sam
from samadapt.sam.tracking import why_no_memory
from samadapt.sam.watershed import INSTANCE_HEAD, Watershed
from samadapt.sam.weights.builds import BUILDS, embedding_grid, fitting_image_size
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.system import processes
from samadapt.system.cache import cache_folder
from samadapt.system.limits import set_limits
from samadapt.training.augmentation_rule import changes_for
from samadapt.training.compilation import check_compile, compile_parts
from samadapt.training.precision import Precision, choose_device, choose_precision
from samadapt.training.progress import Progress
from samadapt.training.quantized import check_quantize, quantize_frozen
from samadapt.training.samples import TrainingSamples

if TYPE_CHECKING:
    from samadapt.config.schema import Config, Head
    from samadapt.sam.segmentation_model import SegmentationModel


@dataclass
class RunContext:
    """A run that is ready: where it runs, on which data, with which model.

    Attributes:
        run_dir: the directory that receives the results.
        title: the title of its report.
        configuration: its keys as YAML, for the report; with ``privacy`` it names no file.
        progress: shows messages and progress to the user, and writes ``log.txt``.
        device: the device of the model.
        precision: the arithmetic of the forward and backward passes.
        policy: how the adapted model is prompted.
        dataset: the cases, their slices and the classes.
        samples: the training slices, as they are read and augmented.
        model: SAM with its adapter, or the model that trains in its place, on ``device``.
        base_sha256: the hash of the base weights, from before the adapter was injected.
        injection: which parameters of ``model`` are trained.
        base_copy: the base model without the adapter, on the CPU, for an evaluation, which puts
            the trained adapter into it; None in other runs.
        promptable_base: the base model without the adapter, on ``device``, for
            ``eval.second_pass``; None without it.
        quantize: how the frozen weights of the encoder are stored, ``model.quantize``.
        compiled: whether parts of the model run through ``torch.compile``.
    """

    run_dir: Path
    title: str
    configuration: str
    progress: Progress
    device: torch.device
    precision: Precision
    policy: PromptPolicy
    dataset: Dataset
    samples: TrainingSamples
    model: SegmentationModel
    base_sha256: str
    injection: Injection
    base_copy: Sam | None = None
    promptable_base: Sam | None = None
    quantize: str = "none"
    compiled: bool = False

    @property
    def sam(self) -> Sam:
        """The model of a run that adapts SAM."""
        if not isinstance(self.model, Sam):
            raise RunError("this run adapts no SAM: it was started with baseline=unet")
        return self.model

    @property
    def is_baseline(self) -> bool:
        """Whether another model trains in SAM's place, with ``baseline=unet``."""
        return not isinstance(self.model, Sam)

    @property
    def zero_shot_policy(self) -> PromptPolicy:
        """How the base model is prompted: it knows no classes, so it gets the true boxes."""
        if self.policy.is_semantic:
            # Where objects are what counts, it gets the box of each object.
            objects: Objects = "class" if self.model.watershed is None else "component"
            return PromptPolicy("box", objects=objects)
        return replace(self.policy, click_disks=False)  # which the base has never seen

    def of_kind(self, kind: str) -> RunContext:
        """Return the same run with the prompts of one of its kinds alone; the model is shared."""
        return replace(self, policy=self.policy.of_kind(kind))

    @property
    def has_trained_parameters(self) -> bool:
        """Whether there is anything to train; ``peft=none`` with a frozen decoder has nothing."""
        return self.injection.trainable > 0

    @property
    def route(self) -> str:
        """Device, precision, storage of weights and compilation: they decide a feature's bits."""
        quantized = "" if self.quantize == "none" else f", {self.quantize} weights"
        compiled = ", compiled" if self.compiled else ""
        return f"{self.precision.name} on {self.device.type}{quantized}{compiled}"

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[None]]:
        """A function that returns the context manager of a forward pass."""
        return partial(self.precision.autocast, self.device)

    def say(self, text: str) -> None:
        """Show a message to the user and write it to ``log.txt``."""
        self.progress.say(text)


def open_run(
    config: Config,
    run_dir: Path,
    *,
    copies_base: bool = False,
    trained_in: Path | None = None,
    progress: Progress | None = None,
) -> RunContext:
    """Open the data set, load the model and inject the adapter, or build the baseline.

    The order matters: everything random is seeded first, and the base weights are hashed before
    the adapter changes the model. ``env.json`` and ``splits.json`` are written.

    Args:
        config: the configuration of the run.
        run_dir: the directory that receives the results.
        copies_base: keep a copy of the base model without the adapter, as ``base_copy``.
        trained_in: the run directory of an adapter that is evaluated. With ``privacy``, its key
            gives the same cases the same pseudonyms.
        progress: shows messages; None: on the terminal, and in ``log.txt``.

    Raises:
        UserError: for what is wrong with the configuration, the data or the weights.
    """
    device = _device(config)
    precision = _precision(config, device, run_dir)
    progress = progress or _progress(run_dir)
    progress.say(f"run directory: {run_dir}")
    seed_all(config.seed)
    policy = prompt_policy(config)
    dataset = open_data(config, scratch=config.output.dir)
    check_same_data(dataset)
    if config.privacy:
        dataset = _hide_names_in_run(dataset, run_dir, trained_in)
    # The blocks of the method, and the random changes, may follow from the images.
    has_head = config.head.name != "sam"
    method = method_for(config.peft, dataset.longest_side(), has_head=has_head)
    changes = changes_for(config.train.augment, dataset)
    choices = _automatic_choices(dataset, changes, method, config)
    for line in [*_notes_on_data(dataset), *choices]:
        progress.say(line)
    resumes, is_fold = config.resume is not None, config.data.fold is not None
    for warning in keep_splits(dataset, run_dir, resumes=resumes, is_fold=is_fold):
        progress.say(f"warning: {warning}")
    name, size, asked = config.model.name, config.model.image_size, config.cache.variants
    versions = 0 if policy.clip > 1 else versions_of(asked, changes, dataset, method, name, size)
    samples = TrainingSamples(dataset, policy, changes, versions, config.seed)
    if config.baseline.name is None:
        opened = _open_sam(config, method, policy, dataset, device, copies_base=copies_base)
        _store_frozen(config.model.quantize, opened, device, precision, progress)
    else:
        opened = _open_unet(config, dataset, device)
    progress.say(f"device {device}, precision {precision.name}: {precision.reason}")
    _compile(config, opened.model, progress)
    if device.type == "cpu":
        progress.say(f"attention {describe_attention()}")
    if processes.is_first():
        write_json(run_dir / "env.json", environment(device, precision))
    trained = method.name if config.baseline.name is None else trained_name(config)
    return RunContext(
        run_dir=run_dir,
        title=run_title(config.recipe, trained, dataset.name),
        configuration=configuration_text(config),
        progress=progress,
        device=device,
        precision=precision,
        policy=policy,
        dataset=dataset,
        samples=samples,
        model=opened.model,
        base_sha256=opened.base_sha256,
        injection=opened.injection,
        base_copy=opened.base_copy,
        promptable_base=opened.promptable_base,
        quantize=config.model.quantize,
        compiled=config.compile,
    )


def _store_frozen(
    quantize: str,
    opened: _OpenedModel,
    device: torch.device,
    precision: Precision,
    progress: Progress,
) -> None:
    """Move SAM to the device, and store its frozen weights with as few bits as the run asks for.

    An evaluation, which has a copy of the base, runs everywhere, so there they are only rounded.
    """
    opened.model.to(device)  # the layers too that were added since the first move
    exact = list(opened.injection.exact)
    if quantize != "none" and opened.base_copy is not None:
        round_frozen(opened.model, exact)
    elif quantize != "none":
        bits = quantize_frozen(opened.model, exact, precision.dtype)
        progress.say(f"model.quantize={quantize}: {len(bits)} frozen linears are stored in 4 bits")
        exact += bits
    precision.store_frozen(opened.model, exact)


def _device(config: Config) -> torch.device:
    """Return the device of a run, which can compile if the run asks for that."""
    device = choose_device(config.device)
    if config.compile:
        check_compile(device)
    return device


def _precision(config: Config, device: torch.device, run_dir: Path) -> Precision:
    """Return the precision of a run, which is that of the first process for all."""
    # A resumed run keeps the precision that it began with, so that it ends with the same numbers.
    began_with = None if config.resume is None else recorded_precision(run_dir)
    # On CPUs this is a measurement, and processes may measure different speeds.
    chosen = choose_precision(config.precision, device, began_with)
    check_same_machines(device, chosen.name)
    return processes.from_first(chosen)


def _progress(run_dir: Path) -> Progress:
    """Return what shows messages on the terminal of the first process, and writes the log."""
    return Progress(console.rich_console(), run_dir / "log.txt", shown=processes.is_first())


def add_head(
    sam: Sam, head: Head, dataset: Dataset, policy: PromptPolicy, *, trains_decoder: bool
) -> None:
    """Add a dense head, which predicts classes or objects; its side fits the training pictures.

    Args:
        sam: the model, which is changed.
        head: the keys of the head.
        dataset: the data set of the run.
        policy: how the model is prompted.
        trains_decoder: whether the mask decoder trains. If it does not, its mask tokens know no
            classes, and their logits are left out unless ``head`` asks for them.

    Raises:
        ConfigError: the run has prompts, for which there is SAM's mask decoder.
    """
    if not policy.is_semantic:
        raise ConfigError(
            f"head={head.name} predicts classes without a prompt; got prompts={policy.kind}. Use "
            "prompts=semantic, or head=sam"
        )
    side = head.size or min(MAX_HEAD_SIDE, dataset.longest_side())
    patch = head.patch or (2 if side > LARGE_HEAD_SIDE else 1)
    unit = patch * 2 ** (head.scales - 1)  # every scale halves the side
    settings = HeadSettings(
        side=-(-side // unit) * unit,
        width=head.width,
        scales=head.scales,
        sam_logits=trains_decoder if head.sam_logits is None else head.sam_logits,
        channels=sam.input_channels,
        depth=dataset.stack if head.depth == "auto" else head.depth,
        patch=patch,
        jitter=head.jitter,
    )
    sam.add_dense_head(len(dataset.classes), settings, watershed_of(head))


def watershed_of(head: Head) -> Watershed | None:
    """Return how a head separates the objects of a class; None: it predicts classes alone."""
    if head.name != INSTANCE_HEAD:
        return None
    return Watershed(seed_height=head.seed_height, smoothing=head.smoothing)


@dataclass(frozen=True)
class _OpenedModel:
    """The model of a run, see ``RunContext``."""

    model: SegmentationModel
    base_sha256: str
    injection: Injection
    base_copy: Sam | None = None
    promptable_base: Sam | None = None


def _open_sam(
    config: Config,
    method: Method,
    policy: PromptPolicy,
    dataset: Dataset,
    device: torch.device,
    *,
    copies_base: bool,
) -> _OpenedModel:
    """Load SAM onto the device and inject the adapter, which may still be on the CPU."""
    if not copies_base:
        check_quantize(config.model.quantize, device, method)
    side = image_size_of(config.model.name, config.model.image_size, dataset)
    sam = load_sam(config.model.name, config.model.checkpoint, side)
    if policy.clip > 1 and (reason := why_no_memory(sam)):
        raise ConfigError(f"prompts=propagate needs the memory of SAM 2: {reason}")
    # The copy is made before the model moves to the device and before the adapter changes it.
    base_copy = deepcopy(sam) if copies_base else None
    sam.to(device)
    promptable_base = deepcopy(sam).eval() if config.eval.second_pass else None
    base_sha256 = base_hash(sam)
    if policy.kind == AUTO:
        check_generates_alone(config.head, method)
        sam.add_prompt_generator(len(dataset.classes))
    elif policy.finds_classes:
        count, keeps = len(dataset.classes), policy.keep_promptable or policy.is_mixed
        if keeps or count > sam.build.num_multimask:
            # Else the multimask tokens are those of the classes.
            sam.add_class_tokens(count, background=policy.background_token)
    if config.model.input_channels:
        sam.add_input_projection(config.model.input_channels)
    if config.head.name != "sam":
        trains_decoder = method.decoder != "frozen"
        add_head(sam, config.head, dataset, policy, trains_decoder=trains_decoder)
    return _OpenedModel(sam, base_sha256, inject(sam, method), base_copy, promptable_base)


def _compile(config: Config, model: SegmentationModel, progress: Progress) -> None:
    """Compile the parts of the model if the run asks for that."""
    if config.compile:
        parts = len(compile_parts(model))
        progress.say(f"compile=true: {parts} parts of the model, each when it first runs")


def _open_unet(config: Config, dataset: Dataset, device: torch.device) -> _OpenedModel:
    """Build the U-Net that trains in SAM's place."""
    watershed = watershed_of(config.head)
    unet, whole = open_baseline(config.baseline, dataset, config.seed, watershed)
    return _OpenedModel(unet.to(device), base_hash(unet), whole)


def check_generates_alone(head: Head, method: Method) -> None:
    """Refuse to train anything beside a prompt generator.

    Raises:
        ConfigError: the method trains something, or there is a dense head.
    """
    if head.name != "sam":
        raise ConfigError(
            f"prompts=auto predicts with SAM's frozen mask decoder; got head={head.name}. Use "
            "head=sam, or prompts=semantic"
        )
    if method.name != "none" or method.decoder != "frozen":
        raise ConfigError(
            f"prompts=auto trains a network that makes prompts, and keeps SAM as it is; got "
            f"peft={method.name}. Use peft=none, or prompts=semantic to adapt SAM"
        )


def _hide_names_in_run(dataset: Dataset, run_dir: Path, trained_in: Path | None) -> Dataset:
    """Return the data set with pseudonyms, and write who is who into the run directory."""
    # The folds of a cross-validation share one key, which is in the directory above them.
    folders = [run_dir, run_dir.parent]
    folders += [trained_in, trained_in.parent] if trained_in else []
    pseudonyms = processes.from_first(open_key(*folders))
    names = [*(case.name for case in dataset.cases), *dataset.left_out]
    if processes.is_first():
        write_key(run_dir, pseudonyms, names)
    return hide_names(dataset, pseudonyms)


def _automatic_choices(
    dataset: Dataset, changes: Sequence[str], method: Method, config: Config
) -> list[str]:
    """Return what the data decided for the keys that are "auto", a line each.

    Args:
        dataset: the data set of the run, with its intensity rule.
        changes: the random changes of the run.
        method: the method of the run.
        config: the configuration of the run.
    """
    lines = []
    if config.data.intensity == "auto":
        lines.append(f"data.intensity=auto: {describe_intensity(dataset.intensity.to_dict())}")
    if config.train.augment == "auto":
        lines.append(f"train.augment=auto: {', '.join(changes)}")
    if config.peft.blocks == "auto":
        side = dataset.longest_side()
        chosen = "as with peft=none" if method.name == "none" else method.blocks
        lines.append(f"peft.blocks=auto: {chosen}, for training images of up to {side} pixels")
    return lines


def _notes_on_data(dataset: Dataset) -> list[str]:
    """Return what the user must know about the files of the data set, a line each."""
    lines = [f"{finding.severity}: {finding}" for finding in dataset.findings]
    if dataset.left_out:
        lines.append(f"left out for errors: {', '.join(dataset.left_out)}")
    if dataset.lacks_room:
        lines.append(
            f"warning: {dataset.scratch_dir} has no room for {dataset.prepared_bytes / 1e9:.1f} GB "
            "of uncompressed images, so files are read again whenever a step needs them; choose "
            "another disk with output.dir"
        )
    if dataset.note:
        lines.append(f"note: {dataset.note}")
    return lines


def keep_splits(dataset: Dataset, run_dir: Path, *, resumes: bool, is_fold: bool) -> list[str]:
    """Write ``splits.json``; for a resumed run, compare the data with it instead.

    Args:
        dataset: the data set of the run.
        run_dir: the run directory.
        resumes: whether the run continues an earlier one.
        is_fold: whether the run is a fold of a cross-validation. All folds must have the same
            cases, so the other folds' ``splits.json`` are compared too.

    Returns:
        Warnings.

    Raises:
        DataError: naming what changed since the run was started; nothing is written.
    """
    path, warnings = run_dir / "splits.json", []
    if resumes and path.is_file():
        return check_unchanged(read_splits(path), dataset, str(path))
    # Another fold holds out other cases, so the cases are compared and not their splits.
    for other in sorted(run_dir.parent.glob("fold_*/splits.json")) if is_fold else ():
        found = read_splits(other)
        warnings += check_unchanged(found, dataset, str(other), same_sides=False)
    if processes.is_first():
        write_json(path, dataset.splits())
    return warnings


def read_splits(path: Path) -> dict[str, Any]:
    """Return the content of a ``splits.json``.

    Raises:
        DataError: when the file is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON; it is broken. Restore the file") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object. Restore the file")
    return found


def prompt_policy(config: Config) -> PromptPolicy:
    """Return how the model of a configuration is prompted.

    Raises:
        ConfigError: for keys that have no effect with these prompts.
    """
    prompts = config.prompts
    if prompts.name != MIXED and prompts.shares is not None:
        raise ConfigError(
            f"prompts.shares={dict(prompts.shares)} has no effect with prompts={prompts.name}: "
            "only prompts=mixed draws several kinds of prompts; leave it out, or use prompts=mixed"
        )
    if prompts.name != MIXED and prompts.every_kind:
        raise ConfigError(
            f"prompts.every_kind=true has no effect with prompts={prompts.name}: only "
            "prompts=mixed has several kinds of prompts; leave it out, or use prompts=mixed"
        )
    kind, shares = _kind_of(config)
    # Each model is trained on as it was pretrained.
    variant: Variant = "sam" if BUILDS[config.model.name].version == "1" else "sam2"
    if prompts.name == "propagate":
        _check_propagate(config)
    for key in ("clip", "first") if prompts.name != "propagate" else ():
        if (value := getattr(prompts, key)) is not None:
            raise ConfigError(
                f"prompts.{key}={value} has no effect with prompts={prompts.name}: only "
                "prompts=propagate trains on clips; leave it out, or use prompts=propagate"
            )
    policy = PromptPolicy(
        kind,
        prompts.objects,
        prompts.jitter,
        prompts.max_jitter_px,
        prompts.min_area,
        prompts.max_objects,
        background_token=prompts.background_token,
        keep_promptable=prompts.keep_promptable,
        clicks=prompts.clicks,
        variant=prompts.variant or variant,
        negatives=prompts.negatives,
        shares=shares,
        click_disks=prompts.click_disks,
        clip=(prompts.clip or CLIP) if prompts.name == "propagate" else 1,
        every_kind=prompts.every_kind,
        mask_noise=prompts.mask_noise,
        scribble_points=prompts.scribble_points,
        scribble_outside=prompts.scribble_outside,
    )
    if policy.background_token:
        _check_background(config, policy)
    return policy


def _kind_of(config: Config) -> tuple[Kind, dict[str, float]]:
    """Return the kind of prompt of a run, and the shares of several kinds.

    Objects of ``prompts=propagate`` are prompted on the first slice of a clip in one way or more.
    """
    prompts = config.prompts
    kind: Any = prompts.name
    if kind == MIXED:
        return kind, normalised(prompts.shares or DEFAULT_SHARES)
    if kind != "propagate":
        return kind, {}
    first = prompts.first or "box"
    shares = normalised({first: 1.0} if isinstance(first, str) else first)
    kind = MIXED if len(shares) > 1 else next(iter(shares))
    return kind, shares if len(shares) > 1 else {}


CLIP = 4
"""Slices of a clip of ``prompts=propagate``."""


def _check_propagate(config: Config) -> None:
    """Refuse keys that do not go with clips of slices.

    Raises:
        ConfigError: naming the key.
    """
    wrong = ""
    if config.prompts.negatives is not None:
        wrong = (
            f"prompts.negatives={config.prompts.negatives}: clips hold slices without the object"
        )
    elif config.peft.stack > 1:
        wrong = f"peft.depth={config.peft.stack}: the memory joins the slices, not the encoder"
    elif config.cache.variants not in (0, "auto"):
        wrong = f"cache.variants={config.cache.variants}: the slices of a clip change together"
    if wrong:
        raise ConfigError(f"prompts=propagate does not go with {wrong}. Leave it out")


def _check_background(config: Config, policy: PromptPolicy) -> None:
    """Refuse a token of the background where no tokens compete for the pixels.

    Raises:
        ConfigError: naming the key that it does not go with.
    """
    head = config.head.name
    why = ""
    if not policy.finds_classes:
        why = f"prompts={policy.kind} finds no classes; use prompts=semantic"
    elif policy.kind == AUTO:
        why = "prompts=auto makes no prompt for the background; use prompts=semantic"
    elif config.baseline.name is not None:
        why = f"baseline={config.baseline.name} has no tokens"
    elif head != "sam":
        why = f"head={head} predicts the classes, and not SAM's tokens; use head=sam"
    elif config.data.regions is not None:
        why = "data.regions decides about each class by itself"
    if why:
        raise ConfigError(f"prompts.background_token=true has no effect: {why}, or leave it out")


AUTO_CELLS, MOST_VARIANTS = 250 * 42**2, 16
"""With ``cache.variants=auto``: cells of the embeddings of all versions of all training slices, and
versions of each slice. Every version costs a pass of the frozen encoder, whose time grows with its
cells: this many are 250 versions at LiteMedSAM's 168 pixels and 1000 at 84, of which 925 took 45
seconds of two cores with the whole encoder frozen. More than 16 of one slice cost more than they
teach."""

CACHED_SHARE = 0.5
"""With ``cache.variants=auto``: share of the encoder's blocks that must be frozen. If most of it
runs in every step anyway, new changes in every step cost little and teach more: of five tiles of
axons, with eight of ten blocks adapted, Dice was 0.806 in place of 0.796."""


def image_size_of(model: str, asked: int | Literal["fit"] | None, dataset: Dataset) -> int | None:
    """Return the side of the model's square; None: the one that the model was pretrained with."""
    return fitting_image_size(model, dataset.longest_side()) if asked == "fit" else asked


def stack_of(config: Config) -> int | Literal["auto"]:
    """Return how many neighbouring slices of a volume are seen together; auto: the data decide.

    Raises:
        ConfigError: the encoder and the head see different numbers of slices.
    """
    by_head = config.head.depth if config.head.name == "unet" else 1
    if by_head == "auto":
        return config.peft.stack if config.peft.stack > 1 else by_head
    if by_head > 1 and config.peft.stack > 1 and by_head != config.peft.stack:
        raise ConfigError(
            f"head.depth: expected the value of peft.depth, {config.peft.stack}, or 1; "
            f"got {by_head}"
        )
    return max(by_head, config.peft.stack)


def versions_of(
    asked: int | Literal["auto"],
    changes: Sequence[str],
    dataset: Dataset,
    method: Method,
    model: str,
    size: int | Literal["fit"] | None,
) -> int:
    """Return how many versions of each training slice ``cache.variants`` asks for.

    Args:
        asked: the value of the key.
        changes: names of the random changes; without any, "auto" asks for no versions.
        dataset: the data set of the run.
        method: the method, whose blocks decide how much of the encoder is frozen.
        model: name of the model, which with ``size`` decides what a version costs.
        size: ``model.image_size``.
    """
    if asked != "auto":
        return asked
    depth = BUILDS[model].blocks
    frozen = depth if method.name in ("none", "decoder") else frozen_blocks(method.blocks, depth)
    if frozen < CACHED_SHARE * depth:
        return 0
    grid = embedding_grid(model, image_size_of(model, size, dataset))
    fitting = AUTO_CELLS // (grid**2 * max(1, len(dataset.slices("train"))))
    return min(MOST_VARIANTS, max(1, fitting)) if changes else 0


def open_data(config: Config, *, scratch: str | Path | None = None) -> Dataset:
    """Open the data set of a configuration.

    ``empty_slices=auto`` keeps training slices without any class where the model must learn to
    predict nothing without a prompt, and drops them for prompts, which need an object.

    Args:
        config: the configuration of a run. Besides ``data``, its prompts and its model decide how
            slices are chosen and read, and its seed which empty slices are kept.
        scratch: the folder of a temporary file for cases that memory cannot hold together.

    Raises:
        ConfigError: when empty slices are kept with box or point prompts, for more
            data.train_cases than there are, and for a list of held-out cases that does not fit.
        DataError: listing the errors of the files.
    """
    data, finds_classes = config.data, prompt_policy(config).finds_classes
    empty = data.empty_slices
    if empty == "auto":
        empty = "keep" if finds_classes else "drop"
    if not finds_classes and empty != "drop":
        raise ConfigError(
            f"data.empty_slices={empty}: box and point prompts need an object in every training "
            "slice; use drop, or prompts=semantic"
        )
    options = {**asdict(data), "empty_slices": empty}
    train_cases, draw = options.pop("train_cases"), options.pop("draw")
    if (held_out := options.pop("held_out")) is not None:
        if data.fold is not None:
            raise ConfigError(
                f"data.held_out={held_out} lists the held-out cases, and data.fold={data.fold} "
                "chooses others: leave one of the two out"
            )
        if data.val_every == 0:
            raise ConfigError(
                f"data.held_out={held_out} lists the held-out cases, and data.val_every=0 holds "
                "out nothing: leave one of the two out"
            )
        options["split"] = {"val": listed_names(Path(held_out).expanduser())}
    # The limits hold for every reader in the program and are no options of the data set.
    set_limits(options.pop("max_gb"), options.pop("max_seconds"))
    # A resumed run hashes all files again. With pseudonyms nothing outside of the run directory may
    # name a case.
    index = CaseIndex(cache_folder("index"), trusts=config.resume is None)
    dataset = open_dataset(
        options.pop("name"),
        **options,
        seed=config.seed,
        stack=stack_of(config),
        input_channels=config.model.input_channels,
        scratch_dir=scratch,
        index=None if config.privacy else index,
    )
    for note in index.notes:
        console.log(f"note: {note}")
    return use_training_cases(dataset, train_cases, draw)
