"""The keys of ``samadapt evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from samadapt.config.schema import Cache, Data, Device, Eval, Output, Precision, Prompts
from samadapt.system.typed import knob


@dataclass(frozen=True)
class EvaluatePrompts(Prompts):
    """Prompts made from the ground truth; null: as the adapter was trained."""

    name: Literal["box", "point", "semantic", "matrix"] = knob(  # type: ignore[assignment]
        "box", help="semantic: none; matrix: none, clicks, good and bad boxes, side by side"
    )


@dataclass(frozen=True)
class EvaluateArguments:
    """The keys of ``samadapt evaluate``."""

    adapter: str = knob(help="adapter directory")
    all_cases: bool = knob(False, help="score every case, trained on or not")
    unseen: bool = knob(False, help="score every case that the adapter was not trained on")
    data: Data = field(default_factory=Data)
    prompts: EvaluatePrompts = field(default_factory=EvaluatePrompts)
    cache: Cache = field(default_factory=Cache)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    checkpoint: str | None = knob(None, help="file of the base weights; null: found by name")
    precision: Precision = knob("auto", help="auto: bf16 where the device is fast in it")
    device: Device = knob("auto", help="auto: cuda, then mps, then cpu")
    privacy: bool = knob(
        False, help="stable pseudonyms for case names, those of the adapter's run where it has any"
    )
