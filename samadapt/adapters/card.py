"""The model card of an adapter: ``README.md`` in its directory."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from samadapt.adapters.record import AdapterRecord

_LOAD_PEFT = """
Without samadapt, onto a model with segment-anything's parameter names and the same base weights:

```python
from peft import PeftModel
model = PeftModel.from_pretrained(sam, "this-directory")
```

(For `inject_adapter_in_model` and `set_peft_model_state_dict`, take `base_model.model.` off the
names.)
"""


_LOAD = """import samadapt
segmenter = samadapt.load_adapter("this-directory")
mask = segmenter.segment("image.png")"""


OVERLAPPING = "a pixel may belong to several classes: each class is where its own logit is above 0"

OWN_BACKGROUND_TOKEN = "a token of its own, whose logit is subtracted from those of the classes"

BACKGROUND_TOKEN = (
    "mask token 0 (the single mask): a pixel's label is the largest of all tokens, so take its "
    "logit from the classes' logits before you compare them with 0"
)


def model_card(
    record: AdapterRecord,
    trainable: int,
    *,
    plain_peft: bool = False,
    library: str = "samadapt",
    title: str = "",
    use: str = _LOAD,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return README.md of an adapter directory or of an export, in Markdown.

    Args:
        record: the record of the adapter.
        trainable: number of trained parameters.
        plain_peft: whether the peft library alone can load the adapter.
        library: the library that loads it, under its name on the Hugging Face Hub.
        title: the heading; empty: "Adapter for" and the base.
        use: Python code that loads the adapter.
        facts: further rows of the table; rows without text are left out.
    """
    options = ", ".join(f"{key}={value}" for key, value in record.method.items() if key != "name")
    # A file that the user gave may hold other weights than the published ones, so their licence is
    # not assumed.
    published = "" if record.checkpoint else base_licence(record.base)
    licence = record.licence or published
    unknown = (
        f"that of the weights given ({Path(record.checkpoint).name})" if record.checkpoint else ""
    )
    table = {
        "Base": f"{record.base}, sha256 of its tensors `{record.base_sha256}`",
        "Licence of the base": licence or unknown or "see the source of the base weights",
        "Method": f"{record.method['name']} ({options})",
        "Trained parameters": f"{trainable:,}",
        "Input": f"{record.image_size} px, intensity {_plain(record.intensity)}",
        "Classes": ", ".join(record.classes) or "not recorded",
        **({"Head": _plain(record.head)} if record.head else {}),
        **({"Overlap": OVERLAPPING} if record.overlapping else {}),
        "Prompts": _plain(record.prompt),
        **_by_prompt(record.scores),
        **({"Background": _background(record)} if record.prompt.get("background_token") else {}),
        "Data": record.data or "not recorded",
        **({"Started from": _started_from(record.init)} if record.init else {}),
        "Recipe": record.recipe or "not recorded",
        "Created": record.created or "not recorded",
        **{key: value for key, value in (facts or {}).items() if value},
    }
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in table.items())
    scores = json.dumps(record.scores, indent=2) if record.scores else "not evaluated"
    return f"""---
library_name: {"peft" if plain_peft else library}
license: {_identifier(licence) or "other"}
pipeline_tag: mask-generation
tags: [segment-anything, image-segmentation, samadapt]
---

# {_cell(title or f"Adapter for {record.base}")}

| | |
|---|---|
{rows}

## Scores

```json
{scores}
```

## Use

```python
{use}
```
{_LOAD_PEFT if plain_peft else ""}"""


def base_licence(base: str) -> str:
    """Return the SPDX name of the licence of published base weights; empty if unknown."""
    from samadapt.sam.weights.sources import known_weights

    return known_weights[base].licence if base in known_weights else ""


def _by_prompt(scores: Mapping[str, Any]) -> dict[str, str]:
    """Return a row with the Dice of each kind of prompt, if there are several."""
    kinds = scores.get("by_prompt")
    if not isinstance(kinds, dict):
        return {}
    parts = []
    for kind, entry in kinds.items():
        found = [(entry.get(state) or {}).get("dice") for state in ("adapted", "zero_shot")]
        after, before = ("unknown" if dice is None else f"{dice:.3f}" for dice in found)
        parts.append(f"{kind} {after} (zero-shot {before})")
    return {"Dice by prompt": ", ".join(parts)}


def _started_from(init: Mapping[str, Any]) -> str:
    """Return what the training started from, and what it took over."""
    parts = {"kept": "kept", "new": "new", "left_out": "left out"}
    took = [
        f"{name}: {', '.join(map(str, init[key]))}" for key, name in parts.items() if init.get(key)
    ]
    source = f"an adapter trained on {init.get('data') or 'unknown data'}"
    return f"{source}, sha256 of its weights `{init.get('weights_sha256')}`; " + "; ".join(took)


def _background(record: AdapterRecord) -> str:
    """Return what the token of the background is."""
    return OWN_BACKGROUND_TOKEN if record.class_tokens else BACKGROUND_TOKEN


def _plain(values: object) -> str:
    return f"`{json.dumps(values)}`" if values else "not recorded"


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table.

    Names of classes, data sets and recipes come from users and are shown on web pages, so they must
    not contain HTML. Markdown escapes HTML inside `code` itself; the rest is escaped here.
    """
    # A line break would end the row, and a "|" would start a new cell.
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    shown = [part if part.startswith("`") else html.escape(part, quote=False) for part in parts]
    return "".join(shown).replace("|", "\\|")


def _identifier(licence: str) -> str:
    """Return a licence under its name on the Hugging Face Hub: lower case, safe in YAML."""
    return re.sub(r"[^a-z0-9.+-]", "-", licence.lower())
