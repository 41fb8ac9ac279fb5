"""``privacy=true``: stable pseudonyms in place of case names, which may contain patients' names.

A pseudonym is an HMAC-SHA256 of the case name with a secret of the run. The same case has the same
pseudonym in every file of a run, after it is resumed and in its evaluations, and nobody can test
guesses of names without the secret. The secret and the list of names are in ``privacy_key.json`` in
the run directory, which only its owner can read. Everything in a run directory may be shared except
this file and ``config.yaml``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from samadapt.data.dataset import Dataset
from samadapt.data.findings import Finding
from samadapt.data.types import Case
from samadapt.errors import ConfigError
from samadapt.system import atomic

KEY_NAME = "privacy_key.json"
_SECRET_BYTES = 32
_DIGITS = 12
"""Hexadecimal digits of a pseudonym. With 10,000 cases two collide once in 5 million runs."""
_SHORTEST = 3
"""Names of fewer characters are not replaced in messages, because they are ordinary words."""


class Pseudonyms:
    """Maps case names to pseudonyms.

    Args:
        secret: of the run; whoever has it can test a guess of a name. None: a new one.
        names: pseudonyms that were given before, with the names behind them.
    """

    def __init__(self, secret: bytes | None = None, names: Mapping[str, str] | None = None) -> None:
        """Use the secret, or make a new one."""
        self.secret = secrets.token_bytes(_SECRET_BYTES) if secret is None else secret
        self.names = dict(names or {})

    def of(self, name: str) -> str:
        """Return the pseudonym of a case name."""
        digest = hmac.new(self.secret, name.encode("utf-8", "surrogateescape"), hashlib.sha256)
        return f"case_{digest.hexdigest()[:_DIGITS]}"


def open_key(*folders: Path) -> Pseudonyms:
    """Return the pseudonyms of the first folder that contains a key, or new ones.

    Raises:
        ConfigError: the key file cannot be used; the message names it.
    """
    for folder in folders:
        path = folder / KEY_NAME
        if not path.is_file():
            continue
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            secret, names = bytes.fromhex(stored["secret"]), dict(stored["cases"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: expected the key that privacy=true wrote, with a secret of "
                f"{2 * _SECRET_BYTES} hexadecimal digits; copy it back, or start a new run"
            ) from error
        if len(secret) != _SECRET_BYTES:
            raise ConfigError(f"{path}: expected a secret of {2 * _SECRET_BYTES} digits")
        return Pseudonyms(secret, names)
    return Pseudonyms()


def write_key(folder: Path, pseudonyms: Pseudonyms, names: Iterable[str]) -> None:
    """Write the secret and the names behind the pseudonyms; only the owner can read the file."""
    who = pseudonyms.names | {pseudonyms.of(name): name for name in names}
    text = json.dumps({"secret": pseudonyms.secret.hex(), "cases": who}, indent=2) + "\n"
    part = folder / f"{atomic.PREFIX}{secrets.token_hex(4)}-{KEY_NAME}"
    # The file is created with its final permissions: nobody can open it in between.
    number = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(number, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
    part.replace(folder / KEY_NAME)


def hide_names(dataset: Dataset, pseudonyms: Pseudonyms) -> Dataset:
    """Return a data set in which cases, splits and findings have pseudonyms.

    The ``Case`` objects keep their names and paths, because the readers need them.
    """
    known = {case.name: pseudonyms.of(case.name) for case in dataset.cases}
    known |= {name: pseudonyms.of(name) for name in dataset.left_out}
    splits = replace(
        dataset.case_splits,
        train=[known[name] for name in dataset.case_splits.train],
        val=[known[name] for name in dataset.case_splits.val],
        unused=[known[name] for name in dataset.case_splits.unused],
    )
    words = _words(dataset.cases, known)
    return replace(
        dataset,
        shown_names=known,
        case_splits=splits,
        left_out=sorted(known[name] for name in dataset.left_out),
        findings=[_hide(finding, dataset.cases, words, pseudonyms) for finding in dataset.findings],
    )


def _words(cases: Iterable[Case], known: Mapping[str, str]) -> dict[str, str]:
    """Map every text that identifies a case to its pseudonym: its name, patient and files."""
    words = dict(known)
    for case in cases:
        files = [case.image, case.labels, case.annotations, *(case.files or ())]
        for path in filter(None, files):
            words[str(path)] = words[path.name] = known[case.name]
        if case.patient:
            words[case.patient] = known[case.name]
    return words


def _hide(
    finding: Finding, cases: Iterable[Case], words: Mapping[str, str], pseudonyms: Pseudonyms
) -> Finding:
    """Return a finding without real names of files, cases and patients."""
    path = Path(finding.file)
    folders = {folder for case in cases for folder in case.image.parents}
    shown = "a folder of the data" if path in folders else pseudonyms.of(path.name)
    # Longest first, so a name inside another one does not leave the rest of it.
    words = {finding.file: shown, path.name: shown, **words}
    longest = sorted((w for w in words if len(w) >= _SHORTEST), key=len, reverse=True)
    # A name counts only as a whole: "scan_1" is not a part of "scan_10".
    names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")
    others = re.compile(r"(?<![\w)])(?:[A-Za-z]:)?[\\/][^\s,;:]+")  # other absolute paths
    message, fix = (
        others.sub("(a file)", names.sub(lambda found: words[found[0]], text))
        for text in (finding.message, finding.fix)
    )
    return replace(finding, file=words[finding.file], message=message, fix=fix)
