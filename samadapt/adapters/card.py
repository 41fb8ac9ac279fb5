"""The model card that lies beside an adapter."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

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


OVERLAPPING = "a pixel may be of several classes: each class is where its own logit is above 0"

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
        record: of the adapter.
        trainable: number of parameters that it holds.
        plain_peft: whether peft loads it onto the base by itself, beside samadapt.
        library: that loads it, as the Hugging Face Hub names it.
        title: the heading; "Adapter for" the base if empty.
        use: Python code that loads it.
        facts: further rows of the table; empty ones are left out.
    """
    options = ", ".join(f"{key}={value}" for key, value in record.method.items() if key != "name")
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
        **({"Overlap": OVERLAPPING} if record.overlapping else {}),
        "Prompts": _plain(record.prompt),
        **({"Background": BACKGROUND_TOKEN} if record.prompt.get("background_token") else {}),
        "Data": record.data or "not recorded",
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
    """Return the licence of published base weights, as SPDX names it; empty if unknown."""
    from samadapt.sam.weights.sources import known_weights

    return known_weights[base].licence if base in known_weights else ""


def _plain(values: object) -> str:
    return f"`{json.dumps(values)}`" if values else "not recorded"


def _cell(text: str) -> str:
    """Return a text that stays in its cell of a Markdown table and brings no HTML of its own.

    Names of classes, data sets and recipes come from users and are shown on web pages. Inside
    `code` Markdown escapes HTML itself, so only what lies outside of it is escaped here.
    """
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    shown = [part if part.startswith("`") else html.escape(part, quote=False) for part in parts]
    return "".join(shown).replace("|", "\\|")


def _identifier(licence: str) -> str:
    """Return a licence as the Hugging Face Hub names it: lower case, no other YAML."""
    return re.sub(r"[^a-z0-9.+-]", "-", licence.lower())
