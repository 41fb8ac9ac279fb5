"""Six sound volumes, which tests spoil."""

from __future__ import annotations

from pathlib import Path

import pytest
from scan_files import write_scans


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six sound cases; c0 and c5 are validation."""
    return write_scans(tmp_path / "scans")
