"""``init=DIR``: a training that starts from the weights of an earlier adapter.

The new configuration decides the data, the classes and what is trained;
``adapters/initial_weights.py`` loads what fits. ``init.json`` in the run directory holds what a
resumed run must know of the first adapter, so that its directory is not needed once there is a
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.hub import adapter_path
from samadapt.adapters.initial_weights import TakenOver, take_over
from samadapt.adapters.mask_tokens import TokenUse
from samadapt.adapters.record import RECORD, AdapterRecord, read_record, sha256_of
from samadapt.adapters.store import WEIGHTS
from samadapt.data.channels import MANY, listed_channels, parse_channel
from samadapt.data.checks.resumed_run import merge_trained_on
from samadapt.data.checks.training_record import seen
from samadapt.data.tiles import recorded_tiling
from samadapt.errors import AdapterError, ConfigError, RunError
from samadapt.runs.environment import write_json
from samadapt.runs.scored_slices import why_unknown
from samadapt.sam.watershed import MAPS_PER_CLASS
from samadapt.sam.weights.builds import BUILDS
from samadapt.system import processes

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.data.types import SliceRef
    from samadapt.runs.context import RunContext

INIT = "init.json"
_MOST_NAMES = 5


@dataclass(frozen=True)
class InitialAdapter:
    """The adapter that a training starts from; the content of ``init.json``.

    Attributes:
        weights_sha256: sha256 of its weights.
        data: the data set that it was trained on.
        recipe: the recipe that it was trained with.
        classes: its classes.
        kept: what the training takes over from it, in words.
        new: what starts as it would without it.
        left_out: what of it has no place in the training.
        trained_on: its training images, as ``AdapterRecord.trained_on``; None: not known.
        trained_on_known: whether each of its training images is recognised in the new data.
    """

    weights_sha256: str
    data: str
    recipe: str
    classes: list[str]
    kept: list[str]
    new: list[str]
    left_out: list[str]
    trained_on: dict[str, list[int] | None] | None
    trained_on_known: bool

    @property
    def entry(self) -> dict[str, Any]:
        """What summary and adapter record hold: everything but the list of images."""
        return {key: value for key, value in asdict(self).items() if key != "trained_on"}

    @property
    def text(self) -> str:
        """What was taken over, in one line."""
        return str(TakenOver(self.kept, self.new, self.left_out))


def with_initial_digest(config: Config) -> Config:
    """Return a configuration with ``init`` and the sha256 of the adapter that it names.

    ``config.yaml`` then says which weights the run started from, and a fold or a resumed run does
    not start from others. A resumed run keeps what is stored.

    Raises:
        ConfigError: there is no adapter, or it is for another base model.
        AdapterError: the adapter is broken, or is not the one that ``init_sha256`` names.
    """
    if config.resume is not None:
        return config
    folder, record = read_initial_adapter(config)
    size = config.model.image_size or BUILDS[config.model.name].image_size
    # What fits is known once the data set is open; the size is compared again then.
    side = record.image_size if size == "fit" else size
    _check_base(str(config.init), record, config.model.name, side)
    return replace(config, init_sha256=sha256_of(folder / WEIGHTS))


def read_initial_adapter(config: Config) -> tuple[Path, AdapterRecord]:
    """Return the directory and the record of the adapter that ``init`` names.

    Raises:
        ConfigError: there is no adapter.
        AdapterError: it is broken, or is not the one that ``init_sha256`` names.
    """
    folder = adapter_folder(str(config.init))
    record = read_record(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise AdapterError(f"{weights}: the file is missing")
    if config.init_sha256 not in (None, found := sha256_of(weights)):
        raise AdapterError(
            f"{weights}: expected the weights with sha256 {config.init_sha256}, from which this "
            f"run began (init_sha256); got {found}. Restore that adapter, or start a new run"
        )
    return folder, record


def adapter_folder(init: str) -> Path:
    """Return the adapter directory that ``init`` names, by itself or by its run directory.

    Raises:
        ConfigError: naming what was expected and what is there.
    """
    folder = adapter_path(init)
    for candidate in (folder, folder / "adapter"):
        if (candidate / RECORD).is_file():
            return candidate
    if folds := sorted(folder.glob("fold_*/adapter")):
        raise ConfigError(
            f"init={init}: a cross-validation has an adapter for each fold; name one of them, such "
            f"as init={folds[0]}"
        )
    if (folder / "config.yaml").is_file():
        raise ConfigError(
            f"init={init}: this run has no adapter: it was stopped, or trained nothing. Finish it "
            f"with resume={init}, or name another one"
        )
    found = f"it has no {RECORD}" if folder.is_dir() else "there is no such folder"
    raise ConfigError(
        f"init={init}: expected an adapter directory, or a run directory with adapter/; {found}"
    )


def start_from_adapter(
    config: Config, context: RunContext, held_out: Sequence[SliceRef], *, is_resumed: bool
) -> InitialAdapter:
    """Load what fits of the adapter that ``init`` names, and say what that is.

    Args:
        config: the configuration of the run, with ``init``.
        context: the run, whose model is changed in place.
        held_out: the slices that must not be among the training images of the first adapter.
        is_resumed: whether the weights come from a checkpoint, which has them already.

    Raises:
        ConfigError: the base models differ, the run trains nothing, or the first adapter was
            trained on a held-out case.
        AdapterError: the adapter is broken, or nothing of it fits.
    """
    if is_resumed:
        context.say(f"init: the weights come from the checkpoint; {config.init} is not read again")
        return _read(context.run_dir / INIT)
    folder, record = read_initial_adapter(config)
    sam = context.sam
    _check_base(str(config.init), record, config.model.name, sam.image_size, context.base_sha256)
    if not context.has_trained_parameters:
        raise ConfigError(
            f"init={config.init}: this run trains nothing (peft={config.peft.name} with "
            f"peft.decoder={config.peft.decoder}). To score an adapter: samadapt evaluate "
            f"adapter={folder}"
        )
    unknown = why_unknown(context, config.data, record)
    if is_fold_of_cross_validation(config, context.run_dir):
        # The other folds hold out the other cases: refuse all of them before the first is trained.
        data = context.dataset
        held_out = [*data.slices("train", empty="keep", step=1), *data.slices("val")]
    refuse_seen(config, context, held_out, record, unknown=unknown)
    context.say(f"init: starts from {folder}, trained on {record.data or 'unknown data'}")
    for difference in differences(config, context, record):
        context.say(f"warning: init: {difference}")
    if unknown:
        context.say(
            f"warning: init: the adapter {unknown}; whether it was trained on a held-out case is "
            "not checked"
        )
    tokens = TokenUse(
        context.dataset.classes,
        context.policy.finds_classes,
        sam.build.num_multimask,
        maps=1 if sam.watershed is None else MAPS_PER_CLASS,
        has_own_tokens=sam.class_tokens is not None,
    )
    taken = take_over(folder, record, sam, context.injection, tokens)
    first = InitialAdapter(
        weights_sha256=sha256_of(folder / WEIGHTS),
        data=record.data,
        recipe=Path(record.recipe).name,
        classes=record.classes,
        **asdict(taken),
        trained_on=record.trained_on,
        trained_on_known=not unknown and record.init.get("trained_on_known", True) is True,
    )
    context.say(f"init: {first.text}")
    if processes.is_first():
        write_json(context.run_dir / INIT, asdict(first))
    return first


def is_fold_of_cross_validation(config: Config, run_dir: Path) -> bool:
    """Whether a run is one of several folds, in the directory of a cross-validation."""
    return config.data.fold is not None and (run_dir.parent / "config.yaml").is_file()


def refuse_seen(
    config: Config,
    context: RunContext,
    held_out: Sequence[SliceRef],
    record: AdapterRecord,
    *,
    unknown: str,
) -> None:
    """Refuse held-out cases that the first adapter was trained on.

    Args:
        config: the configuration of the run.
        context: the run.
        held_out: the slices to look at.
        record: the record of the first adapter.
        unknown: why its images are not recognised in these data; empty if they are.

    Raises:
        ConfigError: naming the cases.
    """
    if unknown or record.trained_on is None:
        return
    data = context.dataset
    same_slices = data.tiling == recorded_tiling(record.data_options)
    before = seen(data, held_out, record.trained_on, same_slices=same_slices)
    names = sorted({ref.case for ref in before})
    if not names:
        return
    listed = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        listed += f" and {len(names) - _MOST_NAMES} more"
    total = len({ref.case for ref in held_out})
    raise ConfigError(
        f"init={config.init}: this adapter was trained on {len(names)} of the {total} cases that "
        f"are held out here: {listed}. Their scores would not be those of unseen images. Let these "
        "cases train and hold out others (data.val_every, data.fold; a cross-validation, folds=N, "
        "holds out every case), or start from another adapter"
    )


def differences(config: Config, context: RunContext, record: AdapterRecord) -> list[str]:
    """Return in what the images and prompts of a run differ from those of the first adapter."""
    data, policy = context.dataset, context.policy
    rule = json.loads(json.dumps(data.intensity.to_dict()))
    options = record.data_options
    shown = [
        ", ".join(map(str, listed_channels(parse_channel(channel, MANY)))) or "the only one"
        for channel in (options.get("channel"), config.data.channel)
    ]
    pairs: dict[str, tuple[object, object]] = {
        "intensity (data.intensity)": (_rule(record.intensity or rule), _rule(rule)),
        "prompts": (record.prompt.get("kind"), policy.kind),
        "number of input channels (model.input_channels)": (
            record.input_channels,
            context.sam.input_channels,
        ),
        "channels (data.channel)": (shown[0], shown[1]),
        "axis of the slices (data.axis)": (record.axis, data.axis),
        "classes may overlap (data.regions)": (record.overlapping, data.overlapping),
    }
    head = context.sam.dense_head
    if record.head and head is not None:
        pairs["side of the dense head (head.size)"] = (record.head.get("side"), head.settings.side)
        pairs["kind of the dense head (head)"] = (record.head.get("name"), head.describe()["name"])
    if policy.finds_classes:
        pairs["the background has a token (prompts.background_token)"] = (
            bool(record.prompt.get("background_token")),
            policy.background_token,
        )
    return [
        f"{what}: {_shown(there)} for the adapter, {_shown(here)} in this run"
        for what, (there, here) in pairs.items()
        if there != here
    ]


def add_to_summary(summary: dict[str, Any], first: InitialAdapter | None) -> None:
    """Add to a summary what the training started from; None adds nothing."""
    if first is None:
        return
    summary["init"] = first.entry
    summary["notes"].append(
        f"the training started from an adapter trained on {first.data or 'unknown data'} "
        f"({first.text}); zero-shot is the base model without any adapter"
    )
    if not first.trained_on_known:
        summary["notes"].append(
            "the images that this first adapter was trained on are not all known: held-out cases "
            "may be among them"
        )


def add_to_record(record: AdapterRecord, first: InitialAdapter | None) -> AdapterRecord:
    """Return a record that also holds what the training started from, and its images."""
    if first is None:
        return record
    images = merge_trained_on(first.trained_on, record.trained_on or {})
    return replace(record, init=first.entry, trained_on=images)


def _check_base(
    init: str, record: AdapterRecord, name: str, image_size: int, base_sha256: str = ""
) -> None:
    """Refuse an adapter of another base model; with an empty hash, name and size are compared."""
    if record.base != name:
        raise ConfigError(
            f"init={init}: expected an adapter of model={name}; it was trained on {record.base}. "
            f"Use model={record.base}, or an adapter of {name}"
        )
    if record.image_size != image_size:
        raise ConfigError(
            f"init={init}: expected an adapter for images of {image_size} px; it was trained at "
            f"{record.image_size} px. Use model.image_size={record.image_size}, or another adapter"
        )
    if base_sha256 and record.base_sha256 != base_sha256:
        hint = f" ({record.checkpoint})" if record.checkpoint else ""
        raise ConfigError(
            f"init={init}: expected an adapter of the base weights with sha256 {base_sha256}; it "
            f"was trained on those with {record.base_sha256}{hint}. Give these as "
            "model.checkpoint=FILE"
        )


def _read(path: Path) -> InitialAdapter:
    """Read ``init.json``.

    Raises:
        RunError: the file is missing or broken.
    """
    try:
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return InitialAdapter(**values)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(
            f"{path}: expected what this run wrote about the adapter that it started from; the "
            "file is missing or broken. Restore it, or start a new run"
        ) from error


def _rule(values: Mapping[str, Any]) -> str:
    """Return an intensity rule in one line."""
    return json.dumps(values, sort_keys=True)


def _shown(value: object) -> str:
    """Return a value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
