"""The house rules that can be read off the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "samadapt"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
}
# Lines of code. Comments, docstrings and blank lines do not count, so nothing is squeezed to fit.
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 60

LAYERS = [
    {"errors", "version"},
    {"console"},
    {"system"},
    {"sam"},
    {"methods", "data"},
    {"prompts"},
    {"adapters"},
    {"training", "evaluation", "baselines"},
    {"inference", "reports"},
    {"engine"},
    {"serving"},
    {"export"},
    {"imports"},
    {"config"},
    {"runs"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""Rooms from the ground up. A module imports its own room and those in layers below it."""
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
CONFIGURATION = {"config"}
MAY_USE_IT = CONFIGURATION | {"runs", "commands", "cli"}  # what lies below takes plain values


STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    return ((path, node) for path in FILES for node in ast.walk(tree_of(path)))


def layer_of(module: str) -> str:
    return module.split(".")[1]


def may_import(room: str, other: str) -> bool:
    return room == other or RANKS[other] < RANKS[room]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(body: Sequence[ast.AST], *, all_of_them: bool) -> Iterator[str]:
    """The samadapt modules that a file imports: when it is loaded, or also for types and later."""
    for node in body:
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (deferred or is_type_checking(node)) and not all_of_them:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, STATEMENTS)]
        yield from imports(inner, all_of_them=all_of_them)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for module, path in MODULES.items():
        yield module, tree_of(path)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of_code(text: str) -> int:
    """Count the lines of a file that are neither blank, nor a comment, nor part of a docstring."""
    strings = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    documented = {n for s in strings for n in range(s.lineno, (s.end_lineno or s.lineno) + 1)}
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documented
        for number, line in enumerate(text.splitlines(), 1)
    )


def test_lines_of_code_leaves_out_comments_and_docstrings() -> None:
    assert lines_of_code('"""One\n\ntwo."""\n\n# three\nx = 1  # four\ny = """\nfive"""\n') == 3


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> int:
    """Count a function's lines of code; comments, docstrings and blank lines do not count."""
    own = text.splitlines()[function.lineno - 1 : function.end_lineno]
    return lines_of_code(textwrap.dedent("\n".join(own)))


def test_every_module_has_a_layer() -> None:
    homeless = {layer_of(m) for m in MODULES if m != "samadapt"} - set(RANKS)
    assert not homeless


def test_imports_point_down() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, tree in trees()
        if module != "samadapt"
        for target in imports(tree.body, all_of_them=True)
        if target != "samadapt" and not may_import(layer_of(module), layer_of(target))
    ]
    assert not wrong


def test_configuration_stops_at_the_runs() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, tree in trees()
        if module != "samadapt" and layer_of(module) not in MAY_USE_IT
        for target in imports(tree.body, all_of_them=True)
        if target != "samadapt" and layer_of(target) in CONFIGURATION
    ]
    assert not wrong


def test_no_cycles() -> None:
    """Imports inside functions and for types count as well."""
    graph = {module: set(imports(tree.body, all_of_them=True)) for module, tree in trees()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            pytest.fail("import cycle: " + " > ".join((*path[path.index(module) :], module)))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_files_and_functions_are_short() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert lines_of_code(text) <= MAX_FILE_LINES, path
        lengths = {f.name: length_of(f, text) for f in functions(tree_of(path))}
        assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}, path


FORBIDDEN_CALLS = {"print", "eval", "exec", "yaml.load", "yaml.unsafe_load", "breakpoint"}
FORBIDDEN_CALLS |= {f"pickle.{name}" for name in ("load", "loads", "dump", "dumps", "Unpickler")}
FORBIDDEN_MODULES = {"dill", "cloudpickle", "marshal"}


