"""The keys of ``samadapt evaluate``."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.config.prompt_settings import PromptSettings
from samadapt.config.schema import Cache, Data, Device, Eval, Output, Precision
from samadapt.prompts.policy import Kind
from samadapt.system.settings import List, Settings

ScoredPrompts = Literal[Kind, "propagate", "matrix", "volume_clicks", "one_slice"]


@dataclass(frozen=True)
class EvaluatePrompts(PromptSettings):
    """How prompts are made from the ground truth; by default as in the adapter's training."""

    name: ScoredPrompts = Field(  # type: ignore[assignment]
        default="box",
        description="kind of prompt: box, point, scribble, mask, interactive (three clicks), "
        "semantic or auto (no prompt), or propagate: a prompt on the middle slice of each object, "
        "which the memory of SAM 2 carries through its volume; or beside the kind of the adapter "
        "matrix: no prompt, clicks, good and bad boxes, drawings side by side; volume_clicks: "
        "a box and five clicks in a whole volume; or one_slice: a prompt on the middle slice of "
        "each object, carried by prompts, by masks and by the memory of SAM 2",
    )


@dataclass(frozen=True)
class EvaluateArguments(Settings):
    """The keys of ``samadapt evaluate``."""

    adapter: str | List[str] = Field(
        description="adapter directory, or hf:USER/NAME[@REVISION]; [a,b]: several, which are "
        "scored side by side"
    )
    all_cases: bool = Field(
        default=False, description="score every case, whether the adapter was trained on it or not"
    )
    unseen: bool = Field(
        default=False, description="score every case that the adapter was not trained on"
    )
    data: Data = field(default_factory=Data)
    prompts: EvaluatePrompts = field(default_factory=EvaluatePrompts)
    cache: Cache = field(default_factory=Cache)
    eval: Eval = field(default_factory=Eval)
    output: Output = field(default_factory=Output)
    propagate: Literal[True, "memory"] = Field(
        default=True,
        description="with prompts=volume_clicks: what carries objects to other slices; true: "
        "prompts made from their masks; memory: the memory of SAM 2",
    )
    checkpoint: str | None = Field(
        default=None, description="file of the base weights; null: search by the model's name"
    )
    precision: Precision = Field(
        default="auto",
        description="number format of the computation; auto: bf16 where the device is fast in it",
    )
    device: Device = Field(
        default="auto",
        description="where to compute; auto: cuda if there is one, then mps, then cpu",
    )
    privacy: bool = Field(
        default=False,
        description="replace case names by stable pseudonyms, those of the adapter's run if it has "
        "any",
    )
