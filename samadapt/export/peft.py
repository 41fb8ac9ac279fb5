"""``to=peft``: a PEFT directory for ``PeftModel.from_pretrained``, with SAM's or HF's names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from samadapt.adapters.snippets import Snippet, with_peft
from samadapt.errors import AdapterError, ConfigError, nearest
from samadapt.export import hf
from samadapt.export.target import Target, register
from samadapt.methods.peft_library import PREFIX
from samadapt.sam.weights.builds import BUILDS

if TYPE_CHECKING:
    from samadapt.adapters.base_model import Adapted
    from samadapt.export.probe import ProbedModel
    from samadapt.sam.model import Sam

NAMINGS = ("sam", "transformers")


@register("peft")
@dataclass(frozen=True)
class Peft(Target):
    """A PEFT directory, loaded without samadapt.

    Attributes:
        naming: ``"sam"``: segment-anything's module names, for its models and ours;
            ``"transformers"``: those of its ``SamModel``.

    Raises:
        ConfigError: for another naming.
    """

    summary: ClassVar[str] = "a PEFT directory for segment-anything's or transformers' module names"
    extra: ClassVar[str] = "hf"

    naming: Literal["sam", "transformers"] = "sam"

    def __post_init__(self) -> None:
        """Check the naming."""
        if self.naming not in NAMINGS:
            raise ConfigError(
                f"naming must be {' or '.join(NAMINGS)}; got {self.naming!r}"
                f"{nearest(self.naming, NAMINGS)}"
            )

    @property
    def limit(self) -> float | None:
        """Largest difference allowed, as a share of the largest logit (at least 1); None: any."""
        return 1e-5

    def refusal(self, adapted: Adapted) -> str:
        """Refuse methods that peft does not have, or that it cannot add to a plain base."""
        method, own = adapted.injection.method, BUILDS[adapted.record.base].num_multimask
        if not method.plain_peft:
            # A method with a ``kind`` runs on layers of peft, but with hooks of ours, as OFT does.
            needs = f"peft's {method.name} does not take SAM's grid of tokens without samadapt"
            return needs if hasattr(method, "kind") else f"{method.name} is no kind of peft's"
        if adapted.record.quantize:
            return (
                "it was trained beside weights in 4 bits, which samadapt rounds when it loads the "
                "adapter and peft would not"
            )
        if adapted.record.class_tokens:
            return (
                f"its {adapted.record.class_tokens} classes have tokens of their own, which peft "
                "cannot add to the base model"
            )
        if adapted.record.trains_memory:
            return (
                "it trains the memory of SAM 2 (peft.memory=full), which lies beside the model "
                "that peft adapts"
            )
        if not adapted.injection.plain_peft:
            return (
                f"{method.name} with decoder={method.decoder} is two kinds of peft's at once, and "
                "a PEFT directory holds one"
            )
        if adapted.record.num_masks != own:
            return (
                f"it has {adapted.record.num_masks} mask outputs, one per class, and peft cannot "
                f"give the base model more than its {own}"
            )
        if self.naming == "sam":
            return ""
        if adapted.sam.build.version != "1":
            return (
                "transformers' names of SAM 2 and SAM 3 are not supported here; use naming=sam, or "
                "to=hf for a merged model"
            )
        return hf.no_such_encoder(adapted)

    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Copy the two files of the adapter; for transformers, rename the modules in them."""
        from safetensors.torch import load_file, save_file

        from samadapt.adapters.store import PEFT_CONFIG, WEIGHTS
        from samadapt.adapters.verify import read_json, write_json

        source = adapted.directory
        if self.naming == "sam":
            for name in (WEIGHTS, PEFT_CONFIG):
                shutil.copy(source / name, folder / name)
            return []
        rename = Renaming(adapted.sam)
        tensors = load_file(source / WEIGHTS)
        renamed = {rename.key(name): value for name, value in tensors.items()}
        save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / PEFT_CONFIG, rename.values(read_json(source / PEFT_CONFIG)))
        return []

    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel:
        """Load it onto a fresh base with peft."""
        from peft import PeftModel

        from samadapt.sam.weights.loading import load_sam

        record = adapted.record
        sam = load_sam(record.base, adapted.checkpoint, record.image_size)
        if self.naming == "sam":
            PeftModel.from_pretrained(sam, str(folder))  # changes sam in place
            return sam.eval()
        model = base_in_transformers(sam)
        adapted_model = PeftModel.from_pretrained(model, str(folder))
        return hf.TransformersModel(adapted_model.eval().base_model.model)

    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return code that puts it onto the base with peft."""
        from samadapt.sam.weights.sources import known_weights

        record = adapted.record
        if self.naming == "sam":
            return with_peft(record)
        source, build = known_weights.get(record.base), BUILDS[record.base]
        published = source.hub if source and not record.checkpoint else ""
        name = published or "PATH/OF/THE/BASE"
        text = "`pip install peft transformers`, without samadapt."
        if record.image_size != build.image_size:
            name = "PATH/OF/THE/BASE"
            text += (
                f" The published base is for {build.image_size} px and transformers does not "
                f"resample its position tables to the {record.image_size} px of this adapter: make "
                "the base once with samadapt, `from samadapt.export.peft import "
                "base_in_transformers` and `base_in_transformers(samadapt.load_sam("
                f'"{record.base}", image_size={record.image_size})).save_pretrained(...)`.'
            )
        code = (
            "from peft import PeftModel\nfrom transformers import SamModel\n\n"
            f'base = SamModel.from_pretrained("{name}", {ITS_EPSILON})\n'
            'model = PeftModel.from_pretrained(base, ".")  # the folder of this page'
        )
        return Snippet("With peft and transformers", text, code)


ITS_EPSILON = 'mask_decoder_config={"layer_norm_eps": 1e-5}'
"""The epsilon of segment-anything. The published configurations have 1e-6, which changes logits of
a random vit_b by 3e-5 of 0.4."""


def base_in_transformers(sam: Sam) -> Any:
    """Return a plain model as transformers' ``SamModel``."""
    hf.require_transformers()
    import transformers

    model = transformers.SamModel(hf.configuration(sam))
    state = sam.state_dict()
    model.load_state_dict({theirs: state[ours] for theirs, ours in hf.names(model).items()})
    return model


