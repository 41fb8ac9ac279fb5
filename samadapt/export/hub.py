"""Upload a folder to the Hugging Face Hub through its own client."""

from __future__ import annotations

import re
from pathlib import Path

from samadapt.errors import ConfigError, RunError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(name: str) -> None:
    """Refuse an invalid repository name before anything is computed.

    Raises:
        ConfigError: the name is not ``USER/NAME``.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"push must be USER/NAME of the Hugging Face Hub; got {name!r}")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Create the repository if it does not exist, and upload a folder with its model card.

    The Hub's own client finds address and token: ``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: for a wrong name.
        RunError: the Hub refused or could not be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    check_name(name)
    api = HfApi()
    try:
        address = api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload from samadapt")
    except Exception as error:  # the client's errors have no common base but Exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise RunError(
            f"push={name}: the upload failed: {type(error).__name__}: {reason}; {folder} is "
            "complete: log in with `hf auth login` and push again"
        ) from error
    return str(address)
