"""What all export targets share: refuse, write, read back, compare, and only then keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from samadapt.errors import AdapterError, RunError
from samadapt.system import atomic

if TYPE_CHECKING:
    from samadapt.adapters.base_model import Adapted
    from samadapt.adapters.record import AdapterRecord
    from samadapt.adapters.snippets import Snippet
    from samadapt.export.probe import Difference, ProbedClassModel, ProbedModel

TARGETS: dict[str, type[Target]] = {}
"""Every target by its name in ``to=NAME``; ``register`` fills it."""

TargetT = TypeVar("TargetT", bound="Target")
CARD = "README.md"


@dataclass(frozen=True)
class Target(ABC):
    """The options of a target, and the steps that every target implements."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    """The extra of samadapt that installs the packages it needs."""
    merges: ClassVar[bool] = False
    """Whether the target folds the adapter into SAM's weights."""
    holds_head: ClassVar[bool] = False
    """Whether the target can hold a dense head."""
    holds_class_tokens: ClassVar[bool] = False
    """Whether the target can hold tokens that predict classes beside SAM's mask tokens."""
    holds_memory: ClassVar[bool] = False
    """Whether the target can hold SAM 2's memory of a video."""

    @property
    def limit(self) -> float | None:
        """Largest difference allowed, as a share of the largest logit (at least 1); None: any."""
        return 1e-4

    @abstractmethod
    def refusal(self, adapted: Adapted) -> str:
        """Return why this adapter cannot be exported to this target; empty if it can."""

    @abstractmethod
    def write(self, adapted: Adapted, folder: Path) -> list[str]:
        """Write the files into an empty folder. This may change the adapted model.

        Returns:
            Notes for the user.
        """

    @abstractmethod
    def read_back(self, adapted: Adapted, folder: Path) -> ProbedModel | ProbedClassModel:
        """Load the written files in the way that a user does."""

    @abstractmethod
    def how_to_use(self, adapted: Adapted) -> Snippet:
        """Return Python code that uses the export, for the model card."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        to: name of the target.
        output: the folder.
        files: size in bytes by file name.
        difference: difference between the adapted model and what was read back; None: the files
            are copies.
        notes: notes for the user.
    """

    to: str
    output: Path
    files: dict[str, int]
    difference: Difference | None
    notes: list[str] = field(default_factory=list)


def register(name: str) -> Callable[[type[TargetT]], type[TargetT]]:
    """Return a decorator that makes a target available as ``to=name``."""

    def add(cls: type[TargetT]) -> type[TargetT]:
        cls.name = name
        TARGETS[name] = cls
        return cls

    return add


def merge_refusal(adapted: Adapted) -> str:
    """Return why an adapter cannot be folded into SAM's weights; empty if it can."""
    method = adapted.injection.method
    if method.can_merge:
        return ""
    return f"{method.name} adds layers that no weight of SAM can hold, so it cannot be merged"


def export_adapter(
    directory: str | Path,
    target: Target,
    output: str | Path,
    *,
    checkpoint: str | Path | None = None,
) -> Exported:
    """Write an adapter for another program, read it back, and keep it if the outputs agree.

    Args:
        directory: the adapter directory, or ``hf:USER/NAME[@REVISION]``.
        target: the target with its options.
        output: the folder to create; it may exist if it is empty.
        checkpoint: file of the base weights; None: as the adapter records.

    Raises:
        AdapterError: the adapter is broken, or this target cannot hold it. The message names the
            targets that can.
        WeightsError: the base weights are not found.
        MissingExtraError: a package that the target needs is not installed.
        RunError: what was read back predicts something else; nothing is kept.
        ConfigError: as ``adapter_path``.
        DownloadError: as ``adapter_path``.
    """
    from samadapt.adapters.base_model import open_adapter
    from samadapt.adapters.card import BACKGROUND_TOKEN
    from samadapt.export import probe

    output = Path(output).expanduser()
    check_output(output)
    adapted = open_adapter(directory, checkpoint)
    _refuse_what_no_format_holds(adapted.record, target)
    if reason := target.refusal(adapted):
        raise _refused(adapted, target, reason)
    # This comes before ``write``, which may merge the adapter into this model.
    expected = probe.answers(adapted.sam, classes=target.holds_class_tokens)
    with atomic.folder(output) as scratch:
        notes = _write(target, adapted, scratch)
        if adapted.record.class_tokens and not target.holds_class_tokens:
            notes.append(
                f"left out: the classes {', '.join(adapted.record.classes)}, which have tokens of "
                "their own; what answers to prompts is here"
            )
        if adapted.record.trains_memory and not target.holds_memory:
            notes.append("left out: the trained memory of SAM 2; pictures do not need it")
        if adapted.record.prompt.get("background_token") and not adapted.record.class_tokens:
            notes.append(f"background: {BACKGROUND_TOKEN}")
        found = probe.answers(
            target.read_back(adapted, scratch),
            like=adapted.sam,
            classes=target.holds_class_tokens,
        )
        difference = probe.compare(expected, found, target.limit)
        if not difference.is_small:
            raise RunError(
                f"to={target.name}: what was written does not predict the same: {difference}. "
                f"Nothing is kept; other targets: {_others(adapted, target) or 'none'}"
            )
        write_card(scratch / CARD, adapted, target, difference, notes)
    files = {p.name: p.stat().st_size for p in sorted(output.iterdir())}
    return Exported(target.name, output, files, difference, notes)


