"""The plot of Dice by prompt."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.backends.backend_agg import FigureCanvasAgg

from samadapt.evaluation.prompt_matrix import SETTINGS
from samadapt.reports import oracle_gap
from samadapt.reports.clicks import AFTER

CLICKS = {key: {"dice": [0.5] * len(AFTER), "noc": {}} for key in ("zero_shot", "adapted")}


def test_no_name_of_a_prompt_covers_another(monkeypatch, tmp_path) -> None:
    drawn = []
    monkeypatch.setattr(oracle_gap, "lighten", drawn.append)
    score = {"dice": 0.5, "calibration": {"bins": []}}
    summary = {name: {"zero_shot": score, "adapted": score} for name in SETTINGS}
    oracle_gap.plot_gap(summary, CLICKS, tmp_path / "gap.png")
    canvas = drawn[0].figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    labels = drawn[0].get_xticklabels()
    assert [" ".join(label.get_text().split()) for label in labels] == list(SETTINGS)
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
