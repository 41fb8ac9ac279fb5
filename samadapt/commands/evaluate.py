"""``samadapt evaluate``: score adapters on a data set, beside their base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.adapters.hub import adapter_path
from samadapt.adapters.record import read_record
from samadapt.commands import finetune
from samadapt.config.compose import parse_settings
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.config.keys import keys_of
from samadapt.config.overrides import read_value
from samadapt.errors import ConfigError
from samadapt.runs.recorded_configuration import recorded_keys

HELP = """
Scores an adapter on the held-out cases of a data set, and its base model with the same prompts. It
needs the adapter directory alone, which records the base model, intensity, axis, classes and
prompts. The base weights are found by name and checked by their hash.

data.root=PATH says where the data set is; by default it is where the training found it. data=NAME
scores other data. Images that the adapter was trained on are refused, whatever their names are.
unseen=true scores every case that the adapter was not trained on, and all_cases=true scores all.

adapter=[A,B] scores several adapters on the same cases and compares each with the first one. The
data are those of the first adapter, and images that any of them was trained on are refused.

prompts=matrix scores both models without a prompt, with 1 to 20 clicks, with the exact box, with
boxes that are off by 5, 10 and 20 px, with a scribble and with a rough mask (eval/oracle_gap.csv
and .png). It counts the clicks
until the IoU of an object is 0.85 and 0.90 (NoC@85 and NoC@90; eval/noc_per_object.csv). It also
measures whether the predicted IoU can be trusted, and what the adaptation cost on photographs.

prompts=propagate prompts each object on its middle slice alone, and the memory of SAM 2 carries it
through its volume; it is the default for adapters that were trained so.

prompts=volume_clicks gives both models a box and five clicks on each class of whole volumes, as the
CVPR 2025 challenge does: the area under the curves of Dice and NSD (eval/volume_clicks.csv, .png).

prompts=one_slice prompts each object of a volume on its middle slice, and compares the ways of
carrying it to the others: prompts made from its mask, the mask itself, and the memory of a SAM 2.
Dice is that of the prompted slice, of the next two on each side, and of the object's other slices;
leaks are what is found on the slices that the object does not reach (eval/one_slice.csv).
"""
SCHEMA = EvaluateArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Score as the command line says and return plain values.

    Raises:
        SamadaptError: as ``runs.evaluate.evaluate``.
    """
    # The records are read first, since the keys that the command line leaves out come from them.
    text = next((a.split("=", 1)[1] for a in arguments if a.startswith("adapter=")), None)
    if text is None:
        parse_settings(EvaluateArguments, arguments)  # it says that an adapter is required
    try:
        adapters = _adapters(text or "")
    except ValueError as error:
        raise ConfigError(f"adapter: {error}") from error
    others = [argument for argument in arguments if not argument.startswith("adapter=")]
    records = [read_record(adapter_path(adapter)) for adapter in adapters]
    asked = [
        parse_settings(
            EvaluateArguments,
            others,
            {**recorded_keys(adapter_path(adapter), record), "adapter": adapter},
            origin=adapter,
        )
        for adapter, record in zip(adapters, records, strict=True)
    ]
    # It imports torch, so mistakes are reported before.
    from samadapt.runs.evaluate import evaluate_side_by_side

    result = evaluate_side_by_side(asked, records)
    return {
        "run_dir": str(result.run_dir),
        "adapter_dir": adapters if len(adapters) > 1 else adapters[0],
        "summary": result.summary,
    }


def _adapters(text: str) -> list[str]:
    """Return the adapter directories that ``adapter=`` names: one, or a list."""
    value = read_value(keys_of(EvaluateArguments)["adapter"], text)
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def render(result: dict[str, Any]) -> str:
    """Return the tables of scores and the paths, after those of further prompts."""
    summary = result["summary"]
    if "adapters" in summary:
        return _render_side_by_side(result)
    text = finetune.render(result)
    if "volume_clicks" in summary:
        from samadapt.reports.volume_clicks import volume_clicks_table

        return f"{console.to_text(volume_clicks_table(summary['volume_clicks']))}\n{text}"
    if "one_slice" in summary:
        from samadapt.reports.one_slice import one_slice_table

        return f"{console.to_text(one_slice_table(summary['one_slice']))}\n{text}"
    if "oracle_gap" not in summary:
        return text
    from samadapt.reports.oracle_gap import forgetting_text, gap_table

    gap = console.to_text(gap_table(summary["oracle_gap"], summary["clicks"]))
    return f"{gap}\n{forgetting_text(summary['forgetting'])}\n\n{text}"


def _render_side_by_side(result: dict[str, Any]) -> str:
    """Return the tables of several adapters, and the paths."""
    from rich.console import Group

    from samadapt.reports.tables import format_seconds, numbered_adapters, side_by_side_tables

    summary, run_dir = result["summary"], Path(result["run_dir"])
    title = f"{summary['data']}: {summary['cases']} {summary['scored']} cases"
    title += f", {summary['slices']} {summary['parts']}; a case is a {summary['case_is']}"
    lines = [
        *(f"Note: {note}" for note in summary["notes"]),
        *numbered_adapters(summary),
        f"time: {format_seconds(summary['seconds'])}",
        f"report: {run_dir / 'report.html'}",
    ]
    tables = console.to_text(Group(*side_by_side_tables(summary, title)))
    return tables + "\n" + "\n".join(lines)
