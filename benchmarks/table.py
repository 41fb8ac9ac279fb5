"""Write the newest run of every suite as Markdown tables into the page on speed.

The tables go between two marks in docs/explanation/speed.md:

    python -m benchmarks.table [--check] [--page FILE] [--results FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import results

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "speed.md"
TITLES = {
    "encoder": "Encoder, forward, one image",
    "attention": "One attention, forward and with backward",
    "train_step": "LoRA step, one image",
    "epoch": "Cost of one more",
    "decoder": "Mask decoder",
    "automatic_masks": "Automatic masks, decoder and post-processing",
    "start_up": "Start-up",
    "scoring": "Scores, prediction apart",
    "floor": "How near to the products alone",
    "shared_machine": "Alone, and beside one busy process",
    "compiled": "compile=true on a CPU",
    "gpu": "The suite for GPUs",
    "end_to_end": "What a user waits for: CPU-seconds of whole tasks on one thread",
}
HEADER = (
    "",
    "samadapt",
    "peer",
    "takes",
    "ratio",
    "memory above the weights",
    "error",
    "GFLOP/s",
    "of the peak",
    "images/s",
)


def main() -> None:
    """Rewrite the tables of the page, or exit with an error if ``--check`` finds them stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if the page is stale"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=results.FOLDER)
    arguments = parser.parse_args()
    text = arguments.page.read_text(encoding="utf-8")
    try:
        wanted = with_section(text, section(newest(arguments.results)))
    except ValueError as error:
        sys.exit(f"{arguments.page}: {error}")
    if arguments.check:
        if wanted != text:
            sys.exit(f"{arguments.page} is stale: run python -m benchmarks.table")
        return
    arguments.page.write_text(wanted, encoding="utf-8")


