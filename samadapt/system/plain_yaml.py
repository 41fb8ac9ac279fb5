"""Read YAML files of plain values: recipes, stored configurations and data set cards.

A recipe may come from somebody else, and its content is stored with the run. So it may hold only
values: no interpolation (``${oc.env:NAME}`` would copy the environment into the run directory) and
no tags. Anchors and aliases are allowed; the size of a file, its depth and the number of values
that aliases expand to are bounded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from samadapt.errors import ConfigError

MAX_BYTES = 1 << 18
"""Bytes of a file; our longest recipe has a hundredth of that."""
MAX_DEPTH = 16
"""Levels of nested lists and mappings."""
MAX_NODES = 10_000
"""Values in a file, with every alias expanded."""
MAX_TEXT = 1 << 20
"""Characters of one value on the command line; prompts for many slices are long."""
_OPENING, _CLOSING = "[{(", "]})"


def read_plain_yaml(path: Path, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES) -> Any:
    """Return the content of a YAML file as plain values.

    Args:
        path: the file.
        max_bytes: bytes that the file may have.
        max_nodes: values that the file may hold, with every alias expanded.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or holds an interpolation or a tag.
            The message says where and quotes nothing, because the file may hold a secret.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ConfigError(f"{path}: expected at most {max_bytes:,} bytes; the file has more")
        text = content.decode("utf-8-sig")
        _check_events(path, text)
        root = yaml.compose(text, Loader=_PlainLoader)
        if root is None:
            return {}
        if isinstance(root, yaml.ScalarNode):
            return str(root.value)
        _check_expansion(path, root, max_nodes)
        return _copy_plain(_PlainLoader("").construct_document(root))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise ConfigError(f"{path}: not a readable YAML file: {where}") from None
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise ConfigError(f"{path}: not a readable YAML file ({kind})") from None
    except (TypeError, AttributeError) as error:  # keys that are lists, mappings or null
        raise ConfigError(
            f"{path}: not a readable YAML file ({type(error).__name__}); keys must be plain text"
        ) from None


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML 1.1 with three differences that protect recipes.

    ``1e-3`` is a number without a dot, too; a date is text; a key that is given twice is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, whose keys are all different."""
        seen = set()
        for key, _ in node.value:
            if key.tag != yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG:
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _copy_plain(value: Any) -> Any:
    """Return a copy in which no two aliases share an object.

    Raises:
        TypeError: a key is neither text nor a number.
    """
    if isinstance(value, list):
        return [_copy_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    for key in value:
        if not isinstance(key, str | int | float):
            raise TypeError(f"a key is {type(key).__name__}")
    return {key: _copy_plain(item) for key, item in value.items()}


def check_text(text: str) -> str:
    """Check the value of a ``key=value`` argument and return it.

    Raises:
        ValueError: the value is too long, nested too deeply, or holds an interpolation.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"expected at most {MAX_TEXT:,} characters; got {len(text):,}")
    if "${" in text:
        raise ValueError("an interpolation, ${...}, is not allowed; write the value itself")
    depth = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth > MAX_DEPTH:
            raise ValueError(f"expected at most {MAX_DEPTH} nested brackets")
    return text


def _check_events(path: Path, text: str) -> None:
    """Refuse tags, interpolations and deep nesting while the text is parsed."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}: line {line}: expected at most {MAX_DEPTH} levels")
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"{path}: line {line}: a tag (!...) is not allowed; write the value")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ConfigError(
                f"{path}: line {line}: an interpolation, ${{...}}, is not allowed; write the value "
                "itself"
            )


def _check_expansion(path: Path, root: Any, max_nodes: int) -> None:
    """Refuse aliases that expand to too many values, or that contain themselves."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size_of(node: Any) -> int:
        key = id(node)
        if key in open_nodes:
            raise ConfigError(f"{path}: an alias contains itself")
        if key not in sizes:
            open_nodes.add(key)
            inner: list[Any] = []
            if isinstance(node, yaml.SequenceNode):
                inner = list(node.value)
            elif isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            sizes[key] = 1 + sum(size_of(part) for part in inner)
            open_nodes.discard(key)
        if sizes[key] > max_nodes:
            raise ConfigError(
                f"{path}: expected at most {max_nodes:,} values with every alias expanded"
            )
        return sizes[key]

    if root is not None:
        size_of(root)
