"""Write the pages of docs/reference and the notebooks of docs/notebooks.

    python docs/generate.py [--check]

The reference follows from the code: schema, registries and docstrings. The notebooks follow from
the tutorials. With ``--check`` nothing is written and the exit code is 1 if a file is stale.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any, get_type_hints

import jupytext

import samadapt
from samadapt import cli
from samadapt.adapters.record import RECORD, AdapterRecord
from samadapt.config.compose import recipes
from samadapt.config.finetune_arguments import FinetuneArguments
from samadapt.config.keys import groups_of, keys_of
from samadapt.config.schema import Config
from samadapt.data.checks.codes import CODES
from samadapt.data.formats.base import readers
from samadapt.evaluation.scores import SCORES
from samadapt.export import TARGETS
from samadapt.methods import METHODS
from samadapt.methods.base import Method
from samadapt.methods.peft_others import OtherPeft
from samadapt.sam.weights.builds import BUILDS
from samadapt.sam.weights.sources import known_weights
from samadapt.system.settings import describe_type
from samadapt.training.losses import LOSSES
from samadapt.training.losses.base import targets_text

DOCS = Path(__file__).resolve().parent
MADE = "<!-- Made by `python docs/generate.py`. Edit the code, not this page. -->"


def main() -> None:
    """Write every generated file, or with ``--check`` name the stale ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    check = parser.parse_args().check
    stale = {path: text for path, text in generated().items() if not is_current(path, text)}
    for path, text in stale.items():
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(DOCS.parent)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    sys.exit(1 if check and stale else 0)


def generated() -> dict[Path, str]:
    """Return the text of every generated file by its path."""
    pages = {DOCS / "reference" / f"{name}.md": make() for name, make in PAGES.items()}
    return pages | {
        DOCS / "notebooks" / f"{path.stem}.ipynb": notebook(path)
        for path in sorted((DOCS / "tutorials").glob("*.md"))
        if path.stem != "index"
    }


def is_current(path: Path, text: str) -> bool:
    """Return whether a file holds this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text


def page(title: str, *parts: str) -> str:
    """Return a page with its title and the note that it is generated."""
    return "\n\n".join([f"# {title}", MADE, *(part.strip() for part in parts)]) + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table. Pipes and line breaks in cells are escaped."""
    names = list(header)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = "yes" if value is True else "no" if value is False else str(value).replace("``", "`")
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").split())


def code(value: Any) -> str:
    """Return a value as inline code; an empty text stays empty."""
    return f"`{value}`" if str(value) else ""


