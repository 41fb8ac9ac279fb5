"""Draw pictures of a report and of the built website with headless Chromium.

    python docs/screenshots.py report RUN_DIR    # docs/images/report.png
    python docs/screenshots.py website [FOLDER]  # FOLDER/*.png, to look at; default docs/_build

The website must have been built with `sphinx-build -W -b html docs docs/_build`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PAGES = {
    "index": 1200,
    "tutorials/ct": 2600,
    "how-to/data-format": 2000,
    "reference/keys": 1600,
    "explanation/how-it-works": 1800,
    "explanation/method-comparison": 2600,
}
"""What is drawn of the website, and how many pixels of each page from its top."""


def main() -> None:
    """Draw what the command line asks for."""
    match sys.argv[1:]:
        case ["report", run_dir]:
            shoot(Path(run_dir) / "report.html", DOCS / "images" / "report.png", 960, 680)
        case ["website", *folder]:
            target = Path(folder[0]) if folder else DOCS / "_build"
            for page, height in PAGES.items():
                picture = target / f"{page.replace('/', '_')}.png"
                shoot(DOCS / "_build" / f"{page}.html", picture, 1400, height)
        case _:
            sys.exit(__doc__)


def shoot(page: Path, picture: Path, width: int, height: int) -> None:
    """Write the top of an HTML page as PNG."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser was found; looked for {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=3000",  # scripts of the page run before it is drawn
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--screenshot={picture.resolve()}",
            page.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
