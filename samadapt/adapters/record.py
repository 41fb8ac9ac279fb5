"""``samadapt.json``: everything that is needed to use an adapter, with digests that protect it.

A flipped bit, an edited class list or a threshold of NaN must not change masks silently. The record
therefore holds the sha256 of the weights file and of its own other entries. Loading compares both
and checks that every entry is within bounds. Adapters from before the digests existed are loaded
without this comparison.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, get_type_hints

from samadapt.adapters.verify import read_json, write_json
from samadapt.errors import AdapterError
from samadapt.prompts.policy import AUTO
from samadapt.sam.watershed import INSTANCE_HEAD
from samadapt.system.settings import check_value

RECORD = "samadapt.json"

UNET_RECORD = "unet.json"
"""The same for a U-Net that a run with ``baseline=unet`` trained; it is no adapter."""

LOCAL_OPTIONS = (
    *("root", "image", "label", "annotated", "held_out"),
    *("on_error", "max_gb", "max_seconds"),
)
"""Keys of ``data`` that describe one machine, such as paths. They are never recorded."""

TRAINING_OPTIONS = ("train_cases", "draw")
"""Keys of ``data`` that choose what trains. ``trained_on`` records what they chose."""

MAX_IMAGE_SIZE = 16_384
MAX_MASKS = 65_535
MAX_CHANNELS = 64
MAX_THRESHOLD = 1e6
MAX_TEXT = 10_000
MAX_NAME = 200
MAX_DEPTH = 32
"""Bounds of the entries: far above what any run writes, and still safe to work with."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AdapterRecord:
    """The content of ``samadapt.json``.

    Attributes:
        base: name of the base model (a build).
        base_sha256: ``base_hash`` of the freshly loaded base.
        checkpoint: file name of the base weights, as a hint.
        image_size: side of the model's square in pixels.
        num_masks: number of masks of a multimask output.
        class_tokens: number of tokens that predict classes beside the mask tokens; 0: the mask
            tokens do, and the file leaves the entry out.
        preprocessing: how the base expects its input.
        method: name and options of the method; ``save_adapter`` fills it in.
        intensity: the intensity rule.
        classes: names of the classes without the background.
        prompt: the prompt policy.
        threshold: threshold on logits.
        scores: the scores as in ``eval/summary.json``.
        versions: versions of the packages that trained it; ``save_adapter`` fills it in if empty.
        recipe: name or path of the recipe.
        axis: axis along which volumes were sliced.
        overlapping: a pixel may belong to several classes, each of which has its own mask.
        created: date and time in ISO 8601.
        data: name of the data set, for the model card.
        licence: licence of the base weights, for the model card.
        data_options: how the data set was read, for ``samadapt evaluate``; without paths.
        trained_on: hash of each training image with its slices (None: all slices), so that
            ``samadapt evaluate`` never scores them as held out; None: not known.
        weights_sha256: sha256 of the weights file beside the record; empty in adapters of versions
            before 0.2. ``save_adapter`` fills it in.
        record_sha256: sha256 of all other entries (``digest_of``); the same holds.
        input_channels: channels of the images. If there are more than 3, a trained projection maps
            them to SAM's three.
        confidence: the curve that makes a calibrated confidence of an object's mean probability, or
            the ``reason`` why there is none (``evaluation/confidence.py``). If it is empty, as in
            adapters of earlier versions, the file leaves it out.
        head: name and sizes of the decoder that predicts classes without a prompt, if that is not
            SAM's mask decoder, and how it separates objects, if it does. For SAM's it is empty, and
            the file leaves it out. A U-Net has an entry if it separates objects.
        keep_largest: classes of which a prediction without prompts keeps only the largest component
            of a volume; where it is empty, the file leaves it out.
        init: what the training started from, if that was another adapter: the sha256 of its
            weights, its data, recipe and classes, what was kept of it, and whether ``trained_on``
            has all of its training images; empty otherwise, and then not stored.
        quantize: how the frozen weights of the encoder were held in training, ``"nf4"``, which
            loading repeats (``four_bits.py``); empty: as they are, and then not stored.
    """

    base: str
    base_sha256: str
    image_size: int
    checkpoint: str | None = None
    num_masks: int = 3
    preprocessing: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    intensity: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    prompt: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.0
    scores: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    recipe: str = ""
    axis: str | None = None
    overlapping: bool = False
    created: str = ""
    data: str = ""
    licence: str = ""
    data_options: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, list[int] | None] | None = None
    weights_sha256: str = ""
    record_sha256: str = ""
    input_channels: int = 3
    confidence: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    keep_largest: list[str] = field(default_factory=list)
    init: dict[str, Any] = field(default_factory=dict)
    class_tokens: int = 0
    quantize: Literal["", "nf4"] = ""

    @property
    def makes_prompts(self) -> bool:
        """Whether a network of the adapter makes the prompts of its classes."""
        return self.prompt.get("kind") == AUTO

    @property
    def trains_memory(self) -> bool:
        """Whether the adapter holds a trained memory of SAM 2 for volumes."""
        return self.method.get("memory") == "full"

    @property
    def separates_objects(self) -> bool:
        """Whether the model separates the objects of a class, with ``head=instances``."""
        return self.head.get("name") == INSTANCE_HEAD

    @property
    def keeps_prompts(self) -> bool:
        """Whether a model that finds classes by itself also answers to prompts."""
        return (self.class_tokens > 0 or self.makes_prompts) and not self.head


