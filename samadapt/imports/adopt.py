"""Convert a foreign adapter to ours, and compare both before the result is kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from samadapt.errors import AdapterError, RunError
from samadapt.imports.foreign import FOREIGN_FORMATS, Foreign, MlpBottleneck
from samadapt.system import atomic

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.adapters.record import AdapterRecord
    from samadapt.export.probe import Difference
    from samadapt.methods.base import Method
    from samadapt.sam.model import Sam
    from samadapt.sam.types import AttentionBlock

BASE = "base.safetensors"
LIMIT = 1e-4


@dataclass(frozen=True)
class Imported:
    """A finished import.

    Attributes:
        source: the project that the format belongs to.
        output: the adapter directory.
        method: the method with its options.
        difference: difference between the base with the foreign updates folded in, and the adapter.
        notes: notes for the user.
    """

    source: str
    output: Path
    method: Method
    difference: Difference
    notes: list[str]


def import_adapter(
    path: str | Path,
    output: str | Path,
    *,
    model: str,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    scale: float = 1.0,
    prompt: Literal["box", "point", "semantic"] | None = None,
    classes: Sequence[str] = (),
    intensity: str = "rgb",
) -> Imported:
    """Write a foreign adapter as an adapter directory of samadapt.

    Changes that no adapter here can hold (of the prompt encoder, or LoRA on other linears) go into
    a copy of the base beside the adapter, which then uses this copy.

    Args:
        path: a ``.pth`` or safetensors file, or a PEFT directory.
        output: the folder to create.
        model: name of the base's build.
        checkpoint: file of the base weights; None: found by name.
        image_size: image side in pixels at which it was trained; None: that of the base.
        scale: factor of the updates in the source, if its file does not hold it.
        prompt: ``"box"``, ``"point"`` or ``"semantic"``; None: semantic for SAMed, else box.
        classes: names of the classes; empty: they are numbered.
        intensity: the intensity rule's name.

    Raises:
        AdapterError: the format is unknown, or the adapter does not fit the model.
        WeightsError: a file cannot be read.
        RunError: the adapter predicts something else than the source.
    """
    from samadapt.adapters.card import base_licence
    from samadapt.adapters.record import AdapterRecord
    from samadapt.data.intensity import make_intensity
    from samadapt.export.target import check_output
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.sam.weights.loading import load_sam

    path, output = Path(path).expanduser(), Path(output).expanduser()
    check_output(output)
    base = load_sam(model, checkpoint, image_size)
    foreign = read_foreign(path, base, scale)
    samed = foreign.source == "SAMed"
    kind = prompt or ("semantic" if samed else "box")
    policy = PromptPolicy(kind, background_token=samed and kind == "semantic")
    tokens = foreign.whole.get("mask_decoder.mask_tokens.weight")
    # The first mask token is the single mask, which is not counted.
    masks = base.build.num_multimask if tokens is None else len(tokens) - 1
    if policy.is_semantic and classes and len(classes) != masks:
        raise AdapterError(f"{path}: it has {masks} classes; got {len(classes)} names in classes")
    names = list(classes) or [f"class {i + 1}" for i in range(masks if policy.is_semantic else 1)]
    record = AdapterRecord(
        base=model,
        base_sha256="",  # follows in ``_write``, which may change the base
        checkpoint=None if checkpoint is None else str(checkpoint),
        image_size=base.image_size,
        num_masks=masks,
        preprocessing=asdict(base.preprocessing),
        intensity=make_intensity(intensity).to_dict(),
        classes=names,
        prompt=policy.to_dict(),
        recipe="; ".join([f"imported from {foreign.source}", *foreign.notes]),
        licence=base_licence(model) if checkpoint is None else "",
    )
    return _write(foreign, base, record, output)


def read_foreign(path: Path, base: Sam, scale: float = 1.0) -> Foreign:
    """Read a foreign adapter; its keys tell the format.

    Raises:
        AdapterError: the format is unknown, or it does not fit the base; names the file.
    """
    from samadapt.adapters.store import PEFT_CONFIG
    from samadapt.adapters.verify import check_finite, read_json
    from samadapt.sam.weights.checkpoints import read_tensors

    config = read_json(path / PEFT_CONFIG) if path.is_dir() else {}
    file = _weights_of(path) if path.is_dir() else path
    tensors = {
        name: x.float() for name, x in read_tensors(file).items()
    }  # so that products are not computed in half precision
    check_finite(tensors, file)
    for known_format in FOREIGN_FORMATS:
        if known_format.knows(tensors, config):
            foreign = known_format.read(file, tensors, config, base, scale)
            _check_shapes(file, foreign, base)
            return foreign
    known = "; ".join(known_format.source for known_format in FOREIGN_FORMATS)
    raise AdapterError(
        f"{file}: expected an adapter in a known format ({known}); its keys begin with "
        f"{', '.join(sorted(tensors)[:3])}"
    )


def _weights_of(folder: Path) -> Path:
    """Return the weights file of a PEFT directory; the older format is a pickle of tensors."""
    from samadapt.adapters.store import WEIGHTS

    names = (WEIGHTS, "adapter_model.bin")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise AdapterError(
        f"{folder}: expected a PEFT directory with {' or '.join(names)}; neither file exists"
    )


def _check_shapes(path: Path, foreign: Foreign, base: Sam) -> None:
    state = _state_like(foreign, base)
    for name, value in foreign.whole.items():
        if name not in state or state[name].shape != value.shape:
            wanted = tuple(state[name].shape) if name in state else "no such weight"
            raise AdapterError(
                f"{path}: {name}: expected {wanted} in {base.build.name} at {base.image_size} px; "
                f"got {tuple(value.shape)}"
            )
    for name, (a, b) in foreign.updates.items():
        wanted, found = tuple(state[f"{name}.weight"].shape), (b.shape[0], a.shape[1])
        if wanted != found or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{path}: the update of {name} must be for {wanted} weights of "
                f"{base.build.name}; got A {tuple(a.shape)}, B {tuple(b.shape)}"
            )
    places = {block.mlp: block.width for block in base.attention_blocks()}
    for name, x in foreign.bottlenecks.items():
        width, hidden = places.get(name), len(x.down)
        shapes = tuple(tuple(t.shape) for t in (x.down, x.down_bias, x.up, x.up_bias))
        if shapes != ((hidden, width), (hidden,), (width, hidden), (width,)):
            raise AdapterError(
                f"{path}: the bottleneck of {name} must be for {width} channels of "
                f"{base.build.name}; got {', '.join(map(str, shapes))}"
            )


def _state_like(foreign: Foreign, base: Sam) -> dict[str, Tensor]:
    """Return the state dict of the base with the source's number of mask tokens."""
    # Only the decoder is copied, because only it depends on the number of mask tokens.
    decoder = copy.deepcopy(base.mask_decoder)
    tokens = foreign.whole.get("mask_decoder.mask_tokens.weight")
    if tokens is not None and len(tokens) > 1:
        decoder.resize_mask_tokens(len(tokens) - 1)
    kept = {k: v for k, v in base.state_dict().items() if not k.startswith("mask_decoder.")}
    return kept | decoder.state_dict(prefix="mask_decoder.")