def _refuse_what_no_format_holds(record: AdapterRecord, target: Target) -> None:
    """Refuse adapters with parts beside SAM that this format, or every format, cannot hold.

    Raises:
        AdapterError: naming the part.
    """
    if record.input_channels > 3:
        raise AdapterError(
            f"to={target.name}: this adapter maps {record.input_channels} channels to "
            "SAM's three by a trained projection, which no export format can hold; use it with "
            "samadapt predict or samadapt.load_adapter"
        )
    if record.separates_objects:
        raise AdapterError(
            f"to={target.name}: this adapter separates objects (head=instances) by a watershed "
            "over its distances, which no format holds; use samadapt predict or "
            "samadapt.load_adapter, or train head=unet for classes alone"
        )
    if record.makes_prompts:
        raise AdapterError(
            f"to={target.name}: this adapter makes its prompts by a network on the image embedding "
            "(prompts=auto), which no format holds, and SAM itself is unchanged; use samadapt "
            "predict or samadapt.load_adapter"
        )
    if record.head and not target.holds_head:
        able = ", ".join(sorted(name for name, cls in TARGETS.items() if cls.holds_head))
        raise AdapterError(
            f"to={target.name}: this adapter predicts with a dense head (head=unet), which this "
            f"format cannot hold; it can be exported to {able}"
        )


def _write(target: Target, adapted: Adapted, folder: Path) -> list[str]:
    try:
        return target.write(adapted, folder)
    except AdapterError as error:  # a kind of peft layer that cannot be merged after all
        if not target.merges:
            raise
        raise _refused(adapted, target, str(error), merging_failed=True) from error


def _refused(
    adapted: Adapted, target: Target, reason: str, *, merging_failed: bool = False
) -> AdapterError:
    """Return the error for a refused adapter; it names the targets that remain."""
    others = _others(adapted, target, merging_failed=merging_failed)
    return AdapterError(
        f"{adapted.directory}: to={target.name}: {reason}; it can be exported to "
        f"{others or 'nothing else'}"
    )


def _others(adapted: Adapted, target: Target, *, merging_failed: bool = False) -> str:
    """Return the names of the targets that can hold an adapter, this one with other options too."""
    fit = (
        name
        for name, cls in TARGETS.items()
        if target != cls() and not (merging_failed and cls.merges) and not cls().refusal(adapted)
    )
    return ", ".join(sorted(fit))


def check_output(output: Path) -> None:
    """Refuse a folder that is not empty, before any model is loaded.

    Raises:
        AdapterError: naming it.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise AdapterError(f"{output}: output must be a new or an empty folder; it exists")


def write_card(
    path: Path, adapted: Adapted, target: Target, difference: Difference, notes: list[str]
) -> None:
    """Write the model card of an export."""
    from samadapt.adapters.card import model_card

    card = model_card(
        adapted.record,
        adapted.injection.trainable,
        library={"sam": "segment-anything", "hf": "transformers"}.get(target.name, target.name),
        title=f"{', '.join(adapted.record.classes[:3]) or 'Objects'}: {target.summary}",
        uses=[target.how_to_use(adapted)],
        facts={"Compared with the adapted model": str(difference), "Notes": "; ".join(notes)},
    )
    atomic.write_text(path, card)
