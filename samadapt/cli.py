"""The command line: a table of verbs, imported when named; errors to exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.errors import ConfigError, SamadaptError, nearest
from samadapt.system import atomic
from samadapt.system.interrupt import StopAtOnce, exit_code
from samadapt.system.launchers import refuse_several_processes
from samadapt.system.out_of_memory import explain
from samadapt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "finetune": "recipe=NAME [group=option] [key=value ...]",
    "evaluate": "adapter=DIR [data=NAME data.root=PATH ...]",
    "predict": "adapter=DIR input=PATH output=PATH [boxes=[[x0,y0,x1,y1]]] [points=[[x,y]]]",
    "export": "adapter=DIR to=peft|sam|hf|onnx output=PATH [push=USER/NAME]",
    "import": "from=PATH output=DIR model=NAME [checkpoint=FILE]",
    "check": "data=NAME data.root=PATH",
    "ls": "[recipes|models|peft|data]",
    "show": "recipe=NAME [group=option] [key=value ...] [images=N [output=FILE]]",
    "doctor": "",
}
"""The verbs, each a module of ``samadapt.commands``, and what they take."""

SUMMARIES = {
    "finetune": "train an adapter, score it before and after, write a run directory",
    "evaluate": "score an adapter on a data set",
    "predict": "segment an image, a volume or a folder of them with an adapter",
    "export": "write an adapter for another program, and compare it with the adapted model",
    "import": "read an adapter that another project trained, as an adapter directory",
    "check": "read a data set and report every problem by file; changes nothing",
    "ls": "list what can be named",
    "show": "print the composed configuration, or draw what it trains on; runs nothing",
    "doctor": "versions, devices, precision, disk and weights; a fix for each problem",
}

FLAGS = {
    "--json": "machine-readable result on stdout; messages go to stderr",
    "--debug": "show the traceback of an error",
    "--help": "this text, or a verb's keys with their defaults",
    "--version": "the version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; the process's own when None.

    Returns:
        The exit code: 0, 2 for a mistake of the user, 1 for a run that failed, 128 + the number of
        a signal that ended it (130 for Ctrl-C).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    console.forgive(sys.stdout, sys.stderr)
    flags = {argument for argument in arguments if argument in (*FLAGS, "-h")}
    try:
        with StopAtOnce():
            return _dispatch([a for a in arguments if a not in flags], flags)
    except KeyboardInterrupt as error:
        name = f" by {error}" if str(error) else ""
        return _fail(error, f"interrupted{name}", exit_code(error), flags)
    except SamadaptError as error:
        return _fail(error, f"error: {error}", error.exit_code, flags)
    except Exception as error:
        return _fail(error, _explained(error, arguments), 1, flags)


def _explained(error: Exception, arguments: Sequence[str]) -> str:
    """Return what to say about an error that was not raised on purpose."""
    verb = next((argument for argument in arguments if argument in VERBS), "")
    if message := explain(error, verb) or atomic.explain(error):
        return f"error: {message}"
    return f"unexpected {_chain(error)}\n  (--debug shows where; please report it)"


def _fail(error: BaseException, message: str, code: int, flags: set[str]) -> int:
    """Report an error, with its traceback under ``--debug``, and return the exit code."""
    if "--debug" in flags:
        import traceback

        console.log("".join(traceback.format_exception(error)))
    console.log(f"samadapt: {message}")
    return code


def _dispatch(arguments: list[str], flags: set[str]) -> int:
    if "--version" in flags:
        console.write(f"samadapt {__version__}")
        return 0
    wants_help = bool(flags & {"--help", "-h"})
    if not arguments:
        console.write(usage())
        return 0 if wants_help else 2
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError(
            f"there is no verb {verb!r}{nearest(verb, VERBS)}; the verbs are {', '.join(VERBS)}"
        )
    if unknown := [argument for argument in rest if argument.startswith("--")]:
        raise ConfigError(f"there is no flag {unknown[0]!r}{nearest(unknown[0], FLAGS)}")
    if verb == "finetune" and not wants_help:
        refuse_several_processes()  # before anything is loaded
    module = import_module(f"samadapt.commands.{verb}{'_' if iskeyword(verb) else ''}")
    if wants_help:
        console.write(verb_help(verb, module.HELP, module.SCHEMA))
        return 0
    return _run(module, rest, as_json="--json" in flags)


def _run(module: Any, arguments: list[str], *, as_json: bool) -> int:
    result: dict[str, Any] = module.run(arguments)
    code = int(result.pop("exit_code", 0))
    if as_json:
        import json

        console.write(json.dumps(result, indent=2, default=str))
    elif text := module.render(result):
        console.write(text)
    return code


def usage() -> str:
    """Return the text of ``samadapt --help``."""
    verbs = [
        f"  samadapt {verb:<9} {takes}\n{'':21}{SUMMARIES[verb]}" for verb, takes in VERBS.items()
    ]
    flags = [f"  {flag:<18} {meaning}" for flag, meaning in FLAGS.items()]
    return "\n".join(
        [
            "samadapt adapts the Segment Anything Model to new images by training a few percent",
            "of its weights.",
            "",
            *verbs,
            "",
            "groups: model peft data prompts loss train cache eval output; keys: seed precision",
            "device resume folds privacy. `samadapt finetune --help` lists every key with its",
            "default.",
            "",
            *flags,
            "",
            "example: samadapt finetune recipe=medical peft.rank=16 train.steps=300",
        ]
    )


def verb_help(verb: str, text: str, schema: type[Any] | None) -> str:
    """Return the text of ``samadapt VERB --help``, with the keys of the verb's schema."""
    head = f"samadapt {verb} {VERBS[verb]}".rstrip() + f"\n\n{text.strip()}"
    if schema is None:
        return head
    from samadapt.config.help import describe

    return f"{head}\n\n{describe(schema)}"


def _chain(error: BaseException) -> str:
    """Return an error with its causes: Hydra and others hide the reason in ``__cause__``."""
    message = f"{type(error).__name__}: {error}"
    return f"{message}; because {_chain(error.__cause__)}" if error.__cause__ else message
