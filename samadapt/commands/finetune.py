"""``samadapt finetune``: train an adapter and score it before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.config.finetune_arguments import FinetuneArguments, finetune_arguments
from samadapt.config.launcher import is_of_launcher
from samadapt.config.schema import Config
from samadapt.errors import ConfigError

HELP = """
Trains an adapter as the recipe says, with the backbone frozen, and writes a run directory: the
configuration, the environment, the splits, the progress, checkpoints, the adapter of the best step,
the scores before and after, and overlays. The best step is chosen on a part of the training cases.
The held-out cases are only scored. train.max_seconds=240 limits the time of the training.

baseline=unet trains a U-Net from scratch instead, on the same slices and with the same scores, to
compare the two.

Ctrl-C saves a checkpoint and stops; resume=RUN_DIR continues. folds=5 trains five adapters, each
scored on the cases that it did not see, so that every case is scored once.

launcher=submitit submits the run to SLURM, and the folds of folds=5 as a job each, and returns;
`samadapt finetune --help launcher` lists what a job can ask for.
"""
SCHEMA = FinetuneArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Train as the command line says and return plain values.

    Raises:
        SamadaptError: as ``finetune``.
    """
    asked = finetune_arguments(arguments)
    config = asked.configuration()
    if asked.launcher.name is not None:
        return _submit(asked, config, arguments)
    from samadapt.runs.finetune import finetune  # it imports torch, so mistakes are reported before

    result = finetune(config, asked.only_fold)
    return {
        "run_dir": str(result.run_dir),
        "adapter_dir": result.adapter_dir and str(result.adapter_dir),
        "summary": result.summary,
    }


def _submit(asked: FinetuneArguments, config: Config, arguments: Sequence[str]) -> dict[str, Any]:
    """Submit the run to a cluster and, if asked, wait for its results."""
    from samadapt.runs.part_runs import read_summary
    from samadapt.runs.run_directory import trained_folder
    from samadapt.runs.submission import follow, job_entries, submit_finetune

    if asked.only_fold is not None:
        raise ConfigError(
            "only_fold is what the jobs of a cross-validation get; leave it out with "
            f"launcher={asked.launcher.name}, which submits every fold that is missing"
        )
    own = ("resume=", "recipe=")
    others = [argument for argument in arguments if not is_of_launcher(argument)]
    overrides = [argument for argument in others if not argument.startswith(own)]
    run = submit_finetune(config, asked.launcher, overrides if config.resume else ())
    result: dict[str, Any] = {"run_dir": str(run.run_dir), "jobs": job_entries(run.jobs)}
    if not asked.launcher.wait:
        return result
    if result.setdefault("failed", follow(run.jobs)):
        return result | {"exit_code": 1}
    trained = trained_folder(run.run_dir)
    return result | {
        "adapter_dir": trained and str(trained),
        "summary": read_summary(run.run_dir),
    }


def render_jobs(result: Mapping[str, Any]) -> str:
    """Return where the jobs of a run write, which of them failed, and how to go on."""
    from samadapt.reports.jobs import jobs_text

    run_dir = result["run_dir"]
    again = f"samadapt finetune resume={run_dir} launcher=submitit"
    return jobs_text(result, f"run directory: {run_dir}", again)


def render(result: dict[str, Any]) -> str:
    """Return the tables of scores and the paths of the results."""
    from rich.console import Group

    from samadapt.reports.tables import closing_text

    if "summary" not in result:
        return render_jobs(result)
    summary, run_dir = result["summary"], Path(result["run_dir"])
    folds = len(summary.get("folds", ()))
    trained = "baseline" if "baseline" in summary else "adapter"
    weights = result["adapter_dir"] or "none: nothing was trained"
    of_runs = run_dir / "fold_*" if folds else run_dir
    paths = {
        trained: of_runs / trained if folds and summary["adapted"] else weights,
        "report": run_dir / "report.html",
        "overlays": of_runs / "overlays",
    }
    if summary["scored"] == "nothing":
        del paths["overlays"]
    text = closing_text(
        Group(*_tables(summary, folds)),
        trained=summary["trained_parameters"],
        total=summary["total_parameters"],
        seconds=summary["seconds"],
        paths=paths,
        notes=summary["notes"],
    )
    return console.to_text(text)


def _tables(summary: Mapping[str, Any], folds: int) -> list[Any]:
    """Return the tables of scores, or a line that says that nothing was scored."""
    from rich.text import Text

    from samadapt.reports.by_prompt import by_prompt_table
    from samadapt.reports.false_positives import negative_tables
    from samadapt.reports.objects import objects_table
    from samadapt.reports.tables import paired_table, results_table, state_names

    if summary["scored"] == "nothing":
        count = summary["labelled_cases"]
        return [Text(f"{summary['data']}: nothing was scored; labelled cases: {count}")]
    title = "{data}: {cases} {scored} cases, {slices} {parts}".format_map(summary)
    if folds:
        trained = "baseline" if "baseline" in summary else "adapter"
        title += f"; each scored by the one of {folds} {trained}s that did not see it"
    title += f"; a case is a {summary['case_is']}"
    names = state_names(summary)
    scores = results_table(summary["zero_shot"], summary["adapted"], title=title, names=names)
    tables: list[Any] = [scores]
    if summary["paired"]:
        tables.append(paired_table(summary["paired"]))
    if "by_prompt" in summary:
        tables.append(by_prompt_table(summary["by_prompt"]))
    tables += negative_tables(summary, names)
    objects = {
        name: summary[state]["instances"]
        for state, name in names.items()
        if summary[state] and "instances" in summary[state]
    }
    if objects:
        tables.append(objects_table(objects))
    return tables
