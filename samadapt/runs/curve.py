"""A learning curve, ``samadapt curve``: how scores rise with the number of labelled cases.

Each training is a run like any other, in a directory of its own below that of the curve. Of one
draw, the cases of a smaller number are a part of those of a larger one, and every run scores the
same held-out cases. A stopped curve goes on with the runs that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.compose import parse_settings, read_yaml, resolved, to_dict, to_yaml
from samadapt.config.curve_arguments import CurveArguments
from samadapt.config.schema import Config
from samadapt.data.checks.resumed_run import check_unchanged
from samadapt.data.dataset import Dataset
from samadapt.data.pseudonyms import hide_names, open_key, write_key
from samadapt.errors import ConfigError, DataError
from samadapt.evaluation.learning_curve import CurvePoint, answer, summarise_curve
from samadapt.reports.curve import CSV_NAME, PLOT_NAME, curve_tables, plot_curve, write_curve_csv
from samadapt.reports.html import HTML_NAME, Page, write_html
from samadapt.reports.tables import read_per_case, write_summary
from samadapt.runs.batch_size import with_batch_size
from samadapt.runs.context import open_data, read_splits
from samadapt.runs.finetune import train_and_score
from samadapt.runs.part_runs import is_finished, part_of, prepare_part, read_summary
from samadapt.runs.run_description import configuration_text, trained_name
from samadapt.runs.run_directory import MAY_MOVE, locked, make_run_dir
from samadapt.system import atomic
from samadapt.system.launchers import refuse_several_processes

SUMMARY_NAME = "curve.json"

MAY_CHANGE = {"cases", "seeds", "resume", "device", "output", "cache"}
"""Keys that a curve may be resumed with: which runs there are, and where they work."""


@dataclass(frozen=True)
class CurveResult:
    """What ``curve`` returns.

    Attributes:
        run_dir: the directory of the curve.
        summary: the content of ``curve.json``.
    """

    run_dir: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class CurveRun:
    """One training of a curve.

    Attributes:
        arm: name of the way to train.
        cases: number of labelled cases.
        draw: which cases and which seed, from 0.
        config: its configuration.
    """

    arm: str
    cases: int
    draw: int
    config: Config

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"{self.arm}_{self.cases}_cases_draw_{self.draw}"


def curve(arguments: CurveArguments) -> CurveResult:
    """Train with rising numbers of labelled cases, and score the same held-out cases each time.

    Raises:
        UserError: for a mistake in configuration, data or weights, and for more cases than there
            are; nothing was trained.
        RunLockedError: when another process uses the directory.
        InterruptedRunError: as ``finetune``, naming the directory of the curve.
    """
    refuse_several_processes()
    refuse_other_divisions(arguments)
    started = time.perf_counter()
    resumed = None if arguments.resume is None else resumed_directory(arguments)
    sizes = survey(arguments, resumed)
    words = ["curve", arguments.peft.name, arguments.model.name]
    parent = resumed or make_run_dir(
        arguments.output.dir, arguments.recipe, words, to_yaml(arguments)
    )
    with locked(parent):
        if resumed:  # with other numbers than before, perhaps
            atomic.write_text(parent / "config.yaml", to_yaml(replace(arguments, resume=None)))
        if arguments.privacy:
            write_key(parent, open_key(parent), ())  # one key for all runs
        runs = list(planned_runs(arguments, sizes))
        folders = [parent / run.name for run in runs]
        for number, (run, folder) in enumerate(zip(runs, folders, strict=True), 1):
            where = f"run {number} of {len(runs)}: {run.arm}, {run.cases} cases, draw {run.draw}"
            if is_finished(folder):
                console.log(f"samadapt: {where}: finished before")
                continue
            console.log(f"samadapt: {where}")
            with part_of(parent, folders, "curve"):
                train_and_score(prepare_part(with_batch_size(run.config), folder), folder)
        summary = write_results(parent, arguments, runs)
        summary["seconds"] = time.perf_counter() - started
        write_summary(parent, summary, SUMMARY_NAME)
    return CurveResult(parent, summary)


def refuse_other_divisions(arguments: CurveArguments) -> None:
    """Refuse keys that the curve sets itself.

    Raises:
        ConfigError: naming the key.
    """
    if arguments.folds is not None:
        raise ConfigError(
            f"folds={arguments.folds} scores every case, but a curve scores the same held-out "
            "cases with every number of labelled ones. Leave folds out"
        )
    if arguments.data.train_cases is not None:
        raise ConfigError(
            f"data.train_cases={arguments.data.train_cases} is one number of labelled cases; a "
            f"curve takes several: cases={arguments.data.train_cases},..."
        )
    if arguments.eval.max_cases == 0:
        raise ConfigError("eval.max_cases=0 scores nothing, but a curve compares scores")
    if arguments.data.val_every == 0:
        raise ConfigError(
            "data.val_every=0 holds out nothing, but a curve scores held-out cases: give at least 2"
        )


def resumed_directory(arguments: CurveArguments) -> Path:
    """Return the directory of the curve that is resumed.

    Raises:
        ConfigError: it is no curve, or one of another configuration; naming the keys that differ.
    """
    run_dir = Path(str(arguments.resume))
    stored = parse_settings(CurveArguments, (), read_yaml(run_dir / "config.yaml"))
    asked, was = to_dict(arguments), to_dict(stored)
    changed = []
    for key in sorted(set(asked) - MAY_CHANGE):
        new, old = asked[key], was[key]
        if not isinstance(new, Mapping):
            changed += [f"{key}={new} (was {old})"] if new != old else []
            continue
        for inner in sorted({*new, *old} - (MAY_MOVE if key == "data" else set())):
            if new.get(inner) != old.get(inner):
                changed.append(f"{key}.{inner}={new.get(inner)} (was {old.get(inner)})")
    if changed:
        raise ConfigError(
            f"resume={run_dir}: its finished runs do not fit {', '.join(changed)}; leave these "
            "out, or start a new curve. cases and seeds may change"
        )
    return run_dir


def survey(arguments: CurveArguments, resumed: Path | None) -> list[int]:
    """Read the data set once, and return the numbers of labelled cases in rising order.

    Args:
        arguments: the keys of the curve.
        resumed: the directory of the curve that is resumed, with whose runs the data must agree.

    Raises:
        ConfigError: for more cases than there are.
        DataError: for errors of the files, and for other data than those of finished runs.
    """
    dataset = open_data(arguments, scratch=arguments.output.dir)
    if resumed is not None:
        if arguments.privacy:
            dataset = hide_names(dataset, open_key(resumed))
        check_same_cases(dataset, resumed)
    available = len(dataset.train)
    sizes = arguments.sizes(available)
    if dataset.case_splits.slab is not None:
        raise ConfigError(
            f"data: there is one volume, {dataset.train[0]}, of which a part is held out; a curve "
            "needs several cases"
        )
    if not dataset.val:
        raise ConfigError(
            f"data.val_every={arguments.data.val_every} holds out nothing; a curve scores held-out "
            "cases. Use data.val_every=5, or name them with data.held_out"
        )
    if too_many := [size for size in sizes if size > available]:
        raise ConfigError(
            f"cases={arguments.cases}: there are {available} training cases beside "
            f"{len(dataset.val)} held-out ones; {too_many[0]} are too many. Use at most "
            f"{available}, or all"
        )
    return sizes


def check_same_cases(dataset: Dataset, parent: Path) -> None:
    """Check that the data are those of the runs of a stopped curve.

    Raises:
        DataError: naming what changed.
    """
    for path in sorted(parent.glob("*/splits.json")):
        recorded = read_splits(path)
        for warning in check_unchanged(recorded, dataset, str(path), same_sides=False):
            console.log(f"samadapt: warning: {warning}")
        if recorded["val"] != dataset.val:
            raise DataError(
                f"{path}: other cases are held out now than when the curve was started. Restore "
                "the files, or start a new curve"
            )


def planned_runs(arguments: CurveArguments, sizes: Sequence[int]) -> Iterator[CurveRun]:
    """Yield the runs of a curve; the first draw comes first, so that it is complete early."""
    shared = Config(**{item.name: getattr(arguments, item.name) for item in fields(Config)})
    for draw in range(arguments.seeds):
        for cases in sizes:
            for arm, config in arms_of(shared).items():
                data = replace(config.data, train_cases=cases, draw=config.data.draw + draw)
                seed = config.seed + draw
                yield CurveRun(arm, cases, draw, replace(config, data=data, seed=seed, resume=None))


def arms_of(config: Config) -> dict[str, Config]:
    """Return the ways to train that are compared, by name; with ``baseline=unet`` there are two."""
    adapter = replace(config, baseline=replace(config.baseline, name=None))
    arms = {config.peft.name: resolved(adapter)}
    if config.baseline.name is not None:
        arms[trained_name(config)] = resolved(config)
    return arms


def write_results(
    parent: Path, arguments: CurveArguments, runs: Sequence[CurveRun]
) -> dict[str, Any]:
    """Write ``curve.csv``, ``curve.png`` and ``report.html``, and return the summary.

    Raises:
        ConfigError: nothing was trained, so there is no curve.
        RunError: for a run whose scores cannot be read.
    """
    summaries = {run.name: read_summary(parent / run.name) for run in runs}
    first = summaries[runs[0].name]
    if first["adapted"] is None:
        raise ConfigError("nothing is trained with this configuration, so there is no curve")
    places = dict.fromkeys((run.arm, run.cases) for run in runs)
    points = [
        CurvePoint(
            arm,
            cases,
            [
                read_per_case(parent / run.name / "eval")["adapted"]
                for run in runs
                if (run.arm, run.cases) == (arm, cases)
            ],
        )
        for arm, cases in sorted(places, key=lambda place: place[1])
    ]
    scores = summarise_curve(points, list(first["adapted"]["per_class"]))
    shared = ("data", "case_is", "prompt", "oracle_prompt", "nsd_tolerance")
    summary = {
        "answer": answer(scores),
        **{key: first[key] for key in shared},
        "held_out": first["cases"],
        "arms": list(dict.fromkeys(run.arm for run in runs)),
        "sizes": sorted({run.cases for run in runs}),
        "draws": arguments.seeds,
        "zero_shot": {key: first["zero_shot"][key] for key in ("dice", "oracle_prompt")},
        **scores,
        "runs": [_run_entry(run, summaries[run.name]) for run in runs],
        "notes": list(dict.fromkeys(note for one in summaries.values() for note in one["notes"])),
    }
    write_curve_csv(parent / CSV_NAME, points)
    plot_curve(summary, parent / PLOT_NAME)
    write_curve_page(parent, arguments, summary)
    return summary


def _run_entry(run: CurveRun, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``curve.json`` holds about one run."""
    counts = ("split", "training_slices", "validation_slices", "best_step", "seconds")
    return {
        "run_dir": run.name,
        "arm": run.arm,
        "cases": run.cases,
        "draw": run.draw,
        "dice": summary["adapted"]["dice"],
        **{key: summary[key] for key in counts},
    }


def write_curve_page(parent: Path, arguments: CurveArguments, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html`` of a curve."""
    page = Page(
        title=f"{arguments.recipe or 'run'}: how many labelled cases? ({summary['data']})",
        subtitle=f"{summary['held_out']} held-out cases, the same for every number; a case is a "
        f"{summary['case_is']}; {summary['draws']} draws of labelled cases; {parent.name}",
        notes=[*summary["answer"], *summary["notes"], "each run below has a page of its own"],
        tables=curve_tables(summary),
        figures={"Dice by number of labelled cases": parent / PLOT_NAME},
        classes=(),
        cases=(),
        details=(),
        texts={
            "Configuration": configuration_text(arguments),
            "Runs": "\n".join(
                f"{run['run_dir']}: Dice {run['dice']:.3f}, {run['seconds']:.0f} s; {run['split']}"
                for run in summary["runs"]
                if run["dice"] is not None
            ),
        },
    )
    return write_html(parent / HTML_NAME, page)
