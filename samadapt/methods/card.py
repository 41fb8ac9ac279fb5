"""The model card that lies beside an adapter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samadapt.methods.store import AdapterRecord

_LOAD_PEFT = """
Without samadapt, onto a model with segment-anything's parameter names and the same base weights:

```python
from peft import PeftModel
model = PeftModel.from_pretrained(sam, "this-directory")
```

(For `inject_adapter_in_model` and `set_peft_model_state_dict`, take `base_model.model.` off the
names.)
"""


def model_card(record: AdapterRecord, trainable: int, *, plain_peft: bool) -> str:
    """Return README.md of an adapter directory, in Markdown.

    Args:
        record: of the adapter.
        trainable: number of parameters that it holds.
        plain_peft: whether peft loads it onto the base by itself.
    """
    options = ", ".join(f"{key}={value}" for key, value in record.method.items() if key != "name")
    facts = {
        "Base": f"{record.base}, sha256 of its tensors `{record.base_sha256}`",
        "Licence of the base": record.licence or "see the source of the base weights",
        "Method": f"{record.method['name']} ({options})",
        "Trained parameters": f"{trainable:,}",
        "Input": f"{record.image_size} px, intensity {_plain(record.intensity)}",
        "Classes": ", ".join(record.classes) or "not recorded",
        "Prompts": _plain(record.prompt),
        "Data": record.data or "not recorded",
        "Recipe": record.recipe or "not recorded",
        "Created": record.created or "not recorded",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    scores = json.dumps(record.scores, indent=2) if record.scores else "not evaluated"
    by_peft = _LOAD_PEFT if plain_peft else ""
    return f"""---
library_name: {"peft" if plain_peft else "samadapt"}
tags: [segment-anything, image-segmentation, samadapt]
---

# Adapter for {record.base}

| | |
|---|---|
{rows}

## Scores

```json
{scores}
```

## Use

```python
import samadapt
segmenter = samadapt.load_adapter("this-directory")
mask = segmenter.segment("image.png")
```
{by_peft}"""


def _plain(values: object) -> str:
    return f"`{json.dumps(values)}`" if values else "not recorded"