def newest(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each suite that the page shows, each with its newest rows only.

    For each kind of machine (one GPU model, or no GPU) these are the last complete run and any
    rows that were measured again after it. Runs whose rows were all replaced are left out.
    """
    found = {}
    for suite in TITLES:
        runs = results.read(folder / f"{suite}.json")
        kinds = dict.fromkeys(run["gpu"] for run in runs)
        shown = [r for kind in kinds for r in _newest_rows([r for r in runs if r["gpu"] == kind])]
        if shown:
            found[suite] = shown
    return found


def _newest_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: set[str] = set()
    kept = []
    for run in reversed(runs):
        rows = [row for row in run["rows"] if row["row"] not in seen]
        seen |= {row["row"] for row in rows}
        if rows:
            kept.append({**run, "rows": rows})
        if run["whole"]:
            break
    return kept[::-1]


def with_section(text: str, content: str, start: str = START, end: str = END) -> str:
    """Return a text in which ``content`` replaces what is between two marks.

    Raises:
        ValueError: if a mark is missing, occurs twice, or the end comes first.
    """
    if (text.count(start), text.count(end)) != (1, 1) or text.index(start) > text.index(end):
        raise ValueError(f"expected one {start} and one {end} after it")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"


def section(suites: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """Return the tables of each suite under its title, with the machine they were measured on."""
    lines = []
    for suite, runs in suites.items():
        lines += [f"### {TITLES[suite]}", ""]
        for run in runs:
            lines += [f"{conditions(run)}:", ""]
            for kind, rows in _by_kind(run["rows"]).items():
                lines += [*TABLES[kind](rows), ""]
    return "\n".join(lines).strip()


def conditions(run: Mapping[str, Any]) -> str:
    """Return the machine, packages and date of a run in one line."""
    peaks = []
    for device, peak in run["rooflines"].items():
        peaks.append(
            f"{device} peak {peak['fp32']:.0f} GFLOP/s fp32, {peak['bf16']:.0f} bf16, "
            f"copy {peak['copy_gb_s']:.0f} GB/s"
        )
    who = run["gpu"] if "cuda" in run["rooflines"] else run["processor"]
    count = run["threads"]
    threads = f"{count} thread{'s' * (count != 1)}, torch {run['packages']['torch']}"
    measured = f"median of {run['repeat']}" if run["repeat"] > 1 else "one run"
    return "; ".join([f"{who}, {threads}", *peaks, f"{measured}, {run['time'][:10]}"])


def row_text(row: Mapping[str, Any]) -> str:
    """Return one measured row as aligned text for the terminal."""
    lines = TABLES[row["kind"]]([row])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shown = [line for number, line in enumerate(cells) if number != 1]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    )


def _comparisons(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line for each peer. The first line of a row holds ours; pairs are ours / peer."""
    body = []
    for row in rows:
        (_, mine), *others = row["contenders"].items()
        first = [row["row"], _span(mine)]
        for peer, one in others or [("", {})]:
            pair = [values for values in (mine, one) if values]
            body.append(
                [
                    *first,
                    peer,
                    _span(one) if one else "",
                    _ratio(one["ratio"]) if one else "",
                    _pair("{:.2f} GB", [_gigabytes(values) for values in pair]),
                    _pair("{:.0e}", [values["error"] for values in pair]),
                    _pair("{:.0f}", [values.get("gflop_s") for values in pair]),
                    _pair("{:.0%}", [values.get("share_of_peak") for values in pair]),
                    _pair("{:.3g}", [_images_a_second(row, values) for values in pair]),
                ]
            )
            first = ["", ""]
        if row["facts"]:
            told = ", ".join(f"{key} {value}" for key, value in row["facts"].items())
            body.append([told, *[""] * (len(HEADER) - 1)])
    used = [i for i in range(len(HEADER)) if i < 2 or any(line[i] for line in body)]
    return _markdown([HEADER[i] for i in used], ([line[i] for i in used] for line in body))


def _growth(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    body = []
    for row in rows:
        counts = ", ".join(row["seconds"])
        cost, line = duration(row["slope_s"]), f"{row['r2']:.4f}"
        body.append((row["row"], row["unit"], cost, line, counts))
    return _markdown(("", "one more", "costs", "R² of the line", "measured at"), body)


def _facts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    body = [
        (row["row"], ", ".join(f"{key} {value}" for key, value in row["facts"].items()))
        for row in rows
    ]
    return _markdown(("", "counted"), body)


TABLES = {"comparison": _comparisons, "growth": _growth, "fact": _facts}


def duration(seconds: float) -> str:
    """Return a time in s or ms with three significant digits."""
    value, unit = (seconds, "s") if abs(seconds) >= 1 else (1e3 * seconds, "ms")
    return f"{value:#.3g}".rstrip(".") + f" {unit}"


def _span(one: Mapping[str, Any]) -> str:
    low, high = one["min_s"], one["max_s"]
    around = f" ({duration(low)} to {duration(high)})" if low < high else ""
    return duration(one["median_s"]) + around


def _ratio(ratio: Mapping[str, float]) -> str:
    low, high = ratio["min"], ratio["max"]
    around = f" ({low:.1f} to {high:.1f})" if low < high else ""
    return f"**{ratio['median']:.1f}x**{around}"


def _pair(form: str, values: Iterable[float | None]) -> str:
    """Return "ours / peer", or an empty text if nothing was measured."""
    listed = list(values)
    if all(value is None for value in listed):
        return ""
    return " / ".join("-" if value is None else form.format(value) for value in listed)


def _gigabytes(one: Mapping[str, Any]) -> float | None:
    peak = one.get("memory", {}).get("peak_bytes")
    return None if peak is None else peak / 1e9


def _images_a_second(row: Mapping[str, Any], one: Mapping[str, Any]) -> float | None:
    rate: float | None = row["images"] / one["median_s"] if row["device"] == "cuda" else None
    return rate


def _by_kind(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["kind"], []).append(row)
    return found


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    names = list(header)
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    main()