def transformers_names(sam: Sam) -> dict[str, str]:
    """Map state-dict names of transformers' ``SamModel`` to ours, for a model of the same sizes."""
    hf.require_transformers()
    import torch
    import transformers

    # Only the names are needed, so no memory is allocated.
    with torch.device("meta"):
        return hf.names(transformers.SamModel(hf.configuration(sam)))


class Renaming:
    """Renames our modules to those of transformers' ``SamModel``."""

    def __init__(self, sam: Sam) -> None:
        """Take transformers' names from an empty model of the same sizes."""
        self.parameters = {ours: theirs for theirs, ours in transformers_names(sam).items()}
        self.modules = {
            ours.rpartition(".")[0]: theirs.rpartition(".")[0]
            for ours, theirs in self.parameters.items()
        }

    def key(self, name: str) -> str:
        """Rename a stored tensor: a parameter of the base, or one that peft adds to a module.

        Tensors that all modules share, such as ``base_model.vera_A``, are stored beside the model
        and keep their names.

        Raises:
            AdapterError: for a tensor that belongs to no module.
        """
        if not name.startswith(PREFIX):
            return name
        bare = name.removeprefix(PREFIX)
        if bare in self.parameters:
            return PREFIX + self.parameters[bare]
        # Cut the path from the end until it names a module: a.b.lora_A.weight belongs to a.b.
        module = bare
        while module and module not in self.modules:
            module = module.rpartition(".")[0]
        if not module:
            raise AdapterError(f"naming=transformers: {name} belongs to no module of SamModel")
        return PREFIX + self.modules[module] + bare.removeprefix(module)

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Rename all module names in ``adapter_config.json``."""
        return {key: self._value(value) for key, value in config.items()}

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self._value(key): self._value(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._value(inner) for inner in value]
        # Module names occur in lists such as target_modules and as keys of rank_pattern.
        return self.modules.get(value, value) if isinstance(value, str) else value
