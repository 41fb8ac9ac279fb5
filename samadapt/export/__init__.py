"""Export adapters for other programs: one file a target. Every export is read back and compared."""

from samadapt.export import anylabeling, hf, onnx, peft, sam, web
from samadapt.export.target import TARGETS, Exported, Target, export_adapter

__all__ = [
    "TARGETS",
    "Exported",
    "Target",
    "anylabeling",
    "export_adapter",
    "hf",
    "onnx",
    "peft",
    "sam",
    "web",
]
