"""Every kind of problem that a data set can have.

``samadapt check explain=CODE`` explains one code and ``explain=all`` all of them. The page
``docs/reference/findings.md`` is made from the same list. A finding names a file and what was found
there; its code explains the problem in general. The texts are in ``code_errors.py`` and
``code_warnings.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

from samadapt.data.checks.code_errors import ERRORS
from samadapt.data.checks.code_warnings import WARNINGS
from samadapt.errors import ConfigError, nearest

CODES = {**ERRORS, **WARNINGS}
"""All codes. A test compares them with the codes that the reading code uses."""


def explain_code(code: str) -> str:
    """Return the section about a code, in Markdown.

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
    """Return one section for each code, in alphabetical order, in Markdown."""
    head = (
        "# What `samadapt check` finds\n\n"
        "Each section explains one code. An **error** makes a case unusable: `finetune` and "
        "`evaluate` stop,\nor leave the case out with `data.on_error=skip`. A **warning** stops "
        "nothing. The files themselves\nare never changed.\n"
    )
    return "\n".join([head, *(explain_code(code) for code in sorted(codes))])
