"""The list of codes is that of the code, and each code is explained."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import samadapt.data
from samadapt.data.checks.codes import CODES, explain_code, page
from samadapt.errors import ConfigError

FOLDER = Path(samadapt.data.__file__).parent
SEVERITY = {"fault": "error", "_error": "error", "_warning": "warning"}
SEVERITY |= {"error_finding": "error", "warning_finding": "warning"}


def is_code(text: object) -> bool:
    return isinstance(text, str) and text.replace("_", "").isalpha() and text == text.lower()


def chosen_codes(tree: ast.Module, variable: ast.Name) -> list[str]:
    """Codes that a variable is given as ``name = "this" if … else "that"``."""
    return [
        str(option.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable.id
        if isinstance(node.value, ast.IfExp)
        for option in (node.value.body, node.value.orelse)
        if isinstance(option, ast.Constant)
    ]


def findings() -> Iterator[tuple[str, str | None, str]]:
    """Yield code, severity (if the call names it) and place of every finding in data/."""
    trees = {
        str(path.relative_to(FOLDER)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(FOLDER.rglob("*.py"))
        if path.name not in ("codes.py", "code_errors.py", "code_warnings.py")
    }
    wrappers = {  # helpers that hand their first argument on as the code
        function.name
        for tree in trees.values()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and function.args.args
        and function.args.args[0].arg == "code"
    }
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func)
            first = node.args[0]
            if name not in {"fault", "Finding", *wrappers}:
                continue
            if isinstance(first, ast.Name):
                chosen = chosen_codes(tree, first)
                yield from ((code, SEVERITY.get(name), f"{file}:{node.lineno}") for code in chosen)
            if not isinstance(first, ast.Constant):
                continue
            second = node.args[1] if len(node.args) > 1 else None
            stated = second.value if isinstance(second, ast.Constant) else None
            severity = SEVERITY.get(name, str(stated) if name == "Finding" else None)
            yield str(first.value), severity, f"{file}:{node.lineno}"


def test_every_code_is_in_the_list_and_the_reverse() -> None:
    used = {code: place for code, _, place in findings()}
    used |= {"spacing_outlier": "quality.py", "size_outlier": "quality.py"}  # out of a table there
    missing = sorted(set(used) - set(CODES))
    assert not missing, (
        "add to samadapt/data/checks/code_errors.py or code_warnings.py, each with its meaning and "
        f"fix: {', '.join(f'{code} ({used[code]})' for code in missing)}; then run "
        "`python docs/generate.py`"
    )
    unused = sorted(set(CODES) - set(used))
    assert not unused, f"no finding of samadapt/data has these codes; remove them: {unused}"
    assert len(CODES) >= 25


def test_severities_are_those_of_the_list() -> None:
    wrong = [
        f"{place}: {code} is {severity} here, {CODES[code].severity} in checks/codes.py"
        for code, severity, place in findings()
        if severity and code in CODES and severity != CODES[code].severity
    ]
    assert not wrong


def test_the_page_explains_every_code() -> None:
    for code, entry in CODES.items():
        assert f"## {code}\n\n*{entry.severity}.* {entry.meaning}\n\n{entry.fix}\n" in page()
        assert is_code(code)
        assert entry.meaning.endswith(".")
        assert entry.fix.endswith((".", "?"))


def test_an_unknown_code_has_a_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hu_offset'"):
        explain_code("hu_ofset")
