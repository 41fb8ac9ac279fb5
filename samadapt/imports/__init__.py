"""Adapters that other projects trained, read as ours: one file a source, known by its keys."""

from samadapt.imports import peft_directory, slices, surgery
from samadapt.imports.adopt import Imported, import_adapter
from samadapt.imports.foreign import FOREIGN_FORMATS, Foreign

__all__ = [
    "FOREIGN_FORMATS",
    "Foreign",
    "Imported",
    "import_adapter",
    "peft_directory",
    "slices",
    "surgery",
]
