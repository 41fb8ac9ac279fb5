"""From a recipe and a command line to a configuration, and to YAML and back.

``compose("medical", ["peft.rank=16"])``: the command line wins over the recipe, and the recipe wins
over the defaults of the schema. One ``ConfigError`` lists everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from samadapt import console
from samadapt.adapters.combining import find_method
from samadapt.config.keys import Key, flatten, groups_of, keys_of, method_key
from samadapt.config.overrides import find_key, read_value, split_arguments
from samadapt.config.schema import Config, Head
from samadapt.config.train import DECODER_LR, STEPS
from samadapt.errors import ConfigError, nearest
from samadapt.methods import METHODS
from samadapt.methods.base import UNFIT, Method
from samadapt.sam.watershed import INSTANCE_HEAD
from samadapt.system.plain_yaml import read_plain_yaml
from samadapt.system.settings import (
    Settings,
    SettingsError,
    check_value,
    list_problems,
    settings_fields,
)

SettingsT = TypeVar("SettingsT", bound=Settings)

COMMAND_LINE = "command line"

TIMED_STEPS = 1000
"""Steps whose share warms a baseline up where the time is limited and not the steps; the loop ends
a warm-up at a share of the time too."""
OTHER_NAMES = {"data.labels": "data.classes"}
"""Keys that people know by another name. The name on the right is the one that is stored."""
TIME_LIMITS = ("train.max_seconds", "train.max_cpu_seconds")
SHARED_OPTIONS = {"peft.name", "peft.decoder", "peft.decoder_rank", "peft.memory"}
"""Options of the method that a recipe sets for every method. The others, ``peft.blocks`` included,
were chosen for the recipe's method and are dropped when the command line names another method."""


