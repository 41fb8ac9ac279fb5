"""Import adapters of other projects: one file a source, which is recognised by its keys."""

from samadapt.imports import peft_directory, slices, surgery, surgery_sam2
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
    "surgery_sam2",
]
