"""The command line: find the command, run it, and turn errors into exit codes.

A command is imported when it is named, so that ``samadapt --help`` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.errors import ConfigError, LostOthersError, SamadaptError, nearest
from samadapt.system import atomic, processes
from samadapt.system.interrupt import StopAtOnce, exit_code
from samadapt.system.launchers import find_place, refuse_several_processes, warning_of_launcher
from samadapt.system.out_of_memory import explain
from samadapt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "finetune": "recipe=NAME [group=option] [key=value ...]",
    "evaluate": "adapter=DIR|[A,B] [data=NAME data.root=PATH ...]",
    "plan": "recipe=NAME [group=option] [key=value ...]",
    "curve": "recipe=NAME cases=5,10,20,all [seeds=N] [group=option] [key=value ...]",
    "sweep": "recipe=NAME 'peft=lora,dora' 'peft.rank=4,8' [trials=N] [workers=N] [key=value ...]",
    "predict": "adapter=DIR input=PATH output=PATH [boxes=[[x0,y0,x1,y1]]] [points=[[x,y]]]",
    "masks": "adapter=DIR|model=NAME input=PATH output=PATH [format=coco|sa1b] [preview=true]",
    "serve": "adapter=DIR [adapter=DIR2 ...] [port=N] [corrections=FOLDER] [label_studio=URL]",
    "engine": "propose|rank|accept|retrain|automatic [key=value ...]",
    "export": "adapter=DIR to=adapter|peft|sam|hf|onnx|web|anylabeling output=PATH [push=NAME]",
    "import": "from=PATH output=DIR model=NAME [checkpoint=FILE]",
    "check": "data=NAME data.root=PATH",
    "ls": "[recipes|models|peft|data|prompts|losses|scores|targets] [keys GROUP] [runs DIR]",
    "report": "RUN [RUN2 ...] [output=FILE]",
    "show": "recipe=NAME [group=option] [key=value ...] [images=N [output=FILE]] | schema",
    "doctor": "",
}
"""Every command, a module of ``samadapt.commands`` each, and its arguments."""

SUMMARIES = {
    "finetune": "train an adapter, score it before and after, write a run directory",
    "evaluate": "score an adapter on a data set",
    "plan": "predict memory, disk and time of a training before it runs",
    "curve": "train with rising numbers of labelled cases: how many must be labelled?",
    "sweep": "try values of keys, choose by the validation cases, score the winner with 3 seeds",
    "predict": "segment an image, a volume or a folder of them with an adapter",
    "masks": "find the masks of everything in pictures and volumes, without prompts",
    "serve": "answer clicks of 3D Slicer, napari, QuPath, Label Studio and own programs",
    "engine": "propose masks, rank images, take corrections back, train again: the data engine",
    "export": "write an adapter for another program and check that the masks stay the same",
    "import": "turn an adapter of another project into an adapter directory",
    "check": "read a data set and report every problem by file; it changes nothing",
    "ls": "list recipes, models, methods, data sets, keys, past runs and other names",
    "report": "write one page of several runs, or the page of one run anew",
    "show": "print the composed configuration, or draw the training slices; it trains nothing",
    "doctor": "report versions, devices, disk and weights, with a fix for each problem",
}

FLAGS = {
    "--json": "print a machine-readable result on stdout; messages go to stderr",
    "--debug": "print the traceback of an error",
    "--help": "print this text, or the keys of a command with their defaults",
    "--version": "print the version",
}


SHARED = ("finetune", "evaluate", "predict", "masks")
"""Commands whose work several processes share, as torchrun, MPI or SLURM start them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None: the arguments of this process.

    Returns:
        The exit code: 0 for success, 2 for a mistake of the user, 1 for a run that failed, and 128
        plus the number of a signal that ended the run (130 for Ctrl-C).
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
    """Return the message for an error that was not raised on purpose."""
    command = next((argument for argument in arguments if argument in COMMANDS), "")
    if message := explain(error, command) or atomic.explain(error):
        return f"error: {message}"
    return f"unexpected {_chain(error)}\n  (--debug shows where; please report it)"


def _fail(error: BaseException, message: str, code: int, flags: set[str]) -> int:
    """Report an error, with its traceback under ``--debug``, and return the exit code."""
    console.mute(False)
    if "--debug" in flags:
        import traceback

        console.log("".join(traceback.format_exception(error)))
    rank = processes.place().rank or _rank()
    if processes.tells_user(rank, message, is_lost=isinstance(error, LostOthersError)):
        console.log(f"samadapt: {f'process {rank}: ' if rank else ''}{message}")
    return code


