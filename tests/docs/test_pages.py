"""Generated pages are current, links lead somewhere, and the website builds."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from docs_tests.blocks import DOCS, PAGES, ROOT

from samadapt.config.compose import compose
from samadapt.config.keys import keys_of
from samadapt.config.schema import Config
from samadapt.config.search_space import split_space
from samadapt.config.sweep_arguments import sweep_from_arguments
from samadapt.methods import METHODS

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
INLINE = re.compile(r"`[^`\n]*`")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generator: ModuleType) -> None:
    texts = generator.generated()
    stale = [str(path) for path, text in texts.items() if not generator.is_current(path, text)]
    assert not stale, "run: python docs/generate.py"
    kept = {*(DOCS / "notebooks").glob("*.ipynb"), *(DOCS / "reference").glob("*.md")}
    by_hand = {DOCS / "reference" / "index.md", DOCS / "reference" / "run-directory.md"}
    assert kept - by_hand == set(texts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links_of(page):
        if re.match(r"(https?|mailto):", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page}: {target}"
        assert path.is_relative_to(ROOT), f"{page}: {target}"
        if anchor:
            assert anchor in set(anchors_of(path)), f"{page}: {target}"


def links_of(page: Path) -> list[str]:
    text = INLINE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    return LINK.findall(text)


def anchors_of(page: Path) -> Iterator[str]:
    """Yield the anchors of a page's headings, as GitHub and MyST make them."""
    for line in FENCED.sub("", page.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            words = line.lstrip("#").strip().lower()
            yield re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_keys_in_the_text_exist(page: Path) -> None:
    """Inline code that is a setting, such as `train.steps` or `peft=lora peft.rank=8`, composes."""
    known = set(keys_of(Config)) | {"peft.name"}
    known |= {key for method in METHODS.values() for key in keys_of(Config, method)}
    groups = {key.partition(".")[0] for key in known if "." in key}
    for span in CODE.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if re.fullmatch(r"[a-z]+\.[a-z_]+", span) and span.partition(".")[0] in groups - {"data"}:
            assert span in known, f"{page}: {span}"
        words = shlex.split(span) if "=" in span and span.count("'") % 2 == 0 else []
        keys = [word.partition("=")[0] for word in words]
        of_evaluate = {"prompts=matrix", "prompts=volume_clicks", "prompts=one_slice"}
        if not words or not set(keys) <= known | groups or of_evaluate & set(words):
            continue
        if any(re.search(r"=[A-Z_]+$", word) for word in words):  # NAME and PATH stand for one
            continue
        if split_space(words)[0]:
            sweep_from_arguments(["recipe=photos", *words]).dimensions()
        else:
            compose("photos", words)


def test_messages_of_troubleshooting_exist() -> None:
    """What the page quotes, in the first column, is in the code, so it can be found there."""
    said = "\n".join(
        constant
        for path in (ROOT / "samadapt").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(constant := node.value, str)
    )
    rows = (DOCS / "how-to" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    quoted = [
        text for row in rows if row.startswith("| `") for text in CODE.findall(row.split("|")[1])
    ]
    assert len(quoted) > 20
    assert [text for text in quoted if text not in said] == []


def test_every_page_is_in_a_list() -> None:
    """Each page of a folder is linked and listed in its index."""
    for index in DOCS.glob("*/index.md"):
        listed = set(links_of(index))
        pages = {path.name for path in index.parent.glob("*.md")} - {"index.md"}
        assert pages <= listed, index


def test_pages_are_short() -> None:
    """A page that a person wrote fits on a few screens."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if "docs/generate.py`. Edit the code" in text or page.parent.name == "explanation":
            continue
        assert len(text.splitlines()) <= 230, page


@pytest.mark.slow
def test_the_website_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    html = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html"))
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", html)
    assert not loaded, "pages load nothing from the network"


@pytest.mark.slow
def test_the_run_directory_is_described(workplace: Path) -> None:
    """Every file of a run and every entry of its summary is on the page."""
    text = (DOCS / "reference" / "run-directory.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+)`", text))
    run = next((workplace / "runs" / "photos").iterdir())
    for path in sorted(run.glob("[!.]*")):
        assert path.name in named or f"{path.name}/" in named or path.is_dir(), path.name
    for folder in ("adapter", "eval"):
        for path in (run / folder).iterdir():
            assert {path.name, f"{folder}/{path.name}"} & named, path
    summary = json.loads((run / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) <= named
