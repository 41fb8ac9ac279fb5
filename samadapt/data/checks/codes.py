"""Every kind of problem that a data set can have: one entry a code, and the page made of them.

``samadapt check explain=CODE`` shows one, ``explain=all`` the page ``datasets/CHECKS.md``. A
finding itself names the file and what was found there; its code says what that means in general.
The texts are in ``code_errors.py`` and ``code_warnings.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from samadapt.data.checks.code_errors import ERRORS
from samadapt.data.checks.code_warnings import WARNINGS
from samadapt.errors import ConfigError, nearest

CODES = {**ERRORS, **WARNINGS}
"""All codes; a test keeps them in step with the code that finds the problems."""


def explain_code(code: str) -> str:
    """Return the section of a code, in Markdown.

    Raises:
        ConfigError: there is no such code.
    """
    if code not in CODES:
        raise ConfigError(
            f"explain: there is no code {code!r}{nearest(code, CODES)}; explain=all lists them"
        )
    entry = CODES[code]
    return f"## {code}\n\n*{entry.severity}.* {entry.meaning}\n\n{entry.fix}\n"


def page(codes: Iterable[str] = CODES) -> str:
    """Return ``datasets/CHECKS.md``: one section a code."""
    head = (
        "# What `samadapt check` finds\n\n"
        "One section a code. An error makes a case unusable: `finetune` and `evaluate` stop, or "
        "leave the case\nout with `data.on_error=skip`. A warning does not. Files are never "
        "changed. This page is made by\n`samadapt check explain=all`.\n"
    )
    return "\n".join([head, *(explain_code(code) for code in sorted(codes))])