def write_record(directory: Path, record: AdapterRecord, weights: Path, name: str = RECORD) -> None:
    """Write ``samadapt.json`` with digests of the weights and of its own entries.

    Args:
        directory: the folder to write into.
        record: the entries; options that name files of this machine are left out.
        weights: the weights file that the record belongs to.
        name: name of the file.
    """
    record = replace(
        record,
        checkpoint=record.checkpoint and _bare_name(record.checkpoint),
        data_options=portable_options(record.data_options),
        scores=_finite(record.scores),
        weights_sha256=sha256_of(weights),
    )
    # Convert to what JSON can hold first, because the digest is compared with what is read back.
    values = json.loads(json.dumps(asdict(record)))
    # Entries of few adapters are left out, so that earlier versions read the records of most.
    for optional in ("confidence", "head", "keep_largest", "init", "class_tokens", "quantize"):
        if not values[optional]:
            del values[optional]
    write_json(directory / name, {**values, "record_sha256": digest_of(values)})


def read_record(directory: Path, name: str = RECORD) -> AdapterRecord:
    """Read ``samadapt.json``, check every entry, and compare the record with its digest.

    Args:
        directory: an adapter directory.
        name: name of the file; ``UNET_RECORD`` for the folder of a U-Net.

    Raises:
        AdapterError: when the directory or file is missing or broken, when an entry is missing,
            of a wrong type or out of bounds, or when the file was changed later.
    """
    if not directory.is_dir():
        raise AdapterError(f"{directory}: expected an adapter directory; the folder does not exist")
    path = directory / name
    if name == RECORD and not path.exists() and (directory / UNET_RECORD).is_file():
        raise AdapterError(
            f"{directory}: expected an adapter of SAM; this is a U-Net that a run with "
            "baseline=unet trained, which only `samadapt predict` can use. Its scores are in the "
            "run directory around it"
        )
    values = read_json(path)
    known = {item.name: item for item in fields(AdapterRecord)}
    missing = [
        name for name in ("base", "base_sha256", "image_size", "method") if name not in values
    ]
    unexpected = [name for name in values if name not in known]
    if missing or unexpected:
        raise AdapterError(f"{path}: missing entries {missing}, unknown entries {unexpected}")
    # One digest is enough to demand the comparison, so deleting the other does not switch it off.
    # The digest is taken before ``check_value`` converts the values.
    signed = bool(values.get("record_sha256") or values.get("weights_sha256"))
    digest = digest_of(values) if signed else ""
    hints = get_type_hints(AdapterRecord)
    for name, value in values.items():
        try:
            values[name] = check_value(value, hints[name])
        except ValueError as error:
            raise AdapterError(f"{path}: {name}: {error}") from error
    record = AdapterRecord(**values)
    if not signed:  # an earlier version, which recorded paths and scores of NaN
        checkpoint = record.checkpoint and _bare_name(record.checkpoint)
        record = replace(record, checkpoint=checkpoint, scores=_finite(record.scores))
    for fault in _faults(record):
        raise AdapterError(f"{path}: {fault}")
    if record.record_sha256 != digest:
        raise AdapterError(
            f"{path}: the record was changed or damaged after it was written: its entries have "
            f"sha256 {digest}; record_sha256 is {record.record_sha256 or 'missing'}. Copy the "
            "adapter again, or train it again with the values that you want"
        )
    return replace(record, data_options=portable_options(record.data_options))


