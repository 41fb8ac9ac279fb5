"""Several adapters on the same cases: ``samadapt evaluate adapter=[a,b]``.

Each adapter is an evaluation like any other, in a directory of its own within one run directory.
The data set is that of the first adapter; how images are seen and prompted is each adapter's own,
and so are the classes of an adapter without prompts. A case is scored only if no adapter was
trained on it. The scores lie side by side in ``eval/``, and each adapter is compared with the first
one case by case.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.hub import adapter_path
from samadapt.adapters.mask_tokens import TokenUse
from samadapt.config.compose import to_yaml
from samadapt.config.schema import Data
from samadapt.data.pseudonyms import open_key, write_key
from samadapt.errors import ConfigError, UserError
from samadapt.evaluation.comparison import compare_states
from samadapt.reports.tables import read_per_case, write_per_case, write_summary
from samadapt.runs.recorded_configuration import evaluation_config
from samadapt.runs.run_directory import locked, open_run_dir
from samadapt.runs.run_page import write_side_by_side_page
from samadapt.system import atomic

if TYPE_CHECKING:
    from samadapt.adapters.record import AdapterRecord
    from samadapt.config.evaluate_arguments import EvaluateArguments
    from samadapt.config.schema import Config
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.case_scores import CaseClassScore
    from samadapt.runs.context import RunContext

OWN_KEYS: tuple[str, ...] = (
    *("intensity", "neighbours", "axis", "channel", "tile", "tile_overlap"),
    *("empty_slices", "slice_step"),
)
"""Keys of ``data`` that say how an adapter sees the images. The others say which images there are,
and are those of the first adapter."""

SHARED = ("data", "scored", "split", "case_is", "nsd_tolerance", "cases", "slices", "parts")
"""Entries of the summary that all adapters have in common."""

OWN_CLASSES_NOTE = "the adapters have different classes: each mean is over the adapter's own"

Rows = dict[str, "list[CaseClassScore]"]


@dataclass(frozen=True)
class Scope:
    """What an adapter is scored on.

    Attributes:
        cases: names of the cases.
        axis: axis of the slices, where it decides which voxels are held out; else None.
        classes: the mask values of each class.
    """

    cases: list[str]
    axis: str | None
    classes: dict[str, tuple[int, ...]]


@dataclass
class ComparedAdapters:
    """The adapters of one evaluation, and what they are scored on.

    Attributes:
        records: each adapter's ``samadapt.json`` by its directory.
        trained_in: the run directory whose pseudonyms name the cases, with ``privacy``.
        scope: what the first adapter that was opened is scored on; None before that.
    """

    records: Mapping[Path, AdapterRecord]
    trained_in: Path
    scope: Scope | None = None

    def check_same_cases(self, context: RunContext, refs: Sequence[SliceRef]) -> None:
        """Refuse other cases than those of the first adapter, and classes of another meaning.

        Raises:
            ConfigError: naming what differs.
        """
        data = context.dataset
        now = Scope(
            sorted({ref.case for ref in refs}),
            # Of a volume that is split, the slab that is held out depends on the axis.
            data.axis if data.case_splits.slab else None,
            dict(zip(data.table.names, data.table.values, strict=True)),
        )
        before = self.scope = self.scope or now
        if (before.cases, before.axis) != (now.cases, now.axis):
            raise ConfigError(
                "adapter: the adapters would be scored on different data, cases "
                f"{_listed(before.cases)} along {before.axis} and {_listed(now.cases)} along "
                f"{now.axis}. Evaluate them one at a time"
            )
        shared = [name for name in before.classes if name in now.classes]
        if not shared:
            raise ConfigError(
                f"adapter: the adapters have no class in common: {_listed(list(before.classes))}; "
                f"{_listed(list(now.classes))}. Name the classes to score with "
                "data.classes={name: value}"
            )
        for name in shared:
            first, second = before.classes[name], now.classes[name]
            if set(first) != set(second):
                raise ConfigError(
                    f"adapter: class {name} stands for the mask values {first} for one adapter "
                    f"and {second} for another. Name the classes to score with "
                    "data.classes={name: value}"
                )


ScoreAdapter = Callable[["EvaluateArguments", "Config", Path, ComparedAdapters], Mapping[str, Any]]
"""Scores one adapter in its directory and returns its summary."""


def compare_adapters(
    asked: Sequence[EvaluateArguments], records: Sequence[AdapterRecord], score: ScoreAdapter
) -> tuple[Path, dict[str, Any]]:
    """Score adapters one after another on the same cases, and put their scores side by side.

    Args:
        asked: the keys of ``samadapt evaluate`` for each adapter.
        records: the adapters' ``samadapt.json``.
        score: scores one adapter.

    Returns:
        The run directory and the content of its ``eval/summary.json``.

    Raises:
        ConfigError: when an adapter is named twice, or the adapters cannot be compared.
    """
    started = time.perf_counter()
    first = asked[0]
    paths = [adapter_path(str(one.adapter)) for one in asked]
    names = names_of(paths)
    asked = [
        on_data_of(first, one, record, records[0].classes)
        for one, record in zip(asked, records, strict=True)
    ]
    configs = [evaluation_config(*pair) for pair in zip(asked, records, strict=True)]
    parent = open_run_dir(configs[0])
    compared = ComparedAdapters(dict(zip(paths, records, strict=True)), paths[0].parent)
    summaries: dict[str, Mapping[str, Any]] = {}
    scored: dict[str, Rows] = {}
    with locked(parent):
        if first.privacy:  # one key for all adapters
            write_key(parent, open_key(parent, paths[0].parent, paths[0].parent.parent), ())
        try:
            for name, one, config in zip(names, asked, configs, strict=True):
                run_dir = parent / name
                run_dir.mkdir()
                atomic.write_text(run_dir / "config.yaml", to_yaml(config))
                summaries[name] = score(one, config, run_dir, compared)
                scored[name] = read_per_case(run_dir / "eval")
        except UserError:
            # Windows cannot remove a held lock; ``locked`` removes what is left at its end.
            shutil.rmtree(parent, ignore_errors=os.name == "nt")
            raise
        summary, rows = _side_by_side(parent, names, summaries, scored)
        for path, entry in zip(paths, summary["adapters"].values(), strict=True):
            entry["adapter"] = path.name if first.privacy else str(path)
        summary["seconds"] = time.perf_counter() - started
        write_summary(parent / "eval", summary)
        write_per_case(parent / "eval", rows)
        write_side_by_side_page(parent, configs[0], rows, summary)
    return parent, summary


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each adapter: its directory's, or its run's if that is ``adapter``.

    Raises:
        ConfigError: when an adapter is named twice.
    """
    resolved = [path.resolve() for path in paths]
    for position, path in enumerate(resolved):
        if path in resolved[:position]:
            raise ConfigError(f"adapter: {paths[position]} is named twice; name each adapter once")
    names: list[str] = []
    for path in resolved:
        parts = [part for part in path.parts if part != "adapter"]
        # A fold is told apart by its cross-validation.
        name = "-".join(parts[-2:] if parts[-1].startswith("fold_") else parts[-1:])
        taken = [*names, "eval", "zero_shot", "adapted"]
        again = next(n for n in range(1, len(taken) + 2) if _numbered(name, n) not in taken)
        names.append(_numbered(name, again))
    return names


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{name}-{count}"


