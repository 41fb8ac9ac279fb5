"""Adapters that other projects trained, read as ours: one file a source, known by its keys."""

from samadapt.imports import peft_directory, slices, surgery
from samadapt.imports.adopt import Imported, import_adapter
from samadapt.imports.foreign import READERS, Foreign

__all__ = [
    "READERS",
    "Foreign",
    "Imported",
    "import_adapter",
    "peft_directory",
    "slices",
    "surgery",
]
