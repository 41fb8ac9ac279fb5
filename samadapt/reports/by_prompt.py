"""The table of an adapter that was trained with several kinds of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.reports.tables import NOTHING, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping


def by_prompt_table(kinds: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the Dice of each kind of prompt before and after training, with 95 % intervals.

    Args:
        kinds: the entry ``by_prompt`` of ``summary.json``.
    """
    table = Table(title="Dice by kind of prompt", title_justify="left", title_style="bold")
    table.caption_style, table.caption_justify = "dim", "left"
    table.add_column("prompt")
    for heading in ("share", "zero-shot [95 %]", "adapted [95 %]", "difference [95 %]"):
        table.add_column(heading, justify="right")
    for heading in ("better", "worse"):
        table.add_column(heading, justify="right")
    for kind, entry in kinds.items():
        states = [_dice(entry[state]) for state in ("zero_shot", "adapted")]
        paired = entry["paired"] and entry["paired"]["dice"]
        changes = [NOTHING] * 3
        if paired:
            changes = [
                with_interval(paired["difference"], paired["interval"], "+.3f"),
                str(paired["better"]),
                str(paired["worse"]),
            ]
        table.add_row(Text(kind), f"{entry['share']:.2f}", *states, *changes)
    if "semantic" in kinds:
        table.caption = Text("semantic has no prompt; beside it zero-shot has exact boxes")
    return table


def compact(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return share, Dice and IoU of each kind and state, for an adapter's record."""
    return {
        kind: {
            "share": entry["share"],
            **{
                state: entry[state] and {key: entry[state][key] for key in ("dice", "iou")}
                for state in ("zero_shot", "adapted")
            },
        }
        for kind, entry in kinds.items()
    }


def _dice(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return NOTHING
    detail = summary.get("detail", {}).get("dice", {})
    return with_interval(summary["dice"], detail.get("interval"), ".3f")
