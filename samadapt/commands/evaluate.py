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
Scores an adapter on the held-out cases of a data set, and its base model with the same prompts. It
needs the adapter directory alone, which records the base model, intensity, axis, classes and
prompts. The base weights are found by name and checked by their hash.

data.root=PATH says where the data set is; by default it is where the training found it. data=NAME
scores other data. Images that the adapter was trained on are refused, whatever their names are.
unseen=true scores every case that the adapter was not trained on, and all_cases=true scores all.

prompts=matrix scores both models without a prompt, with 1, 3, 5 and 8 clicks, with the exact box,
and with boxes that are off by 5, 10 and 20 px (eval/oracle_gap.csv and .png). It also measures
whether the predicted IoU can be trusted, and what the adaptation cost on photographs.
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
    from samadapt.runs.evaluate import evaluate  # it imports torch, so mistakes are reported before

    result = evaluate(asked, record)
    return {"run_dir": str(result.run_dir), "adapter_dir": path, "summary": result.summary}


def render(result: dict[str, Any]) -> str:
    """Return the tables of scores and the paths, after the oracle gap if it was measured."""
    text, summary = finetune.render(result), result["summary"]
    if "oracle_gap" not in summary:
        return text
    from samadapt.reports.oracle_gap import forgetting_text, gap_table

    gap = console.to_text(gap_table(summary["oracle_gap"]))
    return f"{gap}\n{forgetting_text(summary['forgetting'])}\n\n{text}"
