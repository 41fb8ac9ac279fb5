"""The code blocks of README and docs, and a program that runs those of one page.

    python tests/docs/blocks.py PAGE [--full]

Start it in a folder that holds the data which the page names. Blocks run in order and share
variables and the working folder, as for a reader who follows the page. Trainings are shortened (see
``SHORT``) unless ``--full`` asks for what the page says.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
FENCE = re.compile(r"^```(\S*)\s*$")
RUN = re.compile(r"(runs/\w+)/RUN\b")

SHORT = {
    "model": "tiny",
    "train.steps": "2",
    "train.batch_size": "2",
    "train.validate_every": "1",
    "eval.overlays": "1",
    "precision": "fp32",
    "device": "cpu",
}
"""What takes the place of these keys in every training: a small random model and two steps."""
SMALL_BLOCKS = "peft.blocks=last:1"
"""Given where the command names no blocks: the small model has fewer than the recipes name."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: the Markdown file.
        line: of its first line of code, from 1.
        language: what follows the opening fence.
        text: the code.
        reason: why it is not run; empty where it is.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page. A mark counts for the block that follows it."""
    reason, start, language = "", 0, ""
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if start and fence and not fence.group(1):
            yield Block(page, start, language, "\n".join(lines), reason)
            start, reason = 0, ""
        elif start:
            lines.append(line)
        elif fence:
            start, language, lines = number + 1, fence.group(1), []
        elif mark := NOT_RUN.fullmatch(line.strip()):
            reason = mark.group(1)
        elif line.strip():
            reason = ""
    if start:
        raise ValueError(f"{page}:{start}: a block is not closed")


def commands_of(block: Block) -> list[list[str]]:
    """Return the words of every simple command of a shell block."""
    commands: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(words[:end])
            words = words[end + 1 :]
    return [words for words in commands if words]


def shortened(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a training, made short.

    A resumed run keeps what its configuration holds; it may only get another number of steps.
    """
    named = {argument.partition("=")[0]: argument for argument in arguments}
    if not SHORT:
        return list(arguments)
    if "resume" in named:
        return [a if not a.startswith("train.steps=") else "train.steps=3" for a in arguments]
    kept = [argument for key, argument in named.items() if key not in SHORT]
    blocks = [] if "peft.blocks" in named else [SMALL_BLOCKS]
    return [*kept, *(f"{key}={value}" for key, value in SHORT.items()), *blocks]


def run_samadapt(arguments: Sequence[str]) -> int:
    """Run the command line with short trainings."""
    from samadapt.cli import main

    command, *rest = arguments
    if command == "engine":
        stage, *rest = rest
        # The workspace decides the data, and every stage has the small model.
        rest = shortened(rest) if stage == "retrain" else rest
        small = ["model=tiny" if word == "model=lite_medsam" else word for word in rest]
        return main([command, stage, *small])
    is_training = command in ("finetune", "curve", "sweep")
    if command == "masks":
        rest = ["model=tiny" if word == "model=lite_medsam" else word for word in rest]
    return main([command, *(shortened(rest) if is_training else rest)])


def make_short() -> None:
    """Shorten the trainings that Python code starts, in this process."""
    import samadapt

    compose, load_sam = samadapt.compose, samadapt.load_sam

    def short_compose(recipe: str, overrides: Sequence[str] = ()) -> Any:
        return compose(recipe, shortened(overrides))

    def small_sam(name: str | None = None, *arguments: Any, **options: Any) -> Any:
        return load_sam("tiny", *arguments, **options)

    samadapt.compose, samadapt.load_sam = short_compose, small_sam  # type: ignore[assignment]


def with_newest_runs(text: str) -> str:
    """Replace RUN, as in runs/photos/RUN, by the newest run directory."""
    return RUN.sub(lambda match: str(newest_run(match.group(1))), text)


def newest_run(folder: str) -> Path:
    """Return the run directory that was made last."""
    return max(Path(folder).iterdir(), key=lambda path: path.stat().st_mtime)


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run one block.

    Raises:
        RuntimeError: a command failed.
    """
    if block.language == "python":
        padding = "\n" * (block.line - 1)  # tracebacks show the line of the page
        exec(compile(padding + block.text, block.page, "exec"), names)
        return
    commands = commands_of(block)
    if all(words[0] == "samadapt" for words in commands) and "$" not in block.text:
        for words in commands:  # in this process: each start would import torch anew
            if code := run_samadapt([with_newest_runs(word) for word in words[1:]]):
                raise RuntimeError(f"{block}: exit code {code}: {shlex.join(words)}")
        return
    script = with_newest_runs(block.text)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=False)
    if done.returncode:
        raise RuntimeError(f"{block}: exit code {done.returncode}")


def main() -> None:
    """Run the blocks of the page that is named on the command line."""
    page = Path(sys.argv[1]).resolve()
    # A module, so that the annotations of a page's classes find their names.
    sys.modules["page"] = module = ModuleType("page")
    names = vars(module)
    if "--full" in sys.argv:
        SHORT.clear()
    else:
        make_short()
    for block in blocks_of(page):
        if block.language in ("python", "bash") and not block.reason and is_for_here(block):
            sys.stdout.write(f"-- {block}\n")
            sys.stdout.flush()
            run_block(block, names)


def is_for_here(block: Block) -> bool:
    """Return whether a block can run here: installations are the business of .ci/run."""
    return "pip install" not in block.text


if __name__ == "__main__":
    main()
