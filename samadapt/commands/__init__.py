"""The commands of the command line, one file each: read arguments, call, show the result.

Each module has

- ``HELP``: the text of ``samadapt COMMAND --help``;
- ``SCHEMA``: the dataclass whose keys the command takes, listed below that text, or None;
- ``run(arguments) -> dict``: plain values, printed by ``--json``. An entry ``exit_code`` is removed
  and becomes the exit code of the command;
- ``render(result) -> str``: the same for people; empty where ``run`` has already printed it.

Importing a command must not import torch. ``run`` imports it in its body, where it is needed.
"""
