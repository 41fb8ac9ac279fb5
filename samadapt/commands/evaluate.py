"""``samadapt evaluate``: score an adapter on a data set, beside its base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt import console
from samadapt.adapters.record import read_record
from samadapt.commands import finetune
from samadapt.config.compose import parse_settings
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.runs.recorded_configuration import recorded_keys

HELP = """
Scores an adapter on the held-out cases of a data set, and its base model with the same prompts.
Needs the adapter directory alone: base model, intensity, axis, classes and prompts are what it
records, and the base weights are found again and checked by their hash. data.root=PATH says where
the data set is; without it, where the run that trained the adapter found it. Other data:
data=NAME. Images that the adapter was trained on, whatever their names, are refused. Instead of the
held-out cases: unseen=true scores every case that it was not trained on, all_cases=true all.

prompts=matrix scores both models with no prompt, 1, 3, 5 and 8 clicks, the exact box and boxes that
are off by 5, 10 and 20 px (eval/oracle_gap.csv and .png); says whether the predicted IoU can be
trusted; and compares both models on photographs, to see what adaptation cost elsewhere.
"""
SCHEMA = EvaluateArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Score as the command line says and return plain values.

    Raises:
        SamadaptError: as ``runs.evaluate.evaluate``.
    """
    # The record is read first, since the keys that the command line leaves out come from it.
    path = next((a.split("=", 1)[1] for a in arguments if a.startswith("adapter=")), None)
    record, keys = None, {}
    if path is not None:
        adapter = Path(path).expanduser()
        record = read_record(adapter)
        keys = recorded_keys(adapter, record)
    asked = parse_settings(EvaluateArguments, arguments, keys, origin=str(path))
    from samadapt.runs.evaluate import evaluate  # loads torch, so mistakes are reported before

    result = evaluate(asked, record)
    return {"run_dir": str(result.run_dir), "adapter_dir": path, "summary": result.summary}


def render(result: dict[str, Any]) -> str:
    """Return the closing table and paths, after the oracle gap where it was measured."""
    text, summary = finetune.render(result), result["summary"]
    if "oracle_gap" not in summary:
        return text
    from samadapt.reports.oracle_gap import forgetting_text, gap_table

    gap = console.to_text(gap_table(summary["oracle_gap"]))
    return f"{gap}\n{forgetting_text(summary['forgetting'])}\n\n{text}"
