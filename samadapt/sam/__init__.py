"""The Segment Anything Model, as in the papers.

Start with ``model`` (preprocess, encode, decode, postprocess). It is made of ``image_encoder`` or
``tiny_vit``, ``prompt_encoder`` and ``mask_decoder``. A file ``*_fast`` computes the same as the
file beside it, which is the textbook form, and the tests compare the two. ``embed`` and ``decode``
are the way from images to embeddings and from prompts to masks.

Names are imported when they are first used, so that importing ``samadapt.sam.weights.builds`` does
not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.sam.model import Sam, build_sam
    from samadapt.sam.types import AttentionBlock, Frame, MaskOutput, Preprocessing, Prompts
    from samadapt.sam.weights.builds import BUILDS, Build

__all__ = [
    "BUILDS",
    "AttentionBlock",
    "Build",
    "Frame",
    "MaskOutput",
    "Preprocessing",
    "Prompts",
    "Sam",
    "build_sam",
]

_HOME = {
    "BUILDS": "weights.builds",
    "Build": "weights.builds",
    "Sam": "model",
    "build_sam": "model",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'types')}"), name)
