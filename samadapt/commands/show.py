"""``samadapt show``: print a configuration, or draw the slices that it trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.config.compose import from_arguments, to_dict
from samadapt.config.schema import Config
from samadapt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """
Prints the configuration that `samadapt finetune` uses with the same arguments, as YAML, and trains
nothing. The output is itself a recipe: save it and use it with recipe=FILE.yaml.

With images=N it draws the first N slices of the training into a PNG instead, contact_sheet.png or
output=FILE. The slices are shown after intensity scaling and augmentation, with the outlines of the
classes, one draw of the prompts, and the number of objects that train in one step
(prompts.max_objects). No model is loaded.

`samadapt show schema` prints the JSON schema of recipes. Editors complete and check the keys of a
recipe that names it in its first lines:

  samadapt show schema > recipe.schema.json
  # yaml-language-server: $schema=recipe.schema.json
"""
SCHEMA = Config
MAX_IMAGES = 400


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the configuration as nested plain values, the JSON schema, or the drawn slices.

    Raises:
        ConfigError: the arguments are wrong. The message lists every problem.
        DataError: the files of the data set have errors.
    """
    if list(arguments) == ["schema"]:
        from samadapt.config.json_schema import recipe_schema

        return recipe_schema()
    # These two are no keys of a configuration, so they are taken out before it is composed.
    own = dict(a.split("=", 1) for a in arguments if a.startswith(("images=", "output=")))
    config = from_arguments([a for a in arguments if not a.startswith(("images=", "output="))])
    if not own:
        return to_dict(config)
    if "images" not in own:
        raise ConfigError("output=FILE says where images=N are drawn; add images=16")
    count = own["images"]
    if not count.isascii() or not count.isdecimal() or not 1 <= int(count) <= MAX_IMAGES:
        raise ConfigError(f"images: expected a whole number from 1 to {MAX_IMAGES}; got {count!r}")
    path = Path(own.get("output", "contact_sheet.png")).expanduser()
    from samadapt.runs.training_preview import draw_training_preview

    return {"output": str(path), "images": draw_training_preview(config, int(count), path)}


def render(result: dict[str, Any]) -> str:
    """Return the configuration as YAML, the schema as JSON, or the file that was drawn."""
    if isinstance(shown := result.get("images"), list):
        return f"{result['output']}: {len(shown)} slices, the first of the training"
    if "$schema" in result:
        import json

        return json.dumps(result, indent=2)
    import yaml

    text: str = yaml.safe_dump(result, sort_keys=False, allow_unicode=True)
    return text
