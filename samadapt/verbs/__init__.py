"""What the command line can do: one file a verb.

Each module has

- ``HELP``: the text of ``samadapt VERB --help``;
- ``SCHEMA``: the dataclass whose keys the verb takes, listed below that text, or None;
- ``run(arguments) -> dict``: plain values, printed by ``--json``; an entry ``exit_code`` is taken
  out and becomes the command's;
- ``render(result) -> str``: the same for people; empty where ``run`` has already said it.

Importing a verb must not import torch: ``run`` does, in its body, where it needs to.
"""
