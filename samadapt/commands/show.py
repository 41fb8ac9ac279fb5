"""``samadapt show``: the composed configuration, or what it trains on as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.config.compose import from_arguments, to_dict
from samadapt.config.schema import Config
from samadapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Prints the configuration that `samadapt finetune` would use with the same arguments, as YAML, and
runs nothing. The output is itself a recipe: save it and name the file, recipe=FILE.yaml.

With images=N it writes instead one PNG, output=FILE (contact_sheet.png), with the first N slices
that training would see: after intensity rule and augmentation, with outlines of the classes, one
draw of the prompts, and how many objects of the slice train in one step (prompts.max_objects). No
model is loaded.

`samadapt show schema` prints the JSON schema of recipes. Editors complete and check the keys of a
recipe that names it in its first lines:

  samadapt show schema > recipe.schema.json
  # yaml-language-server: $schema=recipe.schema.json
"""
SCHEMA = Config
MOST_IMAGES = 400


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the composed configuration as nested plain values, or what a sheet shows.

    Raises:
        ConfigError: naming everything wrong with the arguments.
        DataError: for the errors of the data set's files.
    """
    if list(arguments) == ["schema"]:
        from samadapt.config.json_schema import recipe_schema

        return recipe_schema()
    own = dict(a.split("=", 1) for a in arguments if a.startswith(("images=", "output=")))
    config = from_arguments([a for a in arguments if not a.startswith(("images=", "output="))])
    if not own:
        return to_dict(config)
    if "images" not in own:
        raise ConfigError("output=FILE is where images=N are drawn; add images=16")
    count = own["images"]
    if not count.isascii() or not count.isdecimal() or not 1 <= int(count) <= MOST_IMAGES:
        raise ConfigError(f"images: expected an integer of 1..{MOST_IMAGES}; got {count!r}")
    path = Path(own.get("output", "contact_sheet.png")).expanduser()
    return {"output": str(path), "images": contact_sheet(config, int(count), path)}


def render(result: dict[str, Any]) -> str:
    """Return the configuration as YAML text, or where the sheet is."""
    if isinstance(shown := result.get("images"), list):
        return f"{result['output']}: {len(shown)} slices, the first that training would see"
    if "$schema" in result:
        import json

        return json.dumps(result, indent=2)
    import yaml

    text: str = yaml.safe_dump(result, sort_keys=False, allow_unicode=True)
    return text


def contact_sheet(config: Config, count: int, path: Path) -> list[str]:
    """Draw the slices of a run's first steps: as one process would train on them.

    Args:
        config: of the run.
        count: how many slices.
        path: PNG to write; replaced if it exists.

    Returns:
        Their names, in order.

    Raises:
        ConfigError: for a file that is no PNG, or no slice to train on.
        DataError: for the errors of the data set's files.
    """
    import numpy as np

    from samadapt.data.intensity import visible
    from samadapt.data.pseudonyms import Pseudonyms, hide_names
    from samadapt.data.stacks import stacks_in_batch
    from samadapt.reports.contact_sheet import Tile, draw_contact_sheet
    from samadapt.runs.context import open_data, prompt_policy, training_samples
    from samadapt.training.batches import Sampler, choose_objects
    from samadapt.training.selection import selection_split

    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(f"output: expected a file name ending in .png; got {str(path)!r}")
    policy = prompt_policy(config)
    stack = config.peft.stack
    dataset = open_data(
        config.data,
        config.seed,
        semantic=policy.is_semantic,
        stack=stack,
        input_channels=config.model.input_channels,
    )
    if config.privacy:
        dataset = hide_names(dataset, Pseudonyms())
    samples = training_samples(config, dataset, policy)
    usable = samples.usable(dataset.slices("train"))
    refs, _ = selection_split(usable, config.train.validate_cases, tile=dataset.tile, gap=stack - 1)
    if not refs:
        raise ConfigError("data: there is no slice to train on; use more cases (data.max_cases)")
    items = samples.items(refs)
    sampler = Sampler(len(items), stacks_in_batch(config.train.batch_size, stack), config.seed)
    rng = np.random.default_rng([config.seed, 0])  # as the first process of a run
    tiles: list[Tile] = []
    while len(tiles) < count:
        seen, trained, _ = samples.take([items[i] for i in sampler.next()], rng)
        batch = [seen[place] for place in trained]
        chosen: Sequence[Any] = (
            [None] * len(batch) if policy.is_semantic else choose_objects(batch, policy, rng)
        )
        for sample, objects in zip(batch, chosen, strict=True):
            prompt: tuple[Any, ...] = ()
            if objects:
                note = _counted(policy.max_objects, samples.count_objects(sample))
                prompt = (objects.boxes, objects.points, objects.point_labels, note)
            name = f"{sample.case} · {sample.part} {sample.index}"
            tiles.append(Tile(name, visible(sample.image), sample.shown, *prompt))
    try:
        draw_contact_sheet(tiles[:count], dataset.classes, _heading(config, dataset), path)
    except OSError as error:
        raise DataError(f"{path}: the sheet cannot be written: {error.strerror}") from error
    return [tile.name for tile in tiles[:count]]


def _counted(most: int, count: int) -> str:
    """Return how many of the objects of a slice train in one step, in words."""
    return f"{min(most, count)} of {count} object{'s' if count > 1 else ''}"


def _heading(config: Config, dataset: Any) -> list[str]:
    changes = ", ".join(config.train.augment) or "none"
    versions = f", {config.cache.variants} versions" if config.cache.variants else ""
    return [
        f"{config.recipe}: training slices of {dataset.name}, seed {config.seed}",
        f"intensity: {describe(dataset.intensity.to_dict())}",
        f"augmentation: {changes}{versions}; prompt: {config.prompts.name}",
    ]


def describe(rule: dict[str, Any]) -> str:
    """Return the record of an intensity rule in words."""
    if "channels" in rule:
        return " | ".join(
            f"{colour}: {describe(part)}"
            for colour, part in zip(("red", "green", "blue"), rule["channels"], strict=True)
        )
    if "inputs" in rule:
        return " | ".join(
            f"channel {number}: {describe(part)}" for number, part in enumerate(rule["inputs"])
        )
    if rule["kind"] == "rgb":
        return "rgb"
    bounds = f"{rule['low']:g} to {rule['high']:g}"
    text = {
        "window": f"window {bounds}",
        "percentile": f"percentiles {bounds} of the non-zero voxels",
        "all_percentile": f"percentiles {bounds} of all pixels",
    }[rule["kind"]]
    near = rule.get("neighbours", 0)
    return text + (f"; slices i - {near}, i, i + {near} as red, green, blue" if near else "")