def test_no_module_asserts_prints_or_evaluates_text() -> None:
    for path, node in nodes():
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, where
            unsafe = [k for k in node.keywords if ast.unparse(k) == "weights_only=False"]
            assert not unsafe, f"{where}: torch.load of arbitrary objects"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert "pickle" not in names or isinstance(node, ast.Import), f"{where}: hides pickle.load"
        assert not FORBIDDEN_MODULES & {name.split(".")[0] for name in names}, where


POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_ONLY |= {"os.fork", "os.getloadavg", "os.getuid", "os.statvfs", "os.sysconf", "os.uname"}
POSIX_ONLY |= {f"signal.SIG{name}" for name in ("ALRM", "HUP", "KILL", "USR1", "USR2")}


def test_nothing_of_posix_is_taken_for_granted() -> None:
    """Windows has none of it; a ``try`` or ``getattr(signal, "SIGHUP", None)`` asks first."""

    def visit(node: ast.AST, path: Path) -> None:
        if isinstance(node, ast.Try):
            return
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        assert not POSIX_ONLY & set(names), f"{path}:{getattr(node, 'lineno', 0)}: {names}"
        for child in ast.iter_child_nodes(node):
            visit(child, path)

    for path in FILES:
        visit(tree_of(path), path)


def opens_text(call: ast.Call) -> bool:
    """Whether a call reads or writes a file as text, as far as the call alone shows it."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if name != "open":
        return name in ("read_text", "write_text") and owner not in ("", "atomic")
    if "force_zip64" in {keyword.arg for keyword in call.keywords}:
        return False  # a member of a zip archive is always binary
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [str(value.value) for value in given if isinstance(value, ast.Constant)]
    return not given or any(re.fullmatch(r"[rwxa]\+?t?", mode) for mode in modes)


def reads_a_child_as_text(node: ast.Call) -> bool:
    """Whether subprocess decodes what a child prints."""
    return "text" in {keyword.arg for keyword in node.keywords} and bool(
        re.search(r"\b(run|Popen|check_output)$", ast.unparse(node.func))
    )


def test_text_files_have_an_encoding() -> None:
    """Otherwise the locale decides: cp1252 on Windows, ASCII under LANG=C. Tests run there too."""
    files = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    for path in files:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and (opens_text(node) or reads_a_child_as_text(node)):
                named = {keyword.arg for keyword in node.keywords}
                assert "encoding" in named, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_packages_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = set(project["tool"]["setuptools"]["packages"])
    present = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert declared == present | {"samadapt._datasets", "samadapt._recipes"}


def test_dependencies_are_declared() -> None:
    """Every third-party package that the code imports is one that pip installs with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        x for name in extras if name != "test" for x in extras[name]
    ]
    declared = {name.split(">=")[0].replace("-", "_").lower() for name in wanted}
    as_imported = {"pil": "pillow", "skimage": "scikit_image", "yaml": "pyyaml"}
    as_imported |= {"hydra": "hydra_core", "pydantic_core": "pydantic"}
    missing = set()
    for module, tree in trees():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0].lower() for name in names}:
                known = as_imported.get(name, name) in declared | {"samadapt"}
                if not known and name not in sys.stdlib_module_names:
                    missing.add(f"{module}: {name}")
    assert not missing


def test_root_holds_nothing_else() -> None:
    allowed = {"pyproject.toml", "README.md", "samadapt", "recipes", "tests", "datasets"}
    allowed |= {"benchmarks", "docs", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    allowed |= {"constraints.txt", ".gitignore", ".ci"}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= allowed


def test_class_names_are_unique() -> None:
    """A reader who meets a class name knows which class it is."""
    places: dict[str, list[str]] = {}
    for module, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_no_dead_code() -> None:
    """Nothing in the package is unused; exceptions stand in pyproject.toml with a reason."""
    pytest.importorskip("vulture")
    done = subprocess.run(
        [sys.executable, "-m", "vulture"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode in (0, 3), done.stderr  # 3: something is unused somewhere
    assert not [line for line in done.stdout.splitlines() if line.startswith("samadapt")]
