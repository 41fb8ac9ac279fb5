"""Every code block of README and docs runs, and those that cannot run here at least compose."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

import pytest
from docs_tests.blocks import DOCS, PAGES, ROOT, Block, blocks_of, commands_of

from samadapt import cli

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
LANGUAGES = {"bash", "python", "yaml", "json", "text"}
COMPOSED = {"finetune", "plan", "show"}
TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.md") if path.stem != "index")


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES


def test_blocks_are_not_run_for_a_stated_reason() -> None:
    reasons = ("needs", "takes")
    assert all(block.reason.startswith(reasons) for block in BLOCKS if block.reason)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_is_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_exist_and_compose(block: Block) -> None:
    for words in commands_of(block):
        check(words)


def check(words: list[str]) -> None:
    """Check a command without running it: names, keys and values."""
    if words[0] == "samadapt":
        check_samadapt(words[1:])
    elif words[:2] == ["pip", "install"]:
        check_install(words[2:])
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None, words
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words


def check_samadapt(words: list[str]) -> None:
    command, *arguments = [w for w in words if w not in cli.FLAGS]
    assert command in cli.COMMANDS
    if any("resume=" in word or word.endswith(".yaml") for word in arguments):
        return  # a file that exists only when the page runs
    module = import_module(f"samadapt.commands.{command}{'_' if iskeyword(command) else ''}")
    if "--help" not in words and (stages := getattr(module, "STAGES", {})):
        module = stages[arguments.pop(0)]
    own = ("images=", "output=") if command == "show" else ()
    arguments = (
        [argument for argument in arguments if not argument.startswith(own)] if own else arguments
    )
    if command in COMPOSED and "--help" not in words:
        from samadapt.config.finetune_arguments import finetune_arguments

        finetune_arguments(arguments)
    elif command == "sweep" and "--help" not in words:
        from samadapt.config.launcher import split_launcher
        from samadapt.config.sweep_arguments import sweep_from_arguments

        sweep_from_arguments(split_launcher(arguments)[1])
    elif command == "check" and arguments[0].startswith("explain="):
        module.run(arguments)
    elif module.SCHEMA is not None and "--help" not in words:
        from samadapt.config.compose import parse_settings

        parse_settings(
            module.SCHEMA,
            [a.replace("from=", "source=", 1) if a.startswith("from=") else a for a in arguments],
        )


def check_install(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words:
        if "[" in word:
            extras = word.partition("[")[2].rstrip("]").split(",")
            assert set(extras) <= set(project["optional-dependencies"]), word
        elif "." in word and not word.startswith("."):
            assert (ROOT / word).is_file(), word


def test_the_readme_has_the_two_commands_that_ci_reads() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    for second in ("samadapt finetune", "pytest"):
        starts = [
            line for line in lines if line.startswith("pip install ") and f"&& {second}" in line
        ]
        assert len(starts) == 1


def has_something_to_run(page: Path) -> bool:
    """Tell whether a page is run as a page: the tutorials run as notebooks."""
    runs = any(b.language in ("bash", "python") and not b.reason for b in blocks_of(page))
    return runs and page.parent.name != "tutorials"


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")


@pytest.mark.slow
@needs_bash
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if has_something_to_run(page)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_blocks_run(
    page: Path, workplace: Path, short_environment: dict[str, str], tmp_path: Path
) -> None:
    """Blocks run in order, in a folder that holds the data and runs that the pages name."""
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "docs" / "blocks.py"), str(page)],
        cwd=tmp_path,
        env=short_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@needs_bash
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_run(name: str, short_environment: dict[str, str], tmp_path: Path) -> None:
    """The notebook of a tutorial runs in an empty folder: it makes its data itself."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
    environment = short_environment | {
        "PYTHONPATH": short_environment["PATH"].split(os.pathsep)[0],  # of sitecustomize
    }
    client = NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    assert all(cell.get("execution_count") for cell in book.cells if cell.cell_type == "code")