def check_weights(directory: Path, weights: Path, record: AdapterRecord) -> None:
    """Compare the weights file with the digest in the record.

    Raises:
        AdapterError: naming the file, if even one bit differs.
    """
    if not record.weights_sha256:
        return  # written before the digests existed
    found = sha256_of(weights)
    if found != record.weights_sha256:
        raise AdapterError(
            f"{weights}: the weights were changed or damaged after they were written: expected "
            f"sha256 {record.weights_sha256}, as {directory / RECORD} holds; got {found}. Copy the "
            "adapter again"
        )


def digest_of(values: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's entries, without ``record_sha256`` itself.

    It is computed from JSON with sorted keys and without spaces, so that layout and order of the
    file do not matter.
    """
    rest = {key: value for key, value in values.items() if key != "record_sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bare_name(path: str) -> str:
    """Return the file name of a path of any platform."""
    # PureWindowsPath splits at "/" and at "\", whatever platform this runs on.
    return PureWindowsPath(path).name


def portable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data options without those of one machine or of one training."""
    left_out = {*LOCAL_OPTIONS, *TRAINING_OPTIONS}
    return {key: value for key, value in options.items() if key not in left_out}


def _finite(value: Any) -> Any:
    """Return scores with null in place of NaN and infinity, as in ``summary.json``."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _faults(record: AdapterRecord) -> Iterator[str]:
    """Yield a message for every entry that is out of bounds."""
    for name, low, high in (
        ("image_size", 1, MAX_IMAGE_SIZE),
        ("num_masks", 1, MAX_MASKS),
        ("class_tokens", 0, MAX_MASKS),
        ("input_channels", 3, MAX_CHANNELS),
    ):
        value = getattr(record, name)
        if value < low:
            yield f"{name}: expected at least {low}; got {value}"
        if value > high:
            yield f"{name}: expected at most {high}; got {value}"
    if not math.isfinite(record.threshold) or abs(record.threshold) > MAX_THRESHOLD:
        yield f"threshold: expected a logit of at most {MAX_THRESHOLD:g}; got {record.threshold}"
    for name in ("base_sha256", "weights_sha256", "record_sha256"):
        value = getattr(record, name)
        # Only adapters from before version 0.2 lack the two other digests.
        if not _SHA256.fullmatch(value) and (value or name == "base_sha256"):
            yield f"{name}: expected 64 hexadecimal digits; got {len(value)} characters"
    yield from _name_faults(record)
    for key, slices in (record.trained_on or {}).items():
        if not key.isalnum() or len(key) > MAX_NAME or any(s < 0 for s in slices or ()):
            yield "trained_on: expected hashes of images, each with slice numbers from 0 or null"
            break
    nested = ("method", "preprocessing", "intensity", "prompt", "scores", "data_options")
    for name in (*nested, "confidence", "head", "init"):
        yield from _value_faults(name, getattr(record, name), MAX_DEPTH)


def _class_faults(record: AdapterRecord) -> Iterator[str]:
    """Yield a message for every bad list of classes."""
    for name in record.classes:
        if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            yield f"classes: expected names of 1 to {MAX_NAME} printable characters"
            break
    if len(set(record.classes)) < len(record.classes):
        yield "classes: expected each name once"
    if not set(record.keep_largest) <= set(record.classes):
        yield f"keep_largest: expected some of the classes; got {', '.join(record.keep_largest)}"


def _name_faults(record: AdapterRecord) -> Iterator[str]:
    """Yield a message for every bad class name or file name, and bad list of names."""
    for name in ("kept", "new", "left_out"):
        if not isinstance(record.init.get(name, []), list):
            yield f"init: {name}: expected a list of texts"
    yield from _class_faults(record)
    for name in ("checkpoint", "data"):
        value = getattr(record, name) or ""
        # A colon separates the drive on Windows.
        if re.search(r"[/\\:]", value) or value in (".", ".."):
            yield f"{name}: expected a bare name; got a path"
    for name in ("base", "checkpoint", "recipe", "axis", "created", "data", "licence"):
        if len(getattr(record, name) or "") > MAX_TEXT:
            yield f"{name}: expected at most {MAX_TEXT} characters"


def _value_faults(name: str, value: Any, depth: int) -> Iterator[str]:
    """Yield a message for every value in an entry that is not finite, too long or too nested."""
    if depth == 0:
        yield f"{name}: expected at most {MAX_DEPTH} levels of nesting"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _value_faults(f"{name}.{key}"[:MAX_NAME], inner, depth - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _value_faults(name, inner, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{name}: expected a finite number; got {value}"
    elif isinstance(value, str) and len(value) > MAX_TEXT:
        yield f"{name}: expected at most {MAX_TEXT} characters"
