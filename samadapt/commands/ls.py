"""``samadapt ls``: what can be named on the command line, and past runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.baseline import BASELINES
from samadapt.config.compose import recipes
from samadapt.config.help import key_rows, keys_text
from samadapt.config.prompt_settings import PROMPTS
from samadapt.config.schema import Config, Output
from samadapt.errors import ConfigError, nearest
from samadapt.methods import METHODS
from samadapt.sam.weights.builds import BUILDS, TEST_BUILDS
from samadapt.training.losses import LOSSES
from samadapt.training.losses.base import targets_text

HELP = """
Lists what can be named: recipes, models, methods (peft), data sets, prompts, losses, baselines,
scores and export targets. Without an argument it lists all of these; `samadapt ls recipes models`
lists two.

  samadapt ls keys             every key of a run with its default, type and meaning
  samadapt ls keys train       the keys of one group
  samadapt ls keys peft=fact   the keys of one method; `ls keys peft` lists those of all methods
  samadapt ls runs [DIR]       the runs below a folder, runs/ by default: recipe, method, date, Dice
                               on the validation cases and on the held-out ones before and after,
                               seconds, the keys in which runs of a recipe differ, and whether a run
                               is finished, running, stopped or broken; folders that are no runs

It trains nothing and reads no images.
"""
SCHEMA = None
MAX_KEYS = 4
"""Differing keys of a run that the table shows."""
Rows = list[dict[str, Any]]


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the rows of each kind that was asked for.

    Raises:
        ConfigError: an argument names no kind, or a group or method that does not exist.
    """
    result: dict[str, Any] = {}
    rest = list(arguments or KINDS)
    while rest:
        kind = rest.pop(0)
        if kind in KINDS:
            result[kind] = KINDS[kind]()
        elif kind in WITH_PLACE:
            # `prompts` is a kind and a group of keys; after `keys` it is the group.
            is_place = bool(rest) and (kind == "keys" or rest[0] not in KINDS)
            result[kind] = WITH_PLACE[kind](rest.pop(0) if is_place else "")
        else:
            known = [*KINDS, *WITH_PLACE]
            raise ConfigError(
                f"ls: expected {', '.join(known)}; got {kind!r}{nearest(kind, known)}"
            )
    return result


def render(result: dict[str, Any]) -> str:
    """Return one table for each kind; keys have too long a meaning for a table."""
    tables = []
    for kind, rows in result.items():
        if kind == "keys":
            tables.append(keys_text(rows))
            continue
        # The first column holds the names, and its heading is the kind.
        header = [kind, *list(rows[0])[1:]] if rows else [kind]
        cells = [[_cell(name, value) for name, value in row.items()] for row in rows]
        tables.append(console.table(header, cells))
    return "\n\n".join(tables)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):  # the keys in which a run differs; --json has all of them
        pairs = [f"{key}={shown}" for key, shown in value.items()]
        more = [f"and {len(pairs) - MAX_KEYS} more"] if len(pairs) > MAX_KEYS else []
        return "  ".join([*pairs[:MAX_KEYS], *more])
    digits = 0 if name == "seconds" else 3
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _recipes() -> Rows:
    rows = []
    for name, path in recipes().items():
        # A recipe says in a comment on its first line what it is for.
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append({"name": name, "about": first.lstrip("# ") if first.startswith("#") else ""})
    return rows


def _models() -> Rows:
    return [
        {
            "name": name,
            "encoder": build.encoder,
            "image size": build.image_size,
            "about": "tiny, without pretrained weights; for tests" if name in TEST_BUILDS else "",
        }
        for name, build in BUILDS.items()
    ]


def _methods() -> Rows:
    return [
        {"name": name, "lr": f"{method.lr:g}", "about": method.summary}
        for name, method in METHODS.items()
    ]


def _data() -> Rows:
    """Return the data set cards, then the formats that need ``data.root``."""
    from samadapt.data.cards import list_cards, load_card
    from samadapt.data.formats.base import readers

    cards = [load_card(name) for name in list_cards()]
    rows = [{"name": card.name, "about": card.title, "licence": card.licence} for card in cards]
    named = {card.name for card in cards}
    formats = {name: reader for name, reader in sorted(readers().items()) if name not in named}
    auto = "the format of the files that lie in data.root=PATH"
    rows.append({"name": "auto", "about": auto, "licence": ""})
    return rows + [
        {"name": name, "about": f"{reader.summary}; give data.root=PATH", "licence": ""}
        for name, reader in formats.items()
    ]


def _losses() -> Rows:
    auto = "dice_ce for prompts=semantic, sam for all other prompts"
    return [{"name": "auto", "fits": "all prompts", "about": auto}] + [
        {"name": name, "fits": targets_text(loss.fits), "about": loss.summary}
        for name, loss in LOSSES.items()
    ]


def _scores() -> Rows:
    from samadapt.evaluation.scores import SCORES

    best = {"high": "higher is better", "low": "lower is better", "zero": "0 is best"}
    return [
        {"name": name, "heading": score.heading, "unit": score.unit(True), "best": best[score.best]}
        for name, score in SCORES.items()
    ]


def _targets() -> Rows:
    from samadapt.export import TARGETS

    return [{"name": name, "about": target.summary} for name, target in TARGETS.items()]


def _runs(folder: str) -> Rows:
    from samadapt.runs.past_runs import list_runs

    place = Path(folder or Output().dir).expanduser()
    if folder and not place.is_dir():
        raise ConfigError(f"ls runs: expected a folder with run directories; {place} is none")
    return list_runs(place)


KINDS: dict[str, Callable[[], Rows]] = {
    "recipes": _recipes,
    "models": _models,
    "peft": _methods,
    "data": _data,
    "prompts": lambda: [{"name": name, "about": about} for name, about in PROMPTS.items()],
    "losses": _losses,
    "baselines": lambda: [{"name": name, "about": about} for name, about in BASELINES.items()],
    "scores": _scores,
    "targets": _targets,
}
WITH_PLACE: dict[str, Callable[[str], Rows]] = {
    "keys": lambda group: key_rows(Config, group),
    "runs": _runs,
}
"""Kinds that take one more argument: the name of a group, or a folder."""