def _write(foreign: Foreign, base: Sam, record: AdapterRecord, output: Path) -> Imported:
    from safetensors.torch import save_file

    from samadapt.adapters.base_model import open_adapter
    from samadapt.adapters.injection import inject
    from samadapt.adapters.store import save_adapter
    from samadapt.export import probe
    from samadapt.sam.weights.loading import base_hash

    # The reference comes first, because the base is changed below.
    expected = probe.answers(as_the_source(foreign, base, record.num_masks))
    notes = list(foreign.notes)
    attention_blocks = {block.qkv: block for block in base.attention_blocks()}
    if changed := _change_base(foreign, base, attention_blocks):
        notes.append(f"{changed}: in a copy of the base, {BASE}, which the adapter uses")
        record = replace(record, checkpoint=BASE)
    record = replace(record, base_sha256=base_hash(base))
    # The copy of the base must be plain, so it is taken before mask tokens and LoRA are added.
    plain = {**base.state_dict(), **base.memory}
    pristine = {name: value.clone() for name, value in plain.items()} if changed else {}
    if record.num_masks != base.build.num_multimask:
        base.resize_mask_tokens(record.num_masks)
    decoder = {k: v for k, v in foreign.whole.items() if k.startswith("mask_decoder.")}
    if foreign.bottlenecks:
        method, factors = _as_adaptformer(foreign.bottlenecks, base, bool(decoder))
    else:
        chosen = {
            place: foreign.updates[place] for place in attention_blocks if place in foreign.updates
        }
        method, factors = _as_lora(chosen, attention_blocks, bool(decoder))
    injection = inject(base, method)
    # Not strict, because only the weights of the method and of the decoder are given.
    base.load_state_dict(factors | decoder, strict=False)
    try:
        save_adapter(output, base, injection, record)
        if pristine:
            with atomic.file(output / BASE) as part:
                save_file(pristine, part)
        # The adapter is loaded from the disk, as a user loads it.
        found = probe.answers(open_adapter(output).sam)
        difference = probe.compare(expected, found, LIMIT)
        if not difference.is_small:
            raise RunError(
                f"the adapter does not predict as what was read of {foreign.source}: {difference}"
            )
    except BaseException:
        # Nothing half finished may stay, also after Ctrl-C.
        import shutil

        shutil.rmtree(output, ignore_errors=True)
        raise
    return Imported(foreign.source, output, method, difference, notes)


