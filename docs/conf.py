"""Configuration of Sphinx: `sphinx-build -W -b html docs docs/_build/html`.

The pages are plain Markdown, so that they are readable in the repository as well. The build needs
no network: it fetches no inventories and no fonts.
"""

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