def _listed(values: Sequence[str]) -> str:
    """Return at most three values."""
    return ", ".join(values[:3]) + (" and more" if len(values) > 3 else "")


def on_data_of(
    first: EvaluateArguments,
    one: EvaluateArguments,
    record: AdapterRecord,
    classes: Sequence[str],
) -> EvaluateArguments:
    """Return the keys of an adapter, on the data set and in the output folder of the first one.

    Args:
        first: the keys of the first adapter.
        one: the keys of the adapter.
        record: its ``samadapt.json``.
        classes: the classes of the first adapter.
    """
    keys = OWN_KEYS
    if TokenUse.of_record(record).is_semantic:  # it predicts its own classes, in its own order
        keys += ("classes", "regions", "merge_classes")
    own = {key: getattr(one.data, key) for key in keys}
    unnamed = not any(own.get(key, True) for key in ("classes", "regions", "merge_classes"))
    if unnamed and list(record.classes) != list(classes):
        own["classes"] = list(record.classes)
    shared = {item.name: getattr(first.data, item.name) for item in fields(Data)}
    return replace(one, data=Data(**{**shared, **own}), output=first.output, privacy=first.privacy)


def _side_by_side(
    parent: Path,
    names: Sequence[str],
    summaries: Mapping[str, Mapping[str, Any]],
    scored: Mapping[str, Rows],
) -> tuple[dict[str, Any], Rows]:
    """Return the summary of all adapters and their rows of ``per_case.csv`` by state.

    The base model has one state, ``zero_shot``, where it was scored alike beside every adapter: the
    same prompts, base and intensity. Otherwise it has one for each adapter.
    """
    first = names[0]
    # As they are in the files, where NaN is null, so that equal scores are equal.
    files = [parent / name / "eval" / "summary.json" for name in names]
    found = [json.loads(file.read_text(encoding="utf-8"))["zero_shot"] for file in files]
    alike = all(scores == found[0] for scores in found)
    bases = {"zero_shot": first} if alike else {f"zero_shot {name}": name for name in names}
    rows = {state: scored[name]["zero_shot"] for state, name in bases.items()}
    rows |= {name: scored[name]["adapted"] for name in names}
    classes = {name: list(summaries[name]["adapted"]["per_class"]) for name in names}
    notes = [note for name in names for note in summaries[name]["notes"]]
    if any(set(own) != set(classes[first]) for own in classes.values()):
        notes.append(OWN_CLASSES_NOTE)
    own = ("prompt", "trained_parameters", "total_parameters", "precision", "seconds")
    return {
        "states": {
            **{state: summaries[name]["zero_shot"] for state, name in bases.items()},
            **{name: summaries[name]["adapted"] for name in names},
        },
        "paired": {name: _paired(rows[first], rows[name], classes[first]) for name in names[1:]},
        "compared_with": first,
        "adapters": {name: {key: summaries[name][key] for key in own} for name in names},
        **{key: summaries[first][key] for key in SHARED},
        "notes": list(dict.fromkeys(notes)),
    }, rows


def _paired(
    before: Sequence[CaseClassScore], now: Sequence[CaseClassScore], classes: Sequence[str]
) -> dict[str, Any]:
    """Compare two adapters case by case on the classes that both have."""
    theirs = {row.class_name for row in now}
    shared = [name for name in classes if name in theirs]
    return compare_states(
        [row for row in before if row.class_name in shared],
        [row for row in now if row.class_name in shared],
        shared,
    )
