"""Read the arguments of a command line, ``group=option`` and ``group.key=value``.

``compose.py`` makes the configuration from them.

Hydra's grammar reads the values: ``[1,2]``, ``{a: 1}``, quotes, ``null``. Texts that are outside of
this grammar, such as paths with spaces, are taken as they are where the key takes text.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from samadapt.config.keys import Key
from samadapt.errors import nearest
from samadapt.system.plain_yaml import check_text
from samadapt.system.settings import check_value, takes_text


def split_arguments(
    arguments: Sequence[str], groups: Container[str], problems: list[str]
) -> dict[str, str]:
    """Return arguments as text by key; ``group=option`` becomes ``group.name``.

    Args:
        arguments: as typed.
        groups: names of the groups.
        problems: what is wrong is added here.
    """
    texts: dict[str, str] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign:
            problems.append(f"{argument}: expected key=value; there is no '='")
        # peft=[lora,bias] names one combined method, lora+bias.
        elif key == "peft" and text.startswith("["):
            texts["peft.name"] = "+".join(name.strip() for name in text.strip("[]").split(","))
        # A mapping, as in data={name: msd}, gives the whole group and not the name of an option.
        elif key in groups and not text.startswith("{"):
            texts[f"{key}.name"] = text
        else:
            texts[key] = text
    return texts


def find_key(name: str, keys: Mapping[str, Key]) -> Key:
    """Return a key by its name.

    Raises:
        ValueError: there is no such key. The message names the nearest one.
    """
    if name in keys:
        return keys[name]
    inside = [key for key in keys if key.startswith(f"{name.removesuffix('.name')}.")]
    if name.endswith(".name") and inside:
        raise ValueError(f"the group has no options; set one of its keys: {', '.join(inside)}")
    single = [key for key in keys if "." not in key]
    groups = sorted({key.partition(".")[0] for key in keys if "." in key})
    hint = nearest(name, keys) or f"; there is {', '.join(inside or single + groups)}"
    raise ValueError(f"no such key{hint}")


def read_value(key: Key, text: str) -> Any:
    """Return the value of a ``key=text`` argument, not yet checked where it is not a text.

    Raises:
        ValueError: the text is too long, nested too deeply, holds an interpolation, or is outside
            of the grammar.
    """
    check_text(text)
    if not takes_text(key.annotation):
        return _parse_value(key.name, text)
    try:
        return check_value(_parse_value(key.name, text), key.annotation)
    except ValueError:  # any text is a value here, whatever the grammar makes of it
        return text


def _parse_value(name: str, text: str) -> Any:
    """Return the value of a text in Hydra's override grammar.

    Raises:
        ValueError: the text is outside of the grammar, or means a sweep over several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(f"{name}={text}")
    except HydraException as error:
        raise ValueError(
            f"cannot read {text[:60]!r}: a bracket or comma is missing or left over, or a text "
            "with other characters than letters, digits and ./_- is not in quotes, "
            "key='\"text\"'"
        ) from error
    if override.is_sweep_override():
        raise ValueError(f"expected one value; got {text[:60]!r} (write a list as [a,b])")
    return override.value()
