"""The commands of the command line, one file each: parse arguments, call, render the result.

Each module has

- ``HELP``: the text of ``samadapt COMMAND --help``;
- ``SCHEMA``: the class of settings with the keys of the command, or None; the help lists them;
- ``run(arguments) -> dict``: plain values, printed by ``--json``. An entry ``exit_code`` is removed
  and becomes the exit code of the command;
- ``render(result) -> str``: the same values as text for people; empty if there is nothing to say.

A command whose first argument names a stage also has ``STAGES``: by name, an object with the same
four attributes.

Importing a command must not import torch. ``run`` imports it in its body, where it is needed.
"""
