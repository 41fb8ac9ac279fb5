"""Data set cards: ``datasets/<name>.yaml`` says where a data set comes from and how to read it.

Required keys::

    name       as the file, without .yaml
    title      one line for `samadapt ls data`
    source     where the data come from
    licence    the licence or terms of the data
    reader     name of the reader, such as nifti or folder

Optional keys::

    classes    {name: value or [values]} of the masks
    intensity  see intensity.py
    axis       axial, coronal, sagittal or auto
    channel    index or name
    image      pattern of the images
    label      pattern of the masks
    download   see Download
    split      see splits.py
    note       an honest statement of what the data are good for
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from samadapt.errors import ConfigError, nearest
from samadapt.system.plain_yaml import read_plain_yaml
from samadapt.system.settings import check_value

_REQUIRED = ("name", "title", "source", "licence", "reader")


@dataclass(frozen=True)
class Download:
    """Where the archive of a data set can be downloaded.

    Attributes:
        url: address of a ``.tar``, ``.tar.gz`` or ``.zip`` file.
        folder: the data set's folder inside the archive.
        md5: hexadecimal checksum; None if ``sha256`` is given.
        sha256: hexadecimal checksum.
        megabytes: size of the archive, which is shown before the download. A download of more than
            twice this size is refused.
        unpacked_megabytes: the largest size that the archive may unpack to; None: a multiple of its
            own size, see ``system/archives.py``.
    """

    url: str
    folder: str
    md5: str | None = None
    sha256: str | None = None
    megabytes: float | None = None
    unpacked_megabytes: float | None = None


@dataclass(frozen=True)
class Card:
    """A data set card; the module explains the keys."""

    name: str
    title: str
    source: str
    licence: str
    reader: str
    classes: dict[str, tuple[int, ...]] | None = None
    intensity: str | None = None
    axis: str | None = None
    channel: int | str | None = None
    image: str | None = None
    label: str | None = None
    download: Download | None = None
    split: dict[str, Any] | None = None
    note: str = ""


def cards_folder() -> Path:
    """Return the folder of the cards: in the installed package, else in the source checkout.

    Raises:
        ConfigError: neither has them.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_datasets", package.parent / "datasets"):
        if (folder / "mni152.yaml").is_file():
            return folder
    raise ConfigError(
        f"the data set cards are missing: expected {package.parent / 'datasets'} or "
        f"{package / '_datasets'} with mni152.yaml; install samadapt again"
    )


def list_cards() -> list[str]:
    """Return the names of all cards, sorted."""
    return sorted(path.stem for path in cards_folder().glob("*.yaml"))


def load_card(name: str) -> Card:
    """Read a card by name.

    Raises:
        ConfigError: there is no such card, or its content is wrong.
    """
    known = list_cards()
    if name not in known:
        raise ConfigError(
            f"no data set card is called {name!r}; known: {', '.join(known)}{nearest(name, known)}"
        )
    return read_card(cards_folder() / f"{name}.yaml")


def read_card(path: Path) -> Card:
    """Read a card's file.

    Raises:
        ConfigError: the file is not YAML, or its keys or values are not those of a card.
    """
    content = read_plain_yaml(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: a card is a mapping of keys; got {type(content).__name__}")
    _check_keys(path, content, [field.name for field in fields(Card)], _REQUIRED)
    if content["name"] != path.stem:
        raise ConfigError(
            f"{path}: name must be {path.stem!r}, like the file; got {content['name']!r}"
        )
    values = dict(content)
    values["classes"] = _read_classes(path, values.get("classes"))
    values["download"] = _read_download(path, values.get("download"))
    return Card(**_typed(path, Card, values))


def _typed(path: Path, kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a card, or of its download, in the types of their fields.

    Raises:
        ConfigError: a value has another type; the message names the key.
    """
    hints = get_type_hints(kind)
    typed = {}
    for key, value in values.items():
        try:
            # These two have their types already. A text among them is wrong, and the check says so.
            done = key in ("classes", "download") and not isinstance(value, str)
            typed[key] = value if done else check_value(value, hints[key])
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
    return typed


def _check_keys(
    path: Path, content: Mapping[str, Any], known: list[str], required: tuple[str, ...]
) -> None:
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{path}: unknown key {key!r}; known: {', '.join(known)}{nearest(str(key), known)}"
            )
    missing = [key for key in required if not content.get(key)]
    if missing:
        raise ConfigError(f"{path}: the card needs {', '.join(missing)}")


def _read_classes(path: Path, classes: Any) -> dict[str, tuple[int, ...]] | None:
    if classes is None:
        return None
    if not isinstance(classes, Mapping):
        raise ConfigError(f"{path}: classes must map names to values; got {type(classes).__name__}")
    table = {}
    for name, value in classes.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        # isinstance would accept true and false, since bool is a subclass of int.
        if not values or not all(type(item) is int for item in values):
            raise ConfigError(f"{path}: classes.{name} must be a value or a list of values")
        table[str(name)] = values
    return table


def _read_download(path: Path, download: Any) -> Download | None:
    if download is None:
        return None
    if not isinstance(download, Mapping):
        raise ConfigError(f"{path}: download must be a mapping; got {type(download).__name__}")
    known = [field.name for field in fields(Download)]
    _check_keys(path, download, known, ("url", "folder"))
    if not (download.get("md5") or download.get("sha256")):
        raise ConfigError(f"{path}: download needs md5 or sha256")
    return Download(**_typed(path, Download, download))
