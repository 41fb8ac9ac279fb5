"""What ``finetune`` and ``evaluate`` share: model, data and features of one configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from samadapt import console
from samadapt.adapters.injection import Injection, inject
from samadapt.adapters.record import AdapterRecord, portable_options
from samadapt.adapters.store import load_adapter
from samadapt.data.checks.resumed_run import check_unchanged
from samadapt.data.checks.training_record import trained_on
from samadapt.data.dataset import Dataset, open_dataset
from samadapt.data.pseudonyms import hide_names, open_key, write_key
from samadapt.data.stacks import Stacks
from samadapt.errors import ConfigError, DataError
from samadapt.evaluation.evaluate import Evaluation, SlicePredictor, evaluate_cases
from samadapt.prompts.annotations import has_prompts, lacks_prompts
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs.environment import environment, recorded_precision, seed_all, write_json
from samadapt.sam.attention.compiled import describe_attention
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.system.launchers import as_only_process
from samadapt.system.limits import set_limits
from samadapt.training.feature_plan import FeaturePlan, plan_features
from samadapt.training.features import Features
from samadapt.training.losses import LossFunction, object_loss, region_loss, semantic_loss
from samadapt.training.precision import Precision, choose_device, choose_precision
from samadapt.training.progress import Progress
from samadapt.training.samples import TrainingSamples

if TYPE_CHECKING:
    from accelerate import Accelerator

    from samadapt.config.schema import Config, Data
    from samadapt.data.types import Sample, SliceRef
    from samadapt.sam.model import Sam

FEATURES_BATCH = 8
"""Images in one forward pass of the frozen prefix."""

VARIANTS = 4
"""Versions of each slice in the advice on augmentation."""


@dataclass
class Session:
    """One configuration, made ready.

    Attributes:
        config: all of it.
        run_dir: where results go.
        device, precision: what it runs on and in.
        dataset: cases, slices, classes.
        sam, base_sha256: the model with its adapter, and the hash of its base.
        injection: what is trained.
        policy: how the adapted model is prompted.
        progress: what the user sees.
        samples: what is trained on, and how it is changed.
        features: the frozen prefix's output, by image.
        warming: what of it is still to be computed; None where nothing is kept.
    """

    config: Config
    run_dir: Path
    device: torch.device
    precision: Precision
    dataset: Dataset
    sam: Sam
    base_sha256: str
    injection: Injection
    policy: PromptPolicy
    progress: Progress
    samples: TrainingSamples = field(init=False)
    features: Features = field(init=False)
    warming: FeaturePlan[tuple[SliceRef, int]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Make the features, without a store until ``plan`` knows how many there are."""
        self.samples = training_samples(self.config, self.dataset, self.policy)
        self.features = Features(
            self.sam,
            self.injection.first_trainable_block,
            base_sha256=self.base_sha256,
            autocast=self.autocast,
            dtype=self.precision.dtype,
            store=None,
            batch_size=FEATURES_BATCH,
            route=f"{self.precision.name} on {self.device.type}",
        )

    @property
    def zero_shot_policy(self) -> PromptPolicy:
        """How the base model is prompted: it knows no classes, so it gets each class's box."""
        if self.policy.is_semantic:
            return PromptPolicy("box", objects="class")
        return self.policy

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes."""
        return self.precision.autocast(self.device)

    def say(self, text: str) -> None:
        """Tell the user, and ``log.txt``."""
        self.progress.say(text)

    def accelerator(self) -> Accelerator:
        """Return accelerate's view of device, precision and processes."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        # it holds one device and precision for the whole program; a second run may differ
        AcceleratorState._reset_state(reset_partial_state=True)
        with as_only_process():
            return Accelerator(
                mixed_precision=self.precision.accelerate_name,
                cpu=self.device.type == "cpu",
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )

    def loss(self) -> LossFunction:
        """Return the loss for the way the model is prompted."""
        weights, semantic = self.config.loss, self.policy.is_semantic
        name = weights.name if weights.name != "auto" else ("dice_ce" if semantic else "sam")
        if (name == "dice_ce") is not semantic:
            raise ConfigError(
                f"loss={name} does not go with prompts={self.policy.kind}: dice_ce is for "
                "semantic, sam for box and point; leave loss=auto"
            )
        if semantic:
            make = region_loss if self.dataset.overlapping else semantic_loss
            return make(
                len(self.dataset.classes), cross_entropy=weights.cross_entropy, dice=weights.dice
            )
        return object_loss(focal=weights.focal, dice=weights.dice, iou=weights.iou)

    def plan(self, slices: Mapping[str, Sequence[SliceRef]]) -> None:
        """Decide where features are kept, and tell the clock what the run consists of.

        Args:
            slices: what is scored (``"test"``), trains (``"train"``), chooses the best step
                (``"validation"``).

        Raises:
            ConfigError: for ``cache.enabled=on`` where features cannot be kept.
            RunError: when there is too little room for them.
        """
        train, cache = self.config.train, self.config.cache
        trained = "input projection" if "input" in self.injection.groups else "patch embedding"
        blocked = "" if self.injection.has_frozen_prefix else f"training of the {trained}"
        if cache.enabled == "on" and (blocked or self.augments_anew):
            cause = blocked or "augmentation without cache.variants"
            raise ConfigError(f"cache.enabled=on: {cause} changes every image's features; use off")
        if cache.variants and not train.augment:
            raise ConfigError(
                f"cache.variants={cache.variants} keeps augmented versions of each training slice; "
                "name the augmentation with train.augment"
            )
        if cache.enabled == "off" or blocked:
            self.say(f"features: computed anew in every step ({blocked or 'cache.enabled=off'})")
        else:
            self._plan_features(slices)
        scored, chosen = len(slices["test"]), len(slices.get("validation", ()))
        validations = -(-train.steps // train.validate_every) if train.validate_every else 1
        self.progress.plan(
            {
                "features": len(self.warming.missing) if self.warming else 0,
                "train": train.steps if chosen and self.injection.trainable else 0,
                "validation": validations * chosen,
                "adapted": scored,
                "zero-shot": scored,
            },
            like={"adapted": "validation", "zero-shot": "validation"},
        )

    def _plan_features(self, slices: Mapping[str, Sequence[SliceRef]]) -> None:
        cache, config = self.config.cache, self.config
        variants = 0 if self.augments_anew else max(1, cache.variants)
        seen = {name: self.samples.stacks.whole(refs)[0] for name, refs in slices.items()}
        training = seen.pop("train", [])
        jobs = [(ref, variant) for ref in training for variant in range(variants)]
        jobs += [(ref, 0) for refs in seen.values() for ref in refs]
        self.warming = plan_features(
            self.features,
            jobs,
            self._image,
            where=cache.where,
            folder=Path(cache.dir or Path(config.output.dir) / "features"),
            max_bytes=math.inf if cache.max_gb is None else cache.max_gb * 1e9,
        )
        self.say(f"features: {self.warming.text}")
        if training and self.augments_anew:
            size = VARIANTS * len(training) * self.warming.bytes_each
            self.say(
                "features of training slices: computed anew in every step (augmentation); "
                f"cache.variants={VARIANTS} would keep {VARIANTS} versions of each in at most "
                f"{size / 1e9:.2f} GB and compute each once"
            )

    @property
    def augments_anew(self) -> bool:
        """Whether every step sees training slices that no step saw before."""
        return bool(self.config.train.augment) and not self.config.cache.variants

    def feature_keys(self, versions: Sequence[tuple[SliceRef, int]]) -> list[str]:
        """Return the keys of slices' variants; empty where no features are kept of them."""
        return self.warming.keys_of(versions) if self.warming else []

    def _image(self, job: tuple[SliceRef, int]) -> Any:
        """Return the image of a slice's variant, or None where nothing in its stack is prompted."""
        ref, variant = job
        stacks = self.samples.stacks
        stack = [self.dataset.sample(one) for one in stacks.of(ref)]
        if not (self.policy.is_semantic or any(map(self._prompted, stack))):
            return None
        return self.samples.variant(stack, variant)[stacks.place(ref)].image

    def warm(self) -> None:
        """Compute the features that are planned and missing."""
        if self.warming is None:
            return
        with self.progress.phase("features"):
            self.features.warm(self.warming.missing, self.progress.advance)
        computed = self.features.computed
        self.say(
            f"features: {computed} computed, {self.warming.images - computed} reused"
            + ("" if self.augments_anew else "; nothing runs the frozen blocks on them again")
        )

    def score(
        self, refs: Sequence[SliceRef], policy: PromptPolicy, report: bool = True
    ) -> Evaluation:
        """Score the model as it is on some slices; a training's validation needs Dice alone."""
        data = self.dataset
        return evaluate_cases(
            self.predictor(policy),
            refs,
            data.sample,
            data.classes,
            self.progress.advance if report else lambda count: None,
            spacing_of=lambda case: data.case(case).spacing_mm,
            tolerance=self.config.eval.nsd_tolerance_mm,
            overlap_only=not report,
            instances=report and self.config.eval.instances,
        )

    def predictor(self, policy: PromptPolicy) -> SlicePredictor:
        """Return the model as it is, prompted by a policy."""
        return SlicePredictor(
            sam=self.sam,
            first_trainable_block=self.injection.first_trainable_block,
            features=self.features,
            policy=policy,
            classes=len(self.dataset.classes),
            autocast=self.autocast,
            batch_size=self.config.eval.batch_size,
            independent=self.dataset.overlapping
            or (self.policy.is_semantic and not policy.is_semantic),
            overlapping=self.dataset.overlapping,
            stacks=self.samples.stacks,
            image_of=lambda ref: self.dataset.sample(ref).image,
        )

    def record(self) -> AdapterRecord:
        """Return what the adapter must remember; scores are still to be added."""
        config, sam = self.config, self.sam
        return AdapterRecord(
            base=config.model.name,
            base_sha256=self.base_sha256,
            image_size=sam.image_size,
            checkpoint=config.model.checkpoint and Path(config.model.checkpoint).name,
            num_masks=sam.build.num_multimask,
            input_channels=sam.input_channels,
            preprocessing=asdict(sam.preprocessing),
            intensity=dict(self.dataset.intensity.to_dict()),
            classes=list(self.dataset.classes),
            prompt=self.policy.to_dict(),
            threshold=sam.mask_threshold,
            recipe=config.recipe,
            axis=self.dataset.axis,
            overlapping=self.dataset.overlapping,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            data=self.dataset.name,
            data_options=portable_options(asdict(config.data)),
            trained_on=trained_on(self.dataset),
        )

    def replace_adapter(self, directory: Path) -> None:
        """Go on with an adapter that was trained before, on freshly loaded base weights.

        Raises:
            AdapterError: when it does not fit them.
        """
        model = self.config.model
        self.sam = load_sam(model.name, model.checkpoint, model.image_size).to(self.device)
        self.injection = load_adapter(directory, self.sam)
        self.precision.store_frozen(self.sam.to(self.device), self.injection.exact)
        self.features.sam = self.sam

    def _prompted(self, sample: Sample) -> bool:
        if has_prompts(sample):
            return not lacks_prompts(sample)
        return bool((sample.maps > 0).any())


def open_session(config: Config, run_dir: Path, trained_in: Path | None = None) -> Session:
    """Load model and data, inject the adapter, seed everything, write ``env`` and ``splits``.

    Args:
        config: of the run.
        run_dir: where results go.
        trained_in: the run directory of an adapter that is evaluated; with ``privacy`` its key
            gives the same cases the same pseudonyms.

    Raises:
        UserError: for what is wrong with the configuration, the data or the weights.
    """
    device = choose_device(config.device)
    began = None if config.resume is None else recorded_precision(run_dir)
    precision = choose_precision(config.precision, device, began)
    progress = Progress(console.rich_console(), run_dir / "log.txt")
    progress.say(f"run directory: {run_dir}")
    seed_all(config.seed)
    policy = prompt_policy(config)
    dataset = open_data(
        config.data,
        config.seed,
        semantic=policy.is_semantic,
        scratch=config.output.dir,
        stack=config.peft.stack,
        input_channels=config.model.input_channels,
    )
    if config.privacy:
        # A fold of a cross-validation takes the key of the whole, in the folder above.
        folders = [
            run_dir,
            run_dir.parent,
            *([trained_in, trained_in.parent] if trained_in else []),
        ]
        pseudonyms = open_key(*folders)
        write_key(run_dir, pseudonyms, [*(case.name for case in dataset.cases), *dataset.left_out])
        dataset = hide_names(dataset, pseudonyms)
    for finding in dataset.findings:
        progress.say(f"{finding.severity}: {finding}")
    if dataset.left_out:
        progress.say(f"left out for errors: {', '.join(dataset.left_out)}")
    if dataset.note:
        progress.say(f"note: {dataset.note}")
    for warning in keep_splits(config, run_dir, dataset):
        progress.say(f"warning: {warning}")
    sam = load_sam(config.model.name, config.model.checkpoint, config.model.image_size).to(device)
    base = base_hash(sam)
    if policy.is_semantic and len(dataset.classes) > sam.build.num_multimask:
        sam.resize_mask_tokens(len(dataset.classes))
    if config.model.input_channels:
        sam.add_input_projection(config.model.input_channels)
    injection = inject(sam, config.peft)
    precision.store_frozen(sam.to(device), injection.exact)
    progress.say(f"device {device}, precision {precision.name}: {precision.reason}")
    if device.type == "cpu":
        progress.say(f"attention {describe_attention()}")
    write_json(run_dir / "env.json", environment(device, precision))
    return Session(
        config, run_dir, device, precision, dataset, sam, base, injection, policy, progress
    )


def keep_splits(config: Config, run_dir: Path, dataset: Dataset) -> list[str]:
    """Write ``splits.json``, or compare the data with that of the run that goes on.

    The folds of a cross-validation must all have the same cases.

    Returns:
        Warnings.

    Raises:
        DataError: naming what changed since the run was started; nothing is written.
    """
    path, warnings = run_dir / "splits.json", []
    if config.resume is not None and path.is_file():
        return check_unchanged(read_splits(path), dataset, str(path))
    folds = run_dir.parent.glob("fold_*/splits.json") if config.data.fold is not None else ()
    for other in sorted(folds):
        found = read_splits(other)
        warnings += check_unchanged(found, dataset, str(other), same_sides=False)
    write_json(path, dataset.splits())
    return warnings


def read_splits(path: Path) -> dict[str, Any]:
    """Return the content of a ``splits.json``.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON; it is broken. Restore the file") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object. Restore the file")
    return found


def prompt_policy(config: Config) -> PromptPolicy:
    """Return how a configuration's model is prompted."""
    prompts = config.prompts
    return PromptPolicy(
        prompts.name,
        prompts.objects,
        prompts.jitter,
        prompts.max_jitter_px,
        prompts.min_area,
        prompts.max_objects,
    )


def training_samples(config: Config, dataset: Dataset, policy: PromptPolicy) -> TrainingSamples:
    """Return what a configuration trains on."""
    changes, variants = config.train.augment, config.cache.variants
    stacks = Stacks(config.peft.stack, lambda case: dataset.case(case).shape[2])
    return TrainingSamples(dataset, policy, changes, variants, config.seed, stacks)


def open_data(
    data: Data,
    seed: int,
    *,
    semantic: bool,
    scratch: str | Path | None = None,
    stack: int = 1,
    input_channels: int | None = None,
) -> Dataset:
    """Open the data set of a configuration; ``scratch`` is for large pictures in tiles.

    ``empty_slices=auto`` keeps training slices without a class for ``semantic``, where the model
    must learn to say nothing, and drops them for prompts, which need an object.

    Raises:
        ConfigError: for box or point prompts with empty slices kept.
        DataError: listing the errors of the files.
    """
    empty = data.empty_slices
    if empty == "auto":
        empty = "keep" if semantic else "drop"
    if not semantic and empty != "drop":
        raise ConfigError(
            f"data.empty_slices={empty}: box and point prompts need an object in every training "
            "slice; use drop, or prompts=semantic"
        )
    options = {**asdict(data), "empty_slices": empty}
    set_limits(options.pop("max_gb"), options.pop("max_seconds"))
    return open_dataset(
        options.pop("name"),
        **options,
        seed=seed,
        stack=stack,
        input_channels=input_channels,
        cache_dir=scratch if data.tile else None,
    )