def compose(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a recipe with ``key=value`` overrides.

    Args:
        recipe: name of a file in ``recipes/`` without its suffix, or path of a YAML file.
        overrides: ``group=option`` or ``group.key=value``, in Hydra's grammar.

    Raises:
        ConfigError: for unknown keys, wrong types and values out of range. It names all of them.
    """
    path = recipe_path(recipe)
    base = {"recipe": recipe, **read_yaml(path)}
    return resolved(parse_settings(Config, overrides, base, origin=str(path)))


def from_arguments(arguments: Sequence[str]) -> Config:
    """Return the configuration of a command line that names ``recipe=`` or ``resume=``.

    ``resume=RUN_DIR`` starts from the configuration that is stored in the run directory.

    Raises:
        ConfigError: as ``compose``, and when neither is given.
    """
    path, base, others = stored_values(arguments)
    return resolved(parse_settings(Config, others, base, origin=str(path)))


def stored_values(arguments: Sequence[str]) -> tuple[Path, dict[str, Any], list[str]]:
    """Return what the recipe or the resumed run of a command line holds.

    Returns:
        The file, its values, and the arguments that override them.

    Raises:
        ConfigError: neither ``recipe=`` nor ``resume=`` is given, or the file cannot be read.
    """
    named = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if named.get("resume", "null") != "null":
        path = Path(named["resume"]) / "config.yaml"
        return path, read_yaml(path), list(arguments)
    if "recipe" not in named:
        raise ConfigError(f"name a recipe, recipe=NAME ({', '.join(recipes())}), or resume=RUN_DIR")
    path = recipe_path(named["recipe"])
    others = [argument for argument in arguments if not argument.startswith("recipe=")]
    return path, {"recipe": named["recipe"], **read_yaml(path)}, others


def from_yaml(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that a run directory holds in ``config.yaml``.

    Raises:
        ConfigError: the file is missing or broken, and as ``compose``.
    """
    return resolved(parse_settings(Config, overrides, read_yaml(path), origin=str(path)))


def resolved(config: Config) -> Config:
    """Return the configuration with the values that follow from others; a second call changes none.

    These are the number of steps, the learning rates, and all that a baseline decides. The steps
    stay open where the time is limited, because the run then ends by its time.

    Raises:
        ConfigError: when the keys of the baseline do not fit together or the data,
            ``init_sha256`` is given alone, or a memory shall train that nothing runs through.
    """
    if config.init is None and config.init_sha256 is not None:
        raise ConfigError(
            "init_sha256 is the sha256 of the adapter that init=DIR names; give both, or leave it "
            "out"
        )
    train = config.train
    limited = train.max_seconds is not None or train.max_cpu_seconds is not None
    steps = STEPS if train.steps is None and not limited else train.steps
    lr = config.peft.lr if train.lr is None else train.lr
    decoder_lr = train.decoder_lr
    if decoder_lr is None:
        decoder_lr = DECODER_LR if train.lr is None else train.lr
    config = replace(config, train=replace(train, steps=steps, lr=lr, decoder_lr=decoder_lr))
    if config.baseline.name is not None:
        return _with_baseline(config)
    if config.peft.memory != "frozen" and config.prompts.name != "propagate":
        raise ConfigError(
            f"peft.memory={config.peft.memory} has no effect with prompts={config.prompts.name}: "
            "only prompts=propagate trains through the memory of SAM 2; leave it out, or use "
            "prompts=propagate"
        )
    return config


def _baseline_head(head: Head) -> Head:
    """Return the keys of the head that a U-Net has: how it separates objects, if it does."""
    if head.name != INSTANCE_HEAD:
        return Head()
    return Head(name=INSTANCE_HEAD, seed_height=head.seed_height, smoothing=head.smoothing)


def _with_baseline(config: Config) -> Config:
    """Return the configuration with the keys of the baseline in the place of those for SAM.

    What was chosen for SAM (its method, its learning rates, its batch, its prompts) would cripple a
    network that trains from scratch. The data, the augmentation, the steps, the validation and the
    scores stay.

    Raises:
        ConfigError: for pretrained weights without an encoder, or too many channels.
    """
    chosen = config.baseline
    # Imported here, because help texts and listings need none of the data layer.
    from samadapt.data.channels import MANY, MOST, listed_channels, parse_channel

    if config.init is not None:
        raise ConfigError(
            f"init={config.init} starts from an adapter of SAM, and baseline={chosen.name} trains "
            "from scratch; leave one of the two out"
        )
    if chosen.pretrained and chosen.encoder is None:
        raise ConfigError(
            "baseline.pretrained=true needs an encoder with ImageNet weights; name one, such as "
            "baseline.encoder=resnet34"
        )
    encoder_lr = chosen.encoder_lr
    if encoder_lr is None:
        encoder_lr = chosen.lr / 10 if chosen.pretrained else chosen.lr
    channels = len(listed_channels(parse_channel(config.data.channel, MANY)))
    return replace(
        config,
        peft=METHODS["none"](),
        # The U-Net takes all channels directly; readers keep them apart above three.
        model=replace(config.model, input_channels=channels if channels > MOST else None),
        prompts=replace(config.prompts, name="semantic", shares=None),
        head=_baseline_head(config.head),
        train=replace(
            config.train,
            batch_size=chosen.batch_size,
            accumulate=1,
            lr=encoder_lr,
            decoder_lr=chosen.lr,
            weight_decay=chosen.weight_decay,
            warmup_steps=round(chosen.warmup * (config.train.steps or TIMED_STEPS)),
            schedule=chosen.schedule,
            clip=chosen.clip,
            recompute=False,
        ),
        # There are no frozen features to keep, so every step augments its slices anew.
        cache=replace(config.cache, enabled="off", variants=0),
    )


def to_yaml(config: Settings) -> str:
    """Return a configuration as YAML text that ``from_yaml`` reads back."""
    import yaml

    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return text


def to_dict(config: Settings) -> dict[str, Any]:
    """Return a configuration as nested plain values; ``peft`` has its ``name`` first."""
    nested: dict[str, Any] = {"name": config.name} if isinstance(config, Method) else {}
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Settings):
            value = to_dict(value)
        nested[item.name] = list(value) if isinstance(value, tuple) else value
    return nested


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: as ``read_plain_yaml``, and for a file that holds no mapping.
    """
    content = read_plain_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys; got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def recipes() -> dict[str, Path]:
    """Return the recipes that come with samadapt by name."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_recipes"  # in a wheel; a checkout has them in its root folder
    folder = installed if installed.is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: there is no such recipe. The message names the nearest one.
    """
    known = recipes()
    if recipe in known:
        return known[recipe]
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return path
    raise ConfigError(
        f"recipe: expected {', '.join(known)} or a path to a .yaml file; "
        f"got {recipe!r}{nearest(recipe, known)}"
    )


def parse_settings(
    schema: type[SettingsT],
    arguments: Sequence[str],
    base: Mapping[str, Any] | None = None,
    *,
    origin: str = "",
) -> SettingsT:
    """Build a class of settings from ``key=value`` arguments over a nested mapping.

    Args:
        schema: the class; each command declares its own.
        arguments: ``group=option`` or ``group.key=value``, in Hydra's grammar.
        base: values below the arguments, nested as in a recipe.
        origin: file that ``base`` came from, for the messages.

    Raises:
        ConfigError: something is wrong. The message lists every problem.
    """
    problems: list[str] = []
    typed = split_arguments(arguments, groups_of(schema), problems)
    stored = flatten(base or {}, schema)
    for given in (typed, stored):
        _use_first_names(given, problems)
    name = str(typed.get("peft.name", stored.get("peft.name", "lora")))
    method = _find_method(name, problems)
    keys = keys_of(schema, method)
    if Method in groups_of(schema).values():
        # A combined name such as lora+bias is not registered, so the key accepts the given one.
        keys["peft.name"] = method_key((name,) if "+" in name or name in UNFIT else ())
    dropped = _drop_described(stored, typed, keys)
    _drop_steps(stored, typed)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    # The command line comes second, so that its values replace those of the recipe.
    for source, given in ((origin, stored), (COMMAND_LINE, typed)):
        for key, value in given.items():
            if method is None and key.startswith("peft.") and key != "peft.name":
                continue  # the name is wrong, so nobody knows which options are right
            sources[key] = f" ({source})" if source else ""
            try:
                found = find_key(key, keys)
                # YAML values have a type already; the command line gives text.
                values[key] = read_value(found, value) if given is typed else value
                if key == "peft.name":
                    check_value(values[key], found.annotation)
            except ValueError as error:
                values.pop(key, None)
                problems.append(f"{key}: {error}{sources[key]}")
    result = _build(schema, method, values, sources, problems)
    if result is None or problems:
        raise ConfigError(list_problems(problems))
    if "peft.blocks" in dropped and "peft.blocks" not in typed:
        _tell_of_blocks(dropped["peft.blocks"], str(stored.get("peft.name", "lora")), name, result)
    return result


def _find_method(name: str, problems: list[str]) -> type[Method] | None:
    """Return the method that ``peft`` names, or None if there is none of that name."""
    if "+" not in name and name not in UNFIT:
        return METHODS.get(name)  # an unknown name is found when the key is checked
    try:
        return find_method(name)
    except ConfigError as error:
        problems.append(str(error))
        return None


def _use_first_names(given: dict[str, Any], problems: list[str]) -> None:
    """Replace the other name of a key by its first name; both at once are a problem."""
    for other, first in OTHER_NAMES.items():
        if other not in given:
            continue
        if first in given:
            problems.append(f"{other}: is another name of {first}; give one of the two")
        given[first] = given.pop(other)


def _drop_described(
    stored: dict[str, Any], typed: Mapping[str, str], keys: Mapping[str, Key]
) -> dict[str, Any]:
    """Drop a recipe's values that describe an option where the command line chooses another.

    Returns:
        What was dropped, by key.
    """
    dropped: dict[str, Any] = {}
    for key, text in typed.items():
        group, _, last = key.partition(".")
        default = keys[key].default if key in keys else None
        if last != "name" or text == stored.get(key, default):
            continue
        for other in list(stored):
            of_method = (
                group == "peft" and other.startswith("peft.") and other not in SHARED_OPTIONS
            )
            if of_method or (other in keys and keys[other].group == group):
                dropped[other] = stored.pop(other)
    return dropped


def _drop_steps(stored: dict[str, Any], typed: Mapping[str, str]) -> None:
    """Drop a recipe's number of steps where the command line limits the time instead, and say so.

    A recipe that limits the time itself keeps its steps: it means both.
    """
    limit = next((key for key in TIME_LIMITS if typed.get(key, "null") != "null"), None)
    limited = any(stored.get(key) is not None for key in TIME_LIMITS)
    if limit is None or limited or "train.steps" in typed:
        return
    if (steps := stored.pop("train.steps", None)) is not None:
        console.log(
            f"samadapt: note: train.steps={steps} is dropped, because {limit}={typed[limit]} "
            "limits the time; give train.steps as well to limit both"
        )


def _tell_of_blocks(blocks: Any, recipe_method: str, method: str, result: Settings) -> None:
    """Say that the recipe's blocks are dropped with its method: depth decides cost and score."""
    now = result.peft.blocks if isinstance(result, Config) else blocks
    if now == blocks or method in ("none", "decoder"):  # these leave every block as it is
        return
    shown = [list(value) if isinstance(value, tuple) else value for value in (blocks, now)]
    console.log(
        f"samadapt: note: the recipe's peft.blocks={shown[0]} was chosen for peft={recipe_method} "
        f"and is dropped; peft.blocks={shown[1]}, the default of peft={method}, applies"
    )


def _build(
    schema: type[SettingsT],
    method: type[Method] | None,
    values: Mapping[str, Any],
    sources: Mapping[str, str],
    problems: list[str],
    prefix: str = "",
) -> SettingsT | None:
    """Build a class of settings and its groups from values by dotted key.

    Returns:
        The settings, or None if something is wrong; what it is is added to ``problems``.
    """
    groups = groups_of(schema)
    given: dict[str, Any] = {}
    for name in settings_fields(schema):
        if name in groups:
            group = method if groups[name] is Method else groups[name]
            built = group and _build(group, None, values, sources, problems, f"{name}.")
            if built is not None:  # or the default stands in, so that the rest is checked as well
                given[name] = built
        elif f"{prefix}{name}" in values:
            given[name] = values[f"{prefix}{name}"]
    try:
        return schema(**given)
    except SettingsError as error:
        # A key whose value could not even be read has its problem already.
        known = [problem.partition(":")[0] for problem in problems]
        problems += [
            f"{key}: {text}{sources.get(key, '')}"
            for key, text in error.problems.items()
            if key not in known
        ]
    except ConfigError as error:  # a rule of a method, which names its keys
        problems.append(str(error))
    return None