def shown(value: Any) -> str:
    """Return a default as a user would type it on the command line."""
    if value is MISSING:
        return ""
    if isinstance(value, tuple | list):
        return "[" + ",".join(shown(member) for member in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def key_table(schema: type[Any], prefix: str = "", leave_out: Iterable[str] = ()) -> str:
    """Return the keys of a schema with default, type and meaning."""
    rows = []
    for name, key in keys_of(schema, prefix=prefix).items():
        if name.partition(".")[0] in leave_out:
            continue
        default = code(shown(key.default)) if key.default is not MISSING else "required"
        rows.append([code(name), default, describe_type(key.annotation), key.description])
    return table(["key", "default", "type", "meaning"], rows)


def keys_page() -> str:
    """Return the keys of a run, group by group."""
    intro = (
        "These keys make up the configuration of `samadapt finetune` and of a recipe. On the "
        "command line they are written `group.key=value`; `group=option` is short for "
        "`group.name=option`. The values of the command line take precedence over those of the "
        "recipe, and those over the defaults below. `samadapt show recipe=NAME` prints the "
        "result; `samadapt ls keys GROUP` and `samadapt finetune --help GROUP` print the keys of "
        "one group.\n\n"
        '`null` stands for "not set". Text with other characters than letters, digits and '
        "`./_-` is quoted twice, as in `'data.label=\"*/seg.nii.gz\"'`. A list is written "
        "`[a,b]`, a mapping `{name: value}`.\n\n"
        "The keys of `peft` depend on the method: see [methods](methods.md)."
    )
    parts = [intro]
    for name, group in groups_of(Config).items():
        if group is Method:
            continue
        doc = (inspect.getdoc(group) or "").partition("\n\n")[0]
        parts += [f"## {name}", doc, key_table(group, f"{name}.")]
    parts += ["## Keys without a group", key_table(Config, leave_out=groups_of(Config))]
    return page("Keys", *parts)


def commands_page() -> str:
    """Return every command with its help text and its own keys."""
    intro = (
        "Arguments are `key=value` pairs in any order. The flags "
        + ", ".join(f"`{flag}` ({meaning})" for flag, meaning in cli.FLAGS.items())
        + " work with every command. "
        + "`samadapt COMMAND --help GROUP` prints the keys of a group.\n\n"
        + "Exit codes: 0 for success, 2 for a mistake in the arguments or the data, 1 for a run "
        + "that failed, and 128 plus the number of a signal that ended it (130 for Ctrl-C)."
    )
    parts = [intro]
    for name, takes in cli.COMMANDS.items():
        module = import_module(f"samadapt.commands.{name}{'_' if iskeyword(name) else ''}")
        parts += [f"## {name}", cli.SUMMARIES[name].capitalize() + "."]
        parts += [f"```text\nsamadapt {name} {takes}".rstrip() + "\n```"]
        parts += command_parts(module)
        for stage, its in getattr(module, "STAGES", {}).items():
            parts += [f"### {name} {stage}", *command_parts(its)]
    return page("Commands", *parts)


def command_parts(command: Any) -> list[str]:
    """Return the help text of a command, or of a stage of one, and its keys."""
    parts = ["```text\n" + command.HELP.strip() + "\n```"]
    if command.SCHEMA in (Config, FinetuneArguments):
        parts.append("It takes the keys of a run: [keys](keys.md) and [methods](methods.md).")
    if command.SCHEMA is FinetuneArguments:
        parts.append("Where it runs:")
        parts.append(key_table(command.SCHEMA, leave_out=[item.name for item in fields(Config)]))
    elif command.SCHEMA not in (None, Config):
        groups = groups_of(command.SCHEMA)
        shared = [group for group in groups if group in groups_of(Config)]
        parts.append(key_table(command.SCHEMA, leave_out=[*shared, "launcher"]))
        if "launcher" in groups:
            parts.append("Where it runs: the keys of `launcher`, see [finetune](#finetune).")
        if shared:
            listed = ", ".join(f"`{group}`" for group in shared)
            parts.append(f"It also takes the groups {listed}: see [keys](keys.md).")
    return parts


def recipes_page() -> str:
    """Return every recipe as it is shipped."""
    intro = (
        "A recipe is a YAML file with the keys of a run. `recipe=NAME` names one of these, "
        "`recipe=FILE.yaml` one of yours. Every value can be overridden on the command line. What "
        "a recipe leaves out has the default of [keys](keys.md). `samadapt show schema` prints a "
        "JSON schema, with which editors complete and check a recipe."
    )
    parts = [intro]
    for name, path in recipes().items():
        text = path.read_text(encoding="utf-8").strip()
        parts += [f"## {name}", f"```yaml\n{text}\n```"]
    return page("Recipes", *parts)


def methods_page() -> str:
    """Return every method with what it can do and its keys."""
    intro = (
        "`peft=NAME` chooses what is trained in the encoder; `peft=[lora,layernorm]` combines "
        "methods that change different parts. [Choosing a method]"
        "(../how-to/choose-a-method.md) helps to decide, and the [method comparison]"
        "(../explanation/method-comparison.md) shows what was measured."
    )
    header = ["method", "learning rate", "merges", "plain peft", "in the decoder", "summary"]
    own: list[list[Any]] = []
    others: list[list[Any]] = []
    for name, m in METHODS.items():
        facts = [m.can_merge, m.plain_peft, m.takes_decoder, m.summary]
        rows = others if issubclass(m, OtherPeft) else own
        rows.append([f"[`{name}`](#{name})", f"{m.lr:g}", *facts])
    legend = (
        "*Learning rate*: the default of `train.lr`. *Merges*: the adapter can be folded into the "
        "weights of SAM, which `export to=sam`, `hf` and `onnx` need. *Plain peft*: the peft "
        "package loads the adapter without samadapt. *In the decoder*: `peft.decoder=own` is "
        "possible."
    )
    parts = [intro, table(header, own), legend]
    passed_on = "These are passed to peft as they are. They train and save; nobody compared them."
    parts += ["## More kinds of peft", passed_on, table(header, others)]
    parts += ["## Keys of every method", key_table(Method, "peft.")]
    shared = {item.name: item.default for item in fields(Method)}
    for name, method in METHODS.items():
        parts += [f"## {name}", method.summary[:1].upper() + method.summary[1:] + "."]
        differs = [
            item.name
            for item in fields(method)
            if item.name not in shared or item.default != shared[item.name]
        ]
        if differs:
            same = [item.name for item in fields(method) if item.name not in differs]
            parts.append(key_table(method, "peft.", leave_out=same))
    return page("Methods", *parts)


def losses_page() -> str:
    """Return every loss with what it is for, its formula and its keys."""
    intro = (
        "`loss=NAME` chooses the training loss. [Choose a loss](../how-to/choose-a-loss.md) helps "
        "to decide. Dice and the losses in its place are computed for each class over all images "
        "of a batch, or for each prompted object. Ignored pixels and the padding of the square "
        "have neither loss nor gradient in any of them."
    )
    rows = [["`auto`", "all prompts", "`dice_ce` for `prompts=semantic`, `sam` for all others"]]
    rows += [
        [f"[`{name}`](#{name})", targets_text(loss.fits), loss.summary]
        for name, loss in LOSSES.items()
    ]
    parts = [intro, table(["loss", "fits", "summary"], rows)]
    for name, loss in LOSSES.items():
        parts += [f"## {name}", inspect.getdoc(loss) or "", key_table(loss, "loss.")]
    return page("Losses", *parts)


def findings_page() -> str:
    """Return every problem that ``samadapt check`` can find."""
    intro = (
        "`samadapt check` reports each problem of a data set with its file and one of these codes. "
        "An error makes a case unusable: `finetune` and `evaluate` stop, or leave the case out "
        "with `data.on_error=skip`. A warning does not. No file is ever changed. "
        "`samadapt check explain=CODE` prints one entry."
    )
    parts = [intro]
    for severity in ("error", "warning"):
        rows = [
            [code(name), entry.meaning, entry.fix]
            for name, entry in sorted(CODES.items())
            if entry.severity == severity
        ]
        parts += [f"## {severity.capitalize()}s", table(["code", "meaning", "what to do"], rows)]
    return page("Findings", *parts)


def scores_page() -> str:
    """Return every score."""
    intro = (
        "Every score is computed for each class of each case, over the whole volume if there is "
        "one. [How scores are computed](../explanation/scores.md) explains the rules for empty "
        "masks, the means and the intervals. P is the prediction and T the ground truth."
    )
    best = {"high": "higher", "low": "lower", "zero": "nearer to 0"}
    rows = []
    for name, score in SCORES.items():
        unit = (
            f"{score.unit(True)} ({score.unit(False)} without spacing)" if score.unit(True) else ""
        )
        first = (inspect.getdoc(score.measure) or "").partition("\n\n")[0]
        rows.append(
            [code(name), score.heading, first.removeprefix("Return "), best[score.best], unit]
        )
    objects = (
        "`eval.instances=true` adds scores of numbered objects, `eval.instances=components` scores "
        "of connected components: average precision and panoptic quality, in `eval/objects.json`."
    )
    return page(
        "Scores", intro, table(["name", "in tables", "value", "better", "unit"], rows), objects
    )


def exports_page() -> str:
    """Return every export target with its options."""
    intro = (
        "`samadapt export adapter=DIR to=TARGET output=FOLDER` writes an adapter for another "
        "program, loads it back as that program does, and keeps it only if the masks agree. See "
        "[export](../how-to/export.md)."
    )
    rows = [
        [code(f"to={name}"), target.summary, code(target.extra), target.merges,
         ", ".join(code(f"{item.name}={shown(item.default)}") for item in fields(target))]
        for name, target in TARGETS.items()
    ]  # fmt: skip
    header = ["target", "what is written", "extra", "merges the adapter", "options"]
    return page("Export targets", intro, table(header, rows))


def data_page() -> str:
    """Return every data set card and every format."""
    from samadapt.data.cards import list_cards, load_card

    cards = [load_card(name) for name in list_cards()]
    rows = [[code(f"data={card.name}"), card.title, card.licence] for card in cards]
    names: dict[type[Any], list[str]] = {}
    for name, reader in sorted(readers().items()):
        if name not in {card.name for card in cards}:
            names.setdefault(reader, []).append(code(f"data={name}"))
    formats = [
        [", ".join(known), reader.summary, ", ".join(map(code, reader.suffixes)),
         ", ".join(map(code, reader.output_suffixes))]
        for reader, known in names.items()
    ]  # fmt: skip
    return page(
        "Data sets and formats",
        "A card in `datasets/` describes one data set; a format reads any folder of its kind, "
        "given as `data.root=PATH`. [Your data format](../how-to/data-format.md) says what to "
        "add for special cases.",
        "## Cards",
        table(["name", "data", "licence"], rows),
        "## Formats",
        table(["name", "what is read", "images", "predictions"], formats),
    )


SAM2_COSTS = {
    "t": (31.4, 156, (13, 56, 284)),
    "s": (38.5, 184, (17, 72, 346)),
    "b+": (73.3, 324, (33, 138, 619)),
    "l": (216.9, 898, (107, 434, 1821)),
}
"""Of each size: millions of weights, MB of the file, and GFLOP of the encoder at 256, 512 and 1024
pixels, as torch's ``FlopCounterMode`` counts ours (padded tokens of windows are never computed)."""

SAM3_COSTS = (457.4, 3450, (580, 1387, 5611))
"""The same of the tracker of SAM 3 at 336, 504 and 1008 pixels, without its text and detection."""

SAM3 = """## SAM 3

`sam3_tracker` is the part of SAM 3 that points, boxes and masks prompt: its image encoder, and the
neck, prompt encoder and mask decoder of its tracker. Text prompts, the detection of all objects of
a concept and the memory for video are out of scope: their weights are counted in the log and not
read, and a directory of transformers' `Sam3Model`, which has no tracker, is refused.

Its weights have a licence of their own, the SAM License, which also binds those who pass on an
adapter with its base; Meta gives them out on request. `model.checkpoint` takes `sam3.pt` or a
directory of transformers' `Sam3TrackerModel`, `Sam3TrackerVideoModel` or `Sam3VideoModel`. No
weights of it were at hand: masks, IoU and object scores equal those of `Sam3TrackerModel` on
random weights, and accuracy, memory and speed are not measured. It needs a GPU at 1008 pixels;
`model.image_size=336` or `672` fills its windows without padding. `export` writes it to peft, hf
and onnx."""

CHOICE = """## Which one

- On a CPU: `lite_medsam` for medical data, `vit_t` or `sam2_t` for other pictures.
- For comparison with published adapters: `vit_b`, or `medsam` for medical data.
- For adapters that sam2 loads: SAM 2.1, beginning with `sam2_t`; `sam2_b+` and `sam2_l` need a GPU.
  `sam2.0_t` and so on are there for comparison with older work.

SAM 2 squashes a picture to the square. `model.image_size=1024` is the side that it was trained
on. No weights of it were at hand: its exactness is shown on random weights against transformers
and timm, and its accuracy is not measured here. Training sees
still pictures alone; `predict propagate=memory` follows an object through the slices of a volume.
Files of MedSAM2 and other fine-tuned SAM 2.1 models are given as `model.checkpoint=FILE` with the
name of their size, `model=sam2_t` for MedSAM2."""


SPEED = """Seconds of the image encoder for one picture of 512 pixels, and of a training step of
LoRA in all blocks, forward and backward, on 2 cores with random weights, and the memory beyond the
weights. The ratio is transformers' time over ours, measured alternately in one process, with its
least and largest value; the last column says which part of ours the matrix products alone would
take. `python -m benchmarks.run encoder --rows 'sam2*'` measures it again, and `train_step` the
steps."""


SPEED_HEADINGS = ["name", "task", "seconds", "memory", "transformers", "ratio", "products alone"]


def speed_rows() -> list[list[object]]:
    """Return the newest measurement of each size of SAM 2, a row for each task."""
    tasks = [
        ("encoder", "encoder, fp32", " 512 fp32", "transformers"),
        ("encoder", "encoder, bf16", " 512 bf16", "transformers"),
        ("train_step", "LoRA step, fp32", " 512 fp32, all blocks", "transformers with peft"),
    ]
    rows: list[list[object]] = []
    for size in SAM2_COSTS:
        for suite, title, suffix, peer in tasks:
            found = newest_row(suite, f"sam2_{size}{suffix}")
            if found is None:
                continue
            own, other = found["contenders"]["samadapt"], found["contenders"][peer]
            ratio = other["ratio"]
            rows.append(
                [
                    code(f"sam2_{size}"),
                    title,
                    f"{own['median_s']:.2f}",
                    f"{own['memory']['peak_bytes'] / 1e9:.2f} GB",
                    f"{other['memory']['peak_bytes'] / 1e9:.2f} GB",
                    f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
                    f"{own['share_of_peak']:.0%}",
                ]
            )
    return rows


def newest_row(suite: str, name: str) -> dict[str, Any] | None:
    """Return a row of the results of a suite of benchmarks; None: it was never measured."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / f"{suite}.json"
    runs = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for run in runs for row in run["rows"] if row["row"] == name]
    return rows[-1] if rows else None


def models_page() -> str:
    """Return every base model, and what SAM 2 costs."""
    rows = [
        [
            code(f"model={name}"),
            build.encoder,
            build.image_size,
            build.side_step,
            known_weights[name].licence if name in known_weights else "-",
        ]
        for name, build in BUILDS.items()
    ]
    intro = (
        "`model=NAME` chooses the base. Its weights are downloaded once and checked by hash, or "
        "given as `model.checkpoint=FILE`. `model.image_size=N` runs it on smaller or larger "
        "images. `tiny`, `tiny_t`, `tiny_h` and `tiny_r` have random weights and exist for tests."
    )
    costs = [
        [code(f"sam2_{size}"), weights, file, *gflops]
        for size, (weights, file, gflops) in SAM2_COSTS.items()
    ]
    return page(
        "Models",
        intro,
        table(["name", "encoder", "image size", "sides are multiples of", "licence"], rows),
        CHOICE,
        "## What SAM 2 costs",
        "Millions of weights for still pictures, and GFLOP of the image encoder for a picture. "
        "SAM's ViT-B at 1024 pixels has 93.7 million and 942 GFLOP.",
        table(["name", "weights (M)", "file (MB)", "256 px", "512 px", "1024 px"], costs),
        SPEED,
        table(SPEED_HEADINGS, speed_rows()),
        SAM3,
        table(
            ["name", "weights (M)", "file (MB)", "336 px", "504 px", "1008 px", "seconds"],
            [[code("sam3_tracker"), *SAM3_COSTS[:2], *SAM3_COSTS[2], "not measured"]],
        ),
    )


def record_page() -> str:
    """Return every entry of ``samadapt.json``."""
    intro = (
        f"`{RECORD}` lies beside peft's two files in an adapter directory. It holds what must be "
        "known to use the adapter, and digests that reveal a damaged or edited file. Every entry "
        "is checked when the adapter is loaded."
    )
    told = attributes(AdapterRecord)
    hints = get_type_hints(AdapterRecord)
    rows = [
        [code(item.name), describe_type(hints[item.name]), told[item.name]]
        for item in fields(AdapterRecord)
    ]
    return page("Adapter record", intro, table(["entry", "type", "meaning"], rows))


def attributes(cls: type[Any]) -> dict[str, str]:
    """Return the entries of the Attributes section of a docstring."""
    lines = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].splitlines()
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            names, _, text = line.strip().partition(": ")
            name = names
            found |= dict.fromkeys((part.strip() for part in names.split(",")), text)
        elif line.strip():
            for part in name.split(","):
                found[part.strip()] += f" {line.strip()}"
    return found


def python_page() -> str:
    """Return the public functions and classes with signature and docstring."""
    intro = (
        "What `import samadapt` offers. Everything else may change without notice. Errors are "
        "subclasses of `SamadaptError`; those that the caller can correct are subclasses of "
        "`UserError`."
    )
    parts = [intro]
    for name in sorted(samadapt.__all__, key=str.lower):
        value = getattr(samadapt, name)
        if not callable(value) or (inspect.isclass(value) and issubclass(value, Exception)):
            continue
        if value is Config:
            parts += [f"## {name}", "What `compose` returns: the [keys](keys.md) as attributes."]
            continue
        parts += [f"## {name}", describe(name, value)]
        if inspect.isclass(value):
            for method, member in vars(value).items():
                if inspect.isfunction(member) and not method.startswith("_"):
                    parts += [f"### {name}.{method}", describe(method, member)]
    return page("Python", *parts)


def describe(name: str, value: Any) -> str:
    """Return signature and docstring as a text block."""
    signature = str(inspect.signature(value)).replace("'", "")
    return f"```text\n{name}{signature}\n\n{inspect.getdoc(value) or ''}\n```"


def notebook(path: Path) -> str:
    """Return a tutorial as a notebook. Shell blocks become ``%%bash`` cells."""
    text = path.read_text(encoding="utf-8")
    # Without this header jupytext would take the language of most blocks for the notebook's own.
    header = (
        "---\njupyter:\n  kernelspec: {name: python3, language: python, display_name: P}\n---\n"
    )
    book = jupytext.reads(header + text, fmt="md")
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"  # nbformat draws a random one: the file would never be stable
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }
    return str(jupytext.writes(book, fmt="ipynb")) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "adapter-record": record_page,
    "commands": commands_page,
    "data": data_page,
    "exports": exports_page,
    "findings": findings_page,
    "keys": keys_page,
    "losses": losses_page,
    "methods": methods_page,
    "models": models_page,
    "python": python_page,
    "recipes": recipes_page,
    "scores": scores_page,
}


if __name__ == "__main__":
    main()
