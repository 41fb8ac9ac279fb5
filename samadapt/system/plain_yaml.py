"""Read YAML files of plain values: recipes, stored configurations and data set cards.

A recipe may come from somebody else, and its content is stored with the run. So it may hold only
values: no interpolation (``${oc.env:NAME}`` would copy the environment into the run directory) and
no tags. Anchors and aliases are allowed; the size of a file, its depth and the number of values
that aliases expand to are bounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    except (
        TypeError,
        AttributeError,
    ) as error:  # raised by PyYAML for keys that are lists or mappings
        raise ConfigError(
            f"{path}: not a readable YAML file ({type(error).__name__}); keys must be plain text"
        ) from None


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
            raise ConfigError(f"{path}: line {line}: a tag (!...) is not allowed; write the value")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ConfigError(
                f"{path}: line {line}: an interpolation, ${{...}}, is not allowed; write the value "
                "itself"
            )


def _check_expansion(path: Path, root: Any, max_nodes: int) -> None:
    """Refuse aliases that expand to too many values, or that contain themselves."""
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
                f"{path}: expected at most {max_nodes:,} values with every alias expanded"
            )
        return sizes[key]

    if root is not None:
        size_of(root)
