"""Adapters on the Hugging Face Hub: ``hf:USER/NAME[@REVISION]`` in place of a directory.

The files come through the Hub's own client, which finds address, token and cache folder
(``HF_ENDPOINT``, ``HF_TOKEN`` or ``hf auth login``, ``HF_HOME``). Once fetched, an adapter is also
found without a network. Only the files of an adapter are fetched, and their digests are compared.
"""

from __future__ import annotations

import glob
import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from samadapt.adapters.record import RECORD, UNET_RECORD, check_weights, read_record
from samadapt.errors import AdapterError, ConfigError, DownloadError

PREFIX = "hf:"
FILES = {RECORD: "adapter_model.safetensors", UNET_RECORD: "unet.safetensors"}
"""The record of an adapter, or of a U-Net, and the file of its weights."""

_OTHERS = ("adapter_config.json", "README.md")
_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


class HubName(NamedTuple):
    """The parts of ``hf:USER/NAME@REVISION``.

    Attributes:
        repository: ``USER/NAME``.
        revision: a branch, a tag or a commit; None: the main branch.
    """

    repository: str
    revision: str | None


def adapter_path(name: str | Path) -> Path:
    """Return the directory that ``adapter=`` names, fetched from the Hub if it begins with ``hf:``.

    Args:
        name: a directory, or ``hf:USER/NAME[@REVISION]``.

    Raises:
        ConfigError: ``hf:`` is not followed by a name of the Hub.
        AdapterError: there is no such repository or revision, it is no adapter, or a digest
            differs.
        DownloadError: the Hub cannot be reached, and the adapter is not in the cache.
    """
    text = str(name)
    return _fetched(text) if text.startswith(PREFIX) else Path(name).expanduser()


def parse_name(text: str) -> HubName:
    """Return the parts of ``hf:USER/NAME[@REVISION]``.

    Raises:
        ConfigError: it is something else.
    """
    found = _NAME.fullmatch(text.removeprefix(PREFIX))
    if found is None:
        raise ConfigError(
            f"{text}: expected hf:USER/NAME or hf:USER/NAME@REVISION, as on the Hugging Face Hub"
        )
    return HubName(found["repository"], found["revision"])


@cache
def _fetched(text: str) -> Path:
    """Fetch an adapter once a process, so that all parts of a program see the same revision."""
    name = parse_name(text)
    folder = _download(text, name, list(FILES))
    record_name = next((one for one in FILES if (folder / one).is_file()), None)
    if record_name is None:
        raise AdapterError(
            f"{text}: expected an adapter of samadapt; the repository has no {RECORD}. Publish an "
            "adapter with `samadapt export adapter=DIR to=adapter push=USER/NAME`; those of other "
            "programs are downloaded by hand and read by `samadapt import`"
        )
    record = read_record(folder, record_name)
    if not record.weights_sha256:
        raise AdapterError(
            f"{text}: {record_name} has no digest of the weights (samadapt before 0.2), so what "
            "was fetched cannot be checked; save the adapter again and publish that"
        )
    # An imported adapter may have brought its own base along.
    base = [glob.escape(record.checkpoint)] if record.checkpoint else []
    _download(text, name, [FILES[record_name], *_OTHERS, *base], commit=folder.name)
    weights = folder / FILES[record_name]
    if not weights.is_file():
        raise AdapterError(f"{text}: the repository has {record_name} and no {weights.name}")
    check_weights(folder, weights, record)
    return folder


def _download(text: str, name: HubName, patterns: list[str], commit: str = "") -> Path:
    """Fetch the files that match, or find them in the cache if the Hub cannot be reached.

    Args:
        text: what the user wrote, for messages.
        name: its parts.
        patterns: names of the files.
        commit: the commit of an earlier answer, which is taken again; empty: look it up.
    """
    from huggingface_hub import errors, snapshot_download

    revision = commit or name.revision
    endpoint = os.environ.get("HF_ENDPOINT") or None

    def fetch(*, offline: bool) -> Path:
        return Path(
            snapshot_download(
                name.repository,
                revision=revision,
                allow_patterns=patterns,
                endpoint=endpoint,
                local_files_only=offline,
            )
        )

    try:
        return fetch(offline=False)
    except errors.GatedRepoError as error:
        raise AdapterError(
            f"{text}: access must be granted first: ask for it on the page of the repository, and "
            "log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise AdapterError(
            f"{text}: the Hub has no repository {name.repository}, or it is private: check the "
            "name; for a private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise AdapterError(
            f"{text}: {name.repository} has no revision {revision!r}; expected a branch, a tag or "
            "a commit"
        ) from error
    except Exception as error:  # the client's errors of the network have no common base
        try:
            return fetch(offline=True)
        except Exception:  # the same, for what the cache lacks
            reason = " ".join(str(error).split())[:200]
            raise DownloadError(
                f"{text}: the Hub cannot be reached ({type(error).__name__}: {reason}), and this "
                "adapter is not in the cache; fetch it once with a network, or copy its directory"
            ) from error
