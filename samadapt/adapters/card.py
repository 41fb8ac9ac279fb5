"""The model card of an adapter: ``README.md`` in its directory, a page for people.

It says what the adapter finds, on which base and at which size, what it was trained on, how good it
is and where not, and how to use it. The block in front of the page is metadata for the Hugging Face
Hub: base model, licence, and the scores as a ``model-index``.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Any

import yaml

from samadapt.adapters.snippets import (
    Snippet,
    as_onnx,
    is_volume,
    prompt_kind,
    with_peft,
    with_samadapt,
)
from samadapt.sam.weights.builds import BUILDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from samadapt.adapters.record import AdapterRecord
    from samadapt.sam.weights.sources import WeightsSource

OVERLAPPING = "a pixel may belong to several classes: each class is where its own logit is above 0"

OWN_BACKGROUND_TOKEN = "a token of its own, whose logit is subtracted from those of the classes"

BACKGROUND_TOKEN = (
    "mask token 0 (the single mask): a pixel's label is the largest of all tokens, so take its "
    "logit from the classes' logits before you compare them with 0"
)

_PROMPTS = {
    "box": "a box around each object",
    "point": "a click in each object",
    "interactive": "a click or a box for each object, and clicks that correct its mask",
    "scribble": "a scribble along each object",
    "mask": "a rough mask of each object",
    "semantic": "no prompt",
    "auto": "no prompt (a network makes one for each class)",
}
_STATES = {"zero_shot": "before training", "adapted": "adapted"}
_NONE = "\N{EN DASH}"


SAM_LICENCE = "SAM License"
"""The licence of SAM 3, which has no SPDX name."""


def model_card(
    record: AdapterRecord,
    trainable: int | None,
    *,
    plain_peft: bool = False,
    library: str = "samadapt",
    title: str = "",
    uses: Sequence[Snippet] = (),
    facts: Mapping[str, str] | None = None,
) -> str:
    """Return README.md of an adapter directory or of an export, in Markdown.

    Args:
        record: the record of the adapter.
        trainable: number of trained parameters; None: not known.
        plain_peft: whether the peft library alone can load the adapter.
        library: the library that loads it, under its name on the Hugging Face Hub.
        title: the heading; empty: classes and base.
        uses: ways of using it; empty: those of an adapter directory.
        facts: further rows of the table; rows without text are left out.
    """
    if record.checkpoint:
        record = replace(record, checkpoint=PureWindowsPath(record.checkpoint).name)
    rows = {**_facts(record, trainable), **(facts or {})}
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items() if value)
    if not uses:
        refusal = "" if plain_peft else _why_no_peft(record)
        uses = [with_samadapt(record), with_peft(record, refusal), as_onnx(record)]
    metadata = _metadata(record, "peft" if plain_peft else library, is_adapter=plain_peft)
    parts = [
        f"---\n{metadata}---",
        f"# {_cell(title or _title(record))}",
        _cell(_opening(record)),
        f"| | |\n|---|---|\n{table}",
        f"## Scores\n\n{_scores(record)}",
        "## Limits\n\n" + "\n".join(f"- {_cell(limit)}" for limit in _limits(record)),
        "## Use",
        *(_section(use) for use in uses),
    ]
    return "\n\n".join(parts) + "\n"


def base_licence(base: str) -> str:
    """Return the name of the licence of published base weights; empty if unknown."""
    source = _source(base)
    return source.licence if source else ""


def base_name(record: AdapterRecord) -> str:
    """Return the base for ``base_model_name_or_path``: a repository on the Hub, a file or a name.

    Weights that the user gave may differ from the published ones, so they are named by their file.
    """
    source = _source(record.base)
    if record.checkpoint:
        return PureWindowsPath(record.checkpoint).name
    return source.hub if source and source.hub else record.base


def fits_plain_base(record: AdapterRecord) -> bool:
    """Return whether the base of an adapter is a published model as it is.

    peft cannot add mask tokens to the base, nor round its weights to 4 bits.
    """
    build = BUILDS.get(record.base)
    return not record.quantize and (build is None or record.num_masks == build.num_multimask)


def _source(base: str) -> WeightsSource | None:
    from samadapt.sam.weights.sources import known_weights  # it imports torch

    return known_weights.get(base)


def _is_unet(record: AdapterRecord) -> bool:
    return record.method.get("name") == "unet"


def _base_title(record: AdapterRecord) -> str:
    source = _source(record.base)
    return source.title if source else record.base


def _title(record: AdapterRecord) -> str:
    what = ", ".join(record.classes[:3]) + (" and more" if len(record.classes) > 3 else "")
    by = "U-Net" if _is_unet(record) else f"{_base_title(record)} + {record.method['name']}"
    return f"{what or 'Objects'}: {by}"


def _opening(record: AdapterRecord) -> str:
    """Return what the adapter is, in one or two sentences."""
    kind = record.prompt.get("kind", "box")
    kinds = list(record.prompt.get("shares") or {kind: 1})
    prompts = "; or ".join(_PROMPTS.get(name, name) for name in kinds)
    seen = f"{record.axis} slices of volumes" if is_volume(record) else "pictures"
    classes = ", ".join(record.classes) or "objects"
    finds = "each object of" if record.separates_objects else "all of"
    if _is_unet(record):
        return f"A U-Net, trained from scratch by samadapt. It segments {classes} in {seen}."
    text = (
        f"An adapter for {_base_title(record)}, trained with samadapt. It segments {classes} in "
        f"{seen}, with this prompt: {prompts}."
    )
    if kind in ("semantic", "auto"):
        text = (
            f"An adapter for {_base_title(record)}, trained with samadapt. It finds {finds} "
            f"{classes} in {seen} with {prompts}."
        )
    if record.prompt.get("clip"):
        text += (
            " In volumes an object is prompted on one slice, and the memory of SAM 2 carries it to "
            "the others (`propagate=memory`); the scores below are those of this use."
        )
    if record.trains_memory:
        text += " The memory was trained too and is part of the adapter."
    return f"{text} Pictures are resized to {record.image_size} px, and the base is built for that."


def _facts(record: AdapterRecord, trainable: int | None) -> dict[str, str]:
    """Return the rows of the table; rows without text are left out."""
    from samadapt.data.intensity import describe_intensity

    published = "" if record.checkpoint else base_licence(record.base)
    unknown = f"that of the weights given ({record.checkpoint})" if record.checkpoint else ""
    licence = record.licence or published or unknown or "see the source of the base weights"
    options = ", ".join(
        f"{key}={_plain(value)}" for key, value in record.method.items() if key != "name"
    )
    base = f"{_base_title(record)} (`{record.base}`), sha256 of its tensors `{record.base_sha256}`"
    return {
        "Base": "" if _is_unet(record) else base,
        "Licence of the base": "" if _is_unet(record) else licence,
        "Base in 4 bits": "rounded to nf4 when the adapter is loaded" if record.quantize else "",
        "Image size": f"{record.image_size} px",
        "Intensity": describe_intensity(record.intensity) if record.intensity else "not recorded",
        "Channels": str(record.input_channels) if record.input_channels > 3 else "",
        "Classes": ", ".join(record.classes) or "not recorded",
        "Overlap": OVERLAPPING if record.overlapping else "",
        "Head": _head(record),
        "Background": _background(record) if record.prompt.get("background_token") else "",
        "Method": f"{record.method['name']} ({options})",
        "Trained parameters": "" if trainable is None else f"{trainable:,}",
        "Data": _data(record),
        "Started from": _started_from(record.init) if record.init else "",
        # The file of a recipe of one's own: a published card shows no folder of the author.
        "Recipe": PureWindowsPath(record.recipe).name if record.recipe else "not recorded",
        "Created": record.created or "not recorded",
    }


def _head(record: AdapterRecord) -> str:
    if not record.head:
        return ""
    what = "objects, separated by a watershed" if record.separates_objects else "classes"
    side = record.head.get("side")
    return f"a decoder for {what}" + (f", at {side} px" if side else "")


def _data(record: AdapterRecord) -> str:
    """Return the name of the data set and how much of it was trained on."""
    text = record.data or "not recorded"
    if not record.trained_on:
        return text
    slices = [found for found in record.trained_on.values() if found is not None]
    count = f"{len(record.trained_on)} training image" + "s" * (len(record.trained_on) > 1)
    return f"{text}: {count}" + (f", {sum(map(len, slices))} slices of them" if slices else "")


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


def _why_no_peft(record: AdapterRecord) -> str:
    """Return why the peft library alone cannot load an adapter."""
    if _is_unet(record):
        return "a U-Net is no adapter of SAM"
    if record.quantize:
        return "the base is rounded to 4 bits as in training, which peft would not do"
    build = BUILDS.get(record.base)
    if build and record.num_masks != build.num_multimask:
        return f"it has {record.num_masks} mask tokens, and peft leaves the base its number of them"
    if record.class_tokens:
        return "its classes have tokens of their own, which peft cannot add to the base"
    if record.trains_memory:
        return "it trains the memory of SAM 2, which lies beside the model that peft adapts"
    if record.head or record.makes_prompts or record.input_channels > 3:
        return "it has trained parts beside SAM, which peft does not know"
    return f"{record.method['name']} with these options is not one kind of layer of peft"


def _scores(record: AdapterRecord) -> str:
    """Return the tables of scores before and after training, with 95 % intervals."""
    states = {key: record.scores.get(key) for key in _STATES}
    found = {key: value for key, value in states.items() if isinstance(value, dict)}
    if not found:
        reason = record.scores.get("reason")
        return _cell(f"Not evaluated{f': {reason}' if reason else ''}.")
    names = {**_STATES, "adapted": "U-Net"} if _is_unet(record) else _STATES
    lines = [
        "| class | model | cases | Dice [95 %] | IoU [95 %] | HD95 |",
        "|---|---|---|---|---|---|",
    ]
    for key, state in found.items():
        classes = state.get("per_class")
        classes = classes if isinstance(classes, dict) else {}
        lines += [_row(str(name), names[key], entry) for name, entry in classes.items()]
        if len(classes) != 1:
            lines.append(_row("mean of the classes", names[key], state))
    return "\n".join([*lines, *_by_prompt(record.scores)])


def _row(name: str, state: str, entry: Mapping[str, Any]) -> str:
    detail = entry.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    unit = str((detail.get("hd95") or {}).get("unit", ""))
    hd95 = _number(entry, detail, "hd95", ".1f")
    cells = [
        name,
        state,
        str(entry.get("cases", _NONE)),
        _number(entry, detail, "dice", ".3f"),
        _number(entry, detail, "iou", ".3f"),
        hd95 if hd95 == _NONE else f"{hd95} {unit}".strip(),
    ]
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _number(entry: Mapping[str, Any], detail: Mapping[str, Any], name: str, form: str) -> str:
    """Return a score with its interval; a dash if it does not exist."""
    value = entry.get(name)
    if not isinstance(value, int | float):
        return _NONE
    bounds = (detail.get(name) or {}).get("interval")
    text = f"{value:{form}}"
    return f"{text} [{bounds[0]:{form}}, {bounds[1]:{form}}]" if bounds else text


def _by_prompt(scores: Mapping[str, Any]) -> list[str]:
    """Return a table with the Dice of each kind of prompt, if there are several."""
    kinds = scores.get("by_prompt")
    if not isinstance(kinds, dict):
        return []
    lines = ["", "| prompt | Dice before training | Dice adapted |", "|---|---|---|"]
    for kind, entry in kinds.items():
        found = [(entry.get(state) or {}).get("dice") for state in _STATES]
        cells = [kind, *(_NONE if dice is None else f"{dice:.3f}" for dice in found)]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _limits(record: AdapterRecord) -> list[str]:
    """Return what the reader must know before trusting the adapter."""
    limits = []
    scores = record.scores
    if scores.get("oracle_prompt"):
        limits.append(
            "The scores are for prompts taken from the ground truth, which is an upper bound of "
            "real use."
        )
    elif isinstance(scores.get("zero_shot"), dict):
        limits.append(
            "Before training the base was given exact boxes from the ground truth, since it knows "
            "no classes; the adapted model had no prompt."
        )
    if not isinstance(scores.get("adapted"), dict):
        limits.append("How good it is on images that it was not trained on is not known.")
    elif _has_no_interval(scores["adapted"]):
        limits.append("So few cases were scored that there is no interval.")
    limits.append(
        f"It was trained on {record.data or 'images that are not recorded'}. Other devices, "
        "stains, sites or species were not tested, unless the scores say so."
    )
    if record.intensity.get("kind", "rgb") != "rgb" or "kind" not in record.intensity:
        limits.append(
            "Images must have the values of the training files (HU for CT). Only samadapt applies "
            "the intensity rule by itself; the other code does it as written."
        )
    limits += _limits_of_code(record)
    return limits


def _has_no_interval(state: Mapping[str, Any]) -> bool:
    """Return whether no class of a state has an interval of its Dice."""
    entries = [state, *(state.get("per_class") or {}).values()]
    details = [entry.get("detail") or {} for entry in entries if isinstance(entry, dict)]
    return not any((detail.get("dice") or {}).get("interval") for detail in details)


def _limits_of_code(record: AdapterRecord) -> list[str]:
    """Return what samadapt does and the code without it does not."""
    limits = []
    shares = record.prompt.get("shares")
    kinds = list(shares) if isinstance(shares, dict) else []
    if others := [kind for kind in kinds if kind != prompt_kind(record)]:
        limits.append(
            f"It also answers to these prompts, which the code below does not show: "
            f"{', '.join(others)}."
        )
    if prompt_kind(record) == "interactive" or {"point", "interactive"} & set(kinds):
        limits.append(
            "samadapt answers several clicks on an object one after another, each with the last "
            "mask as a prompt; the code without samadapt answers the first click."
        )
    if record.data_options.get("tile"):
        limits.append(
            f"It was trained on tiles of {record.data_options['tile']} px. samadapt cuts larger "
            "pictures into such tiles; the code without samadapt takes one tile."
        )
    if record.keep_largest:
        limits.append(
            "In volumes samadapt keeps only the largest component of "
            f"{', '.join(record.keep_largest)}; the code without samadapt keeps all."
        )
    if is_volume(record) and not _is_unet(record):
        limits.append("The code without samadapt segments one slice, and not a whole volume.")
    return limits


def _section(use: Snippet) -> str:
    # A name in the code may hold backticks, which must not end the block.
    longest = max(map(len, re.findall("`+", use.code)), default=0)
    fence = "`" * max(3, longest + 1)
    code = f"\n\n{fence}python\n{use.code}\n{fence}" if use.code else ""
    return f"### {use.title}\n\n{use.text}{code}"


def _metadata(record: AdapterRecord, library: str, *, is_adapter: bool) -> str:
    """Return the metadata of the Hugging Face Hub as YAML."""
    published = "" if record.checkpoint else base_licence(record.base)
    source = None if record.checkpoint else _source(record.base)
    semantic = prompt_kind(record) in ("semantic", "auto") or _is_unet(record)
    licence = _identifier(record.licence or published)
    values: dict[str, Any] = {"library_name": library, "license": licence or "other"}
    if licence == _identifier(SAM_LICENCE):  # the Hub knows no such name
        values |= {"license": "other", "license_name": licence}
    # The Hub takes names of its repositories alone, so other bases are named in the text.
    if source and source.hub:
        relation = {"base_model_relation": "adapter"} if is_adapter else {}
        values |= {"base_model": source.hub, **relation}
    values |= {
        "pipeline_tag": "image-segmentation" if semantic else "mask-generation",
        "tags": ["segment-anything", "image-segmentation", "samadapt"],
    }
    if results := _results(record):
        values["model-index"] = [{"name": _one_line(_title(record)), "results": results}]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def _results(record: AdapterRecord) -> list[dict[str, Any]]:
    """Return the scores of the adapted model as results of a ``model-index``."""
    state = record.scores.get("adapted")
    if not isinstance(state, dict):
        return []
    entries = {"": state}
    per_class = state.get("per_class")
    if isinstance(per_class, dict) and len(per_class) > 1:
        entries |= {str(name): entry for name, entry in per_class.items()}
    metrics = [
        {
            "type": metric,
            "value": round(float(entry[metric]), 4),
            "name": _one_line(f"{title} of {name}" if name else f"{title}, mean of the classes"),
        }
        for name, entry in entries.items()
        for metric, title in (("dice", "Dice"), ("iou", "IoU"))
        if isinstance(entry.get(metric), int | float)
    ]
    name = _one_line(record.data) or "not recorded"
    dataset = {"name": name, "type": _identifier(name)}
    task = {"type": "image-segmentation", "name": "Image segmentation"}
    return [{"task": task, "dataset": dataset, "metrics": metrics}] if metrics else []


def _plain(value: object) -> str:
    """Return the value of an option as a person types it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "null" if value is None else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table.

    Names of classes, data sets and recipes come from users and are shown on web pages, so they must
    not contain HTML. Markdown escapes HTML inside `code` itself; the rest is escaped here.
    """
    # A line break would end the row, and a "|" would start a new cell.
    parts = re.split(r"(`[^`]*`)", _one_line(text))
    shown = [part if part.startswith("`") else html.escape(part, quote=False) for part in parts]
    return "".join(shown).replace("|", "\\|")


def _identifier(name: str) -> str:
    """Return a name under its form on the Hugging Face Hub: lower case, safe in YAML."""
    return re.sub(r"[^a-z0-9.+-]", "-", name.lower())