def as_the_source(foreign: Foreign, base: Sam, masks: int) -> Sam:
    """Return a copy of the base with all foreign updates folded in, as the reference."""
    sam = copy.deepcopy(base)
    if masks != sam.build.num_multimask:
        sam.resize_mask_tokens(masks)
    sam.load_state_dict(dict(foreign.whole), strict=False)
    for name, (a, b) in foreign.updates.items():
        sam.get_parameter(f"{name}.weight").data.add_(b @ a)
    for name, bottleneck in foreign.bottlenecks.items():
        sam.get_submodule(name).register_forward_hook(partial(_add_bottleneck, bottleneck))
    return sam.eval()


def _add_bottleneck(
    bottleneck: MlpBottleneck, module: object, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """Add the bottleneck of what an MLP reads to its output; a forward hook."""
    from torch.nn import functional

    del module
    hidden = functional.linear(inputs[0], bottleneck.down, bottleneck.down_bias).relu()
    return output + functional.linear(hidden, bottleneck.up, bottleneck.up_bias)


def _change_base(
    foreign: Foreign, base: Sam, attention_blocks: Mapping[str, AttentionBlock]
) -> str:
    """Change the base where no adapter here can; return a description of the changes."""
    state = base.state_dict()
    whole = {
        name: value
        for name, value in foreign.whole.items()
        # Files may also hold weights that equal the base's. These need no copy of it.
        if not name.startswith("mask_decoder.") and not value.equal(state[name])
    }
    others = [name for name in foreign.updates if name not in attention_blocks]
    base.load_state_dict(whole, strict=False)
    for name in others:
        a, b = foreign.updates[name]
        base.get_parameter(f"{name}.weight").data.add_(b @ a)
    memory = {k: v for k, v in foreign.memory.items() if not _equals(base.memory.get(k), v)}
    if memory:
        base.memory = base.memory | dict(foreign.memory)
    parts = [f"{len(whole)} weights such as {min(whole)}"] if whole else []
    parts += [f"{len(memory)} weights of the memory"] if memory else []
    parts += [f"LoRA on {len(others)} linears such as {others[0]}"] if others else []
    return " and ".join(parts)


def _equals(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and bool((one == other).all())


def _as_adaptformer(
    bottlenecks: Mapping[str, MlpBottleneck], base: Sam, has_decoder: bool
) -> tuple[Method, dict[str, Tensor]]:
    """Return our AdaptFormer for bottlenecks, and its weights by state-dict name."""
    from samadapt.methods.adaptformer import AdaptFormer

    attention_blocks = base.attention_blocks()
    hidden = {len(x.down) for x in bottlenecks.values()}
    if len(hidden) > 1:
        raise AdapterError(f"expected bottlenecks of one width; got {sorted(hidden)}")
    blocks = tuple(block.index for block in attention_blocks if block.mlp in bottlenecks)
    weights: dict[str, Tensor] = {}
    for name, x in bottlenecks.items():
        first, second = f"{name}.bottleneck.0", f"{name}.bottleneck.2"
        weights |= {f"{first}.weight": x.down, f"{first}.bias": x.down_bias}
        weights |= {f"{second}.weight": x.up, f"{second}.bias": x.up_bias}
    decoder: Literal["full", "frozen"] = "full" if has_decoder else "frozen"
    chosen = "all" if len(blocks) == len(attention_blocks) else blocks
    # The source's factor is in ``up`` already.
    method = AdaptFormer(hidden=hidden.pop(), scale=1.0, blocks=chosen, decoder=decoder)
    return method, weights


def _as_lora(
    updates: Mapping[str, tuple[Tensor, Tensor]],
    attention_blocks: Mapping[str, AttentionBlock],
    has_decoder: bool,
) -> tuple[Method, dict[str, Tensor]]:
    """Return our LoRA for updates of qkv, and its weights by state-dict name.

    Without updates of qkv, it is the decoder alone, or no adaptation.

    The source has one A (r, width) and B (3 width, r) for each qkv. If every slice of B has its own
    columns ("compact"), A is split among the slices, and the total rank stays r. Otherwise every
    slice gets the whole of A, and the total rank is r times the number of slices.
    """
    import torch

    from samadapt.methods.decoder import DecoderOnly
    from samadapt.methods.lora import LoRA
    from samadapt.methods.none import NoAdaptation
    from samadapt.methods.peft_library import ADAPTER

    if not updates:
        return (DecoderOnly() if has_decoder else NoAdaptation()), {}
    grids = {name: _by_slice(b, attention_blocks[name]) for name, (_, b) in updates.items()}
    every: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
    slices = [s for i, s in enumerate(every) if any(grid[i].any() for grid in grids.values())]
    # If all updates are zero, one slice holds them.
    slices = slices or ["q"]
    # Blocks may have different ranks. LoRA has one, so smaller updates are padded with zeros.
    total = max(len(a) for a, _ in updates.values())
    rows = [every.index(s) for s in slices]
    count = len(slices)
    compact = all(_is_compact(grid, rows) and grid.shape[2] == total for grid in grids.values())
    rank = total // count if compact else total
    weights = {}
    for name, (a, _) in updates.items():
        grid, block = grids[name], attention_blocks[name]
        # dense is B in the order (q | k | v, channel): only columns of the own slice are not zero.
        dense = a.new_zeros(3, block.width, count * rank)
        for i, row in enumerate(rows):
            part = slice(i * rank, i * rank + (rank if compact else grid.shape[2]))
            dense[row, :, part] = grid[row, :, part] if compact else grid[row]
        low = a.new_zeros(count, rank, a.shape[1])
        if compact:
            low = a.view_as(low)
        else:
            low[:, : len(a)] = a
        groups = block.heads if block.qkv_order == "head_qkv" else 1
        # (3, groups, channels, n) -> (groups, 3, channels, n), the inverse of ``_by_slice``
        ordered = dense.reshape(3, groups, -1, count * rank).transpose(0, 1)
        weights[f"{name}.lora_A.{ADAPTER}.weight"] = low.reshape(count * rank, -1).contiguous()
        weights[f"{name}.lora_B.{ADAPTER}.weight"] = torch.reshape(
            ordered, (3 * block.width, count * rank)
        ).contiguous()
    blocks = tuple(attention_blocks[name].index for name in updates)
    chosen = "all" if len(blocks) == len(attention_blocks) else blocks
    decoder: Literal["full", "frozen"] = "full" if has_decoder else "frozen"
    # Alpha stays None, a scale of 1, because B already includes the source's scale.
    method = LoRA(rank=rank, slices=tuple(slices), blocks=chosen, decoder=decoder)
    return method, weights


def _by_slice(b: Tensor, block: AttentionBlock) -> Tensor:
    """Return B (3 width, r) as (3, width, r), in the order q, k, v."""
    groups = block.heads if block.qkv_order == "head_qkv" else 1
    return b.reshape(groups, 3, -1, b.shape[1]).transpose(0, 1).reshape(3, block.width, -1)


def _is_compact(grid: Tensor, rows: Sequence[int]) -> bool:
    """Whether each slice has its own columns: equally many for all, and in order."""
    count, total = len(rows), grid.shape[2]
    if total % count:
        return False
    rank = total // count
    return not any(
        bool(grid[row, :, j * rank : (j + 1) * rank].any())
        for i, row in enumerate(rows)
        for j in range(count)
        if i != j
    )
