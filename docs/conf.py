"""Configuration of Sphinx: `sphinx-build -W -b html docs docs/_build/html`.

The pages are plain Markdown, so that they are readable in the repository as well. The build needs
no network: it fetches no inventories and no fonts.
"""

import re
from typing import Any

from samadapt.version import __version__

project = "samadapt"
author = "the samadapt developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build", "notebooks"]
myst_heading_anchors = 3  # headings are link targets by the same names as in the repository
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_title = "samadapt"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "show_nav_level": 2,
}


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """Give an index page the table of contents that its list of links stands for.

    A toctree in the page itself would show as a block of code in the repository.
    """
    if name.split("/")[-1] == "index":
        pages = re.findall(r"^- .*?\]\(([\w/-]+)\.md\)", source[0], re.MULTILINE)
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", add_contents)
