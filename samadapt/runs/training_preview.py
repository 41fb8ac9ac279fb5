"""Draw the slices that a run trains on: the picture of ``samadapt show images=N``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samadapt.config.schema import Config
from samadapt.data.intensity import describe_intensity, visible
from samadapt.data.pseudonyms import Pseudonyms, hide_names
from samadapt.data.stacks import stacks_in_batch
from samadapt.errors import ConfigError, DataError
from samadapt.methods.base import method_for
from samadapt.reports import contact_sheet
from samadapt.runs.context import open_data, prompt_policy, versions_of
from samadapt.training.augmentation_rule import changes_for
from samadapt.training.batches import choose_objects
from samadapt.training.draws import BatchDraws
from samadapt.training.samples import TrainingSamples
from samadapt.training.selection import selection_split


def draw_training_preview(config: Config, count: int, path: Path) -> list[str]:
    """Draw the slices of the first training steps of a run.

    Args:
        config: configuration of the run.
        count: number of slices to draw.
        path: PNG to write; an existing file is replaced.

    Returns:
        The names of the slices, in the order of the training.

    Raises:
        ConfigError: the file is no PNG, or there is no slice to train on.
        DataError: the files of the data set have errors, or the PNG cannot be written.
    """
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(f"output: expected a file name ending in .png; got {str(path)!r}")
    policy = prompt_policy(config)
    dataset = open_data(config)
    if config.privacy:
        dataset = hide_names(dataset, Pseudonyms())
    changes = changes_for(config.train.augment, dataset)
    name, size = config.model.name, config.model.image_size
    has_head = config.head.name != "sam"
    method = method_for(config.peft, dataset.longest_side(), has_head=has_head)
    versions = versions_of(config.cache.variants, changes, dataset, method, name, size)
    samples = TrainingSamples(dataset, policy, changes, versions, config.seed)
    usable = samples.usable(dataset.slices("train"))
    refs, _ = selection_split(
        usable, config.train.validate_cases, tile=dataset.tile, gap=dataset.stack - 1
    )
    if not refs:
        raise ConfigError("data: there is no slice to train on; use more cases (data.max_cases)")
    stacks = stacks_in_batch(config.train.slices, dataset.stack)
    draws = BatchDraws(samples, refs, stacks, config.seed)
    tiles: list[contact_sheet.SheetSlice] = []
    # These are the slices and prompts of the first steps.
    while len(tiles) < count:
        drawn = draws.next()
        # Of a batch that trains with every kind, the way that needs no object is drawn.
        own = next((one for one, _ in drawn.ways if one.is_semantic), drawn.ways[0][0])
        seen, trained, _ = samples.take(drawn.items, drawn.random.own)
        batch = [seen[place] for place in trained]
        random = drawn.random.of_slices([len(item.refs) for item in drawn.items]).some(trained)
        chosen: list[Any] = [None] * len(batch)
        if not own.is_semantic:
            firsts = range(0, len(batch), own.clip)
            asked = [batch[place] for place in firsts]
            chosen[:: own.clip] = choose_objects(asked, own, random.some(firsts))[0]
        for sample, objects in zip(batch, chosen, strict=True):
            prompt: tuple[Any, ...] = ()
            if objects:
                note = _counted(policy.max_objects, samples.count_objects(sample))
                places = (objects.boxes, objects.points, objects.point_labels, objects.masks)
                prompt = (*places, own.kind == "scribble", note)
            name = f"{sample.case} · {sample.part} {sample.index}"
            tiles.append(
                contact_sheet.SheetSlice(name, visible(sample.image), sample.shown, *prompt)
            )
    try:
        contact_sheet.draw_contact_sheet(
            tiles[:count], dataset.classes, _heading(config, dataset, samples), path
        )
    except OSError as error:
        raise DataError(f"{path}: the sheet cannot be written: {error.strerror}") from error
    return [tile.name for tile in tiles[:count]]


def _counted(most: int, count: int) -> str:
    """Return in words how many of the objects of a slice train in one step."""
    return f"{min(most, count)} of {count} object{'s' if count > 1 else ''}"


def _heading(config: Config, dataset: Any, samples: TrainingSamples) -> list[str]:
    changes = ", ".join(samples.changes) or "none"
    versions = f", {samples.variants} versions" if samples.variants else ""
    return [
        f"{config.recipe}: training slices of {dataset.name}, seed {config.seed}",
        f"intensity: {describe_intensity(dataset.intensity.to_dict())}",
        f"augmentation: {changes}{versions}; prompt: {config.prompts.name}{_shares(samples)}",
    ]


def _shares(samples: TrainingSamples) -> str:
    """Return the shares of the kinds of prompts, if there are several."""
    listed = ", ".join(f"{kind} {share:.0%}" for kind, share in samples.policy.shares.items())
    return f" ({listed})" if listed else ""
