"""YAML files of plain values: recipes, stored configurations and data set cards.

A recipe may come from somebody else, and what it says is stored with the run. So it holds values
and nothing that fetches any: no interpolation (``${oc.env:NAME}`` would put the environment into
the run directory), no tags. Anchors and aliases may be used; what they expand to is bounded, as
size and depth are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samadapt.errors import ConfigError

MAX_BYTES = 1 << 18
"""Bytes of a file; the longest recipe of ours has a hundredth of it."""
MAX_DEPTH = 16
"""Levels of lists and mappings in each other."""
MAX_NODES = 10_000
"""Values of a file, with every alias written out."""
MAX_TEXT = 1 << 20
"""Characters of one value on a command line: prompts for many slices are long."""
_OPENING, _CLOSING = "[{(", "]})"


def read_plain_yaml(path: Path, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES) -> Any:
    """Return the content of a YAML file, as plain values.

    Args:
        path: the file.
        max_bytes: of the file.
        max_nodes: values that it may hold, with every alias written out.

    Raises:
        ConfigError: it is missing, too large, not YAML, or holds an interpolation or a tag. The
            message says where, and quotes nothing.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ConfigError(f"{path}: expected at most {max_bytes:,} bytes; the file has more")
        text = content.decode("utf-8-sig")
        _check_events(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.ScalarNode):
            return str(root.value)
        _check_expansion(path, root, max_nodes)
        return OmegaConf.to_container(OmegaConf.create(text or "{}"), resolve=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "unknown place"
        raise ConfigError(f"{path}: not a readable YAML file: {where}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        kind = type(error).__name__
        raise ConfigError(f"{path}: not a readable YAML file ({kind})") from None
    except (TypeError, AttributeError) as error:  # PyYAML's, for keys that are lists and the like
        raise ConfigError(
            f"{path}: not a readable YAML file ({type(error).__name__}); keys must be plain texts"
        ) from None


def check_text(text: str) -> str:
    """Return the value of a ``key=value`` argument.

    Raises:
        ValueError: it is too long, too deep, or holds an interpolation.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"expected at most {MAX_TEXT:,} characters; got {len(text):,}")
    if "${" in text:
        raise ValueError("an interpolation, ${...}, is not read; write the value itself")
    depth = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth > MAX_DEPTH:
            raise ValueError(f"expected at most {MAX_DEPTH} brackets in each other")
    return text


def _check_events(path: Path, text: str) -> None:
    """Refuse tags, interpolations and depth while the text is parsed."""
    import yaml

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
            raise ConfigError(f"{path}: line {line}: a tag (!...) is not read; write the value")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ConfigError(
                f"{path}: line {line}: an interpolation, ${{...}}, is not read; write the value "
                "itself"
            )


def _check_expansion(path: Path, root: Any, max_nodes: int) -> None:
    """Refuse aliases that together write out to too much, or contain themselves."""
    import yaml

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
                f"{path}: expected at most {max_nodes:,} values with every alias written out"
            )
        return sizes[key]

    if root is not None:
        size_of(root)
