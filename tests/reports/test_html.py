"""The page of a run: one file, escaped, and drawn by a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table
from rich.text import Text

from samadapt.reports.html import Page, ShownCase, write_html
from samadapt.reports.strips import draw_strip

EVIL = "<script>alert('x')</script>\"&"


@pytest.fixture
def page(tmp_path):
    """Every text of the page contains HTML; one case has three slices, one has one."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "curve.png")
    table = Table(title=Text(EVIL), caption=Text(EVIL))
    table.add_column(Text(EVIL))
    table.add_column("Dice", justify="right")
    table.add_row(Text(EVIL), "0.5")
    table.add_row("mean", "0.5", style="bold")
    strips = [
        draw_strip(
            i, rng.integers(0, 255, (20, 30, 3), dtype=np.uint8), [np.ones((20, 30), np.uint8)]
        )
        for i in (4, 9, 14)
    ]
    heads = ("image", EVIL)
    cases = [
        ShownCase(f"best: {EVIL}", EVIL, heads, strips, 1, 5),
        ShownCase("worst: b", "", heads, strips[:1], 0),
    ]
    figures = {"Training": tmp_path / "curve.png", "Not there": tmp_path / "none.png"}
    return Page(EVIL, EVIL, [EVIL], [table], figures, [EVIL], cases, [table], {EVIL: EVIL})


class Seen(HTMLParser):
    """Collect the tags and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.addresses, self.alternatives = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.alternatives += [value for name, value in attrs if name == "alt"]


def test_the_page_is_self_contained_and_escaped(page, tmp_path):
    text = write_html(tmp_path / "report.html", page).read_text(encoding="utf-8")
    seen = Seen()
    seen.feed(text)
    assert seen.tags.count("script") == 1  # ours
    assert "alert('x')</script>" not in text
    assert len(seen.addresses) == 1 + 3 + 1
    assert all(address.startswith("data:image/") for address in seen.addresses)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "slice 4 of worst: b" in seen.alternatives
    assert "Not there" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "report.html"]


def test_the_policy_forbids_everything_that_is_not_inline(page, tmp_path):
    text = write_html(tmp_path / "report.html", page).read_text(encoding="utf-8")
    policy = html.unescape(
        re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)[1]
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"  # the script that the page holds, no other
    assert text.index("Content-Security-Policy") < text.index("<title>")


def test_mean_rows_stand_out_and_numbers_are_right_aligned(page, tmp_path):
    text = write_html(tmp_path / "report.html", page).read_text(encoding="utf-8")
    rows = re.findall(r"<tr[^>]*>.*?</tr>", text, re.DOTALL)
    assert sum('class="mean"' in row for row in rows) == 2
    assert '<td class="text">mean</td><td>0.5</td>' in text


PROBE = """
<script>
addEventListener("load", () => {
  const pictures = [...document.images];
  const visible = () => pictures.filter(p => p.getClientRects().length).map(p => p.alt);
  const drawn = pictures.filter(p => p.complete && p.naturalWidth > 1).length;
  const before = visible();
  const slider = document.querySelector("input[type=range]");
  slider.value = 2;
  slider.dispatchEvent(new Event("input"));
  const after = visible();
  document.body.innerHTML = "";
  document.body.textContent = JSON.stringify({drawn, all: pictures.length, before, after});
});
</script>
"""


@pytest.mark.slow
def test_a_browser_draws_it_without_complaint(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine: install your distribution's package")
    path = write_html(tmp_path / "report.html", page)
    # The policy lets no script run but the page's own, so the probe has to be named in it.
    probe = re.search(r"<script>(.*?)</script>", PROBE, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    text = path.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ")
    path.write_text(text + PROBE, encoding="utf-8")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",  # CI runs as root
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        encoding="utf-8",
    )
    assert "CONSOLE" not in done.stderr
    found = re.search(r'\{"drawn".*\}', done.stdout)
    assert found is not None, done.stdout[-300:]
    seen = json.loads(found.group().replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["drawn"] == seen["all"] == 5
    assert len(seen["before"]) == len(seen["after"]) == 3  # the curve, and a slice of each case
    assert seen["before"][1].startswith("slice 9 of")
    assert seen["after"][1].startswith("slice 14 of")


def test_the_template_travels_with_the_package():
    import samadapt.reports

    assert (Path(samadapt.reports.__path__[0]) / "report.html.j2").is_file()