def _rank() -> int:
    """Return the number of this process among those that a launcher started."""
    try:
        return find_place().rank
    except ConfigError:  # which is then the error that is reported
        return 0


def _dispatch(arguments: list[str], flags: set[str]) -> int:
    if "--version" in flags:
        console.write(f"samadapt {__version__}")
        return 0
    wants_help = bool(flags & {"--help", "-h"})
    if not arguments:
        console.write(usage())
        return 0 if wants_help else 2
    command, *rest = arguments
    if command not in COMMANDS:
        raise ConfigError(
            f"there is no command {command!r}{nearest(command, COMMANDS)}; the commands are "
            f"{', '.join(COMMANDS)}"
        )
    if unknown := [argument for argument in rest if argument.startswith("--")]:
        raise ConfigError(f"there is no flag {unknown[0]!r}{nearest(unknown[0], FLAGS)}")
    if not wants_help:
        _check_launcher(command)  # before torch is loaded
    module = import_module(f"samadapt.commands.{command}{'_' if iskeyword(command) else ''}")
    if rest and rest[0] in (stages := getattr(module, "STAGES", {})):
        command, module = f"{command} {rest[0]}", stages[rest.pop(0)]
    if wants_help:
        console.write(command_help(command, module.HELP, module.SCHEMA, rest))
        return 0
    return _run(module, rest, as_json="--json" in flags)


def _check_launcher(command: str) -> None:
    """Refuse several processes where they would only repeat each other's work.

    Raises:
        ConfigError: the command runs as one process.
    """
    if command not in SHARED:
        refuse_several_processes()
    console.mute(find_place().rank > 0)
    if warning := warning_of_launcher():
        console.log(warning)


def _run(module: Any, arguments: list[str], *, as_json: bool) -> int:
    result: dict[str, Any] = module.run(arguments)
    code = int(result.pop("exit_code", 0))
    if find_place().rank:
        return code  # the first process has the same result
    if as_json:
        import json

        console.write(json.dumps(result, indent=2, default=str))
    elif text := module.render(result):
        console.write(text)
    return code


def usage() -> str:
    """Return the text of ``samadapt --help``."""
    commands = [
        f"  samadapt {command:<9} {takes}\n{'':21}{SUMMARIES[command]}"
        for command, takes in COMMANDS.items()
    ]
    flags = [f"  {flag:<18} {meaning}" for flag, meaning in FLAGS.items()]
    return "\n".join(
        [
            "samadapt adapts the Segment Anything Model to new images by training a few percent",
            "of its weights.",
            "",
            *commands,
            "",
            "Arguments are group=option or group.key=value. The groups are model, peft, data,",
            "prompts, loss, train, cache, eval and output; `samadapt finetune --help` explains",
            "them, and `samadapt ls keys` lists every key with its default.",
            "",
            *flags,
            "",
            "example: samadapt finetune recipe=medical peft.rank=16 train.steps=300",
        ]
    )


def command_help(
    command: str, text: str, schema: type[Any] | None, arguments: Sequence[str] = ()
) -> str:
    """Return the text of ``samadapt COMMAND --help``.

    Args:
        command: its name, with that of the stage if it has stages.
        text: its ``HELP``.
        schema: its ``SCHEMA``, whose keys are listed below the text; None if it has no keys.
        arguments: groups to explain in full, ``recipe=NAME`` and ``peft=NAME``.

    Raises:
        ConfigError: an argument names no group.
    """
    # A stage of a command has its arguments in its own text.
    head = f"samadapt {command} {COMMANDS.get(command, '[key=value ...]')}".rstrip()
    head += f"\n\n{text.strip()}"
    if schema is None:
        return head
    from samadapt.config.help import describe

    keys = describe(schema, arguments, command)
    asked = [argument for argument in arguments if "=" not in argument]
    return keys if asked else f"{head}\n\n{keys}"


def _chain(error: BaseException) -> str:
    """Return an error with its causes, because Hydra and others hide the reason there."""
    message = f"{type(error).__name__}: {error}"
    return f"{message}; because {_chain(error.__cause__)}" if error.__cause__ else message
