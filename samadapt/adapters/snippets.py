"""Python code for model cards: an adapter in samadapt, on a plain base with peft, and as ONNX.

The code is complete: it reads a picture, prepares it as in training, and writes the mask. Tests run
it as the card shows it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from samadapt.adapters.combining import recorded_stack
from samadapt.sam.weights.builds import BUILDS, embedding_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.adapters.record import AdapterRecord

BOX = (20, 30, 120, 160)
POINT = (70, 95)
CURVE = ((30, 60), (70, 95), (110, 130))
"""Prompts of the examples, in pixels of the picture."""
SLICE = 5
"""The slice of the examples with a volume."""

_MEDSAM = "medsam"
"""It is a ViT-B with other weights, so segment-anything builds it as ``vit_b``."""


@dataclass(frozen=True)
class Snippet:
    """One way of using an adapter.

    Attributes:
        title: its heading in the card.
        text: Markdown before the code: what is needed, or why this way does not exist.
        code: Python code; empty if this way does not exist.
    """

    title: str
    text: str
    code: str = ""


def prompt_kind(record: AdapterRecord) -> str:
    """Return the kind of prompt of the examples: of several kinds the one that was trained most."""
    kind = str(record.prompt.get("kind", "box"))
    shares = record.prompt.get("shares")
    if kind == "mixed" and isinstance(shares, dict) and shares:
        return str(max(shares, key=lambda name: shares[name]))
    return kind


def is_volume(record: AdapterRecord) -> bool:
    """Return whether the adapter was trained on slices of volumes."""
    return record.axis is not None


def with_samadapt(record: AdapterRecord) -> Snippet:
    """Return the code that uses an adapter with samadapt."""
    text = (
        "`pip install samadapt`. Run it in the folder of this page, or replace `.` by "
        "`hf:USER/NAME`, the name of this page on the Hugging Face Hub."
    )
    if record.checkpoint:
        text += (
            f" The base weights are the file `{record.checkpoint}`: put it into the working "
            "folder, or name it with `checkpoint=`."
        )
    lines = ["import samadapt", "", 'segmenter = samadapt.load_adapter(".")']
    source = _source(record)
    given = "".join(f", {part}" for part in _samadapt_prompts(record))
    if record.separates_objects:
        lines += [
            f"found = segmenter.predict({source}{given}, objects=True)",
            'print(len(found.objects), "objects")',
            "labels = found.instances  # the number of the object of each pixel, 0 for none",
        ]
    else:
        lines.append(f"labels = segmenter.segment({source}{given})")
    return Snippet("With samadapt", text, "\n".join(_with_output(record, lines)))


def with_peft(record: AdapterRecord, refusal: str = "") -> Snippet:
    """Return the code that puts an adapter onto a plain base with peft.

    Args:
        record: the record of the adapter.
        refusal: why peft cannot load it; empty: it can.
    """
    title = "With peft"
    refusal = refusal or _no_plain_code(record)
    if refusal:
        return Snippet(title, f"Not possible: {refusal}.")
    if BUILDS[record.base].encoder == "vit":
        text = (
            "`pip install peft segment-anything`, without samadapt. The base is built for "
            f"{record.image_size} px, as in training."
        )
        return Snippet(title, text, _on_segment_anything(record))
    text = (
        f"`pip install peft samadapt`. {_no_such_encoder(record)}, so the base comes from "
        f"samadapt, built for {record.image_size} px as in training; peft loads the adapter."
    )
    return Snippet(title, text, _on_samadapt(record))


def merged(record: AdapterRecord, file: str) -> Snippet:
    """Return the code that uses a merged model, a weights file under the published names.

    Args:
        record: the record of the adapter.
        file: name of the weights file, beside the page.
    """
    text = "Run it in the folder of this page."
    if (reason := _no_plain_code(record)) or record.class_tokens:
        reason = reason or "its classes have tokens of their own, which are not in this file"
        text += f" The code shows a box, because {reason}."
        record = replace(record, prompt={"kind": "box"}, class_tokens=0)
    build = BUILDS[record.base]
    if build.encoder == "vit" and record.num_masks == build.num_multimask:
        text = f"`pip install segment-anything`, without samadapt. {text}"
        return Snippet("With segment-anything", text, _on_segment_anything(record, file))
    why = (
        _no_such_encoder(record)
        if build.encoder != "vit"
        else f"segment-anything builds {build.num_multimask} mask outputs, and this model has "
        f"{record.num_masks}"
    )
    text = f"`pip install samadapt`: {why}. {text}"
    return Snippet("With samadapt", text, _on_samadapt(record, file))


def as_onnx(record: AdapterRecord, refusal: str = "", *, exported: bool = False) -> Snippet:
    """Return the code that runs the ONNX export of an adapter.

    Args:
        record: the record of the adapter.
        refusal: why it cannot be exported; empty: it can.
        exported: the code lies in the folder of the export; otherwise the command that makes it is
            shown first.
    """
    title = "With ONNX Runtime"
    refusal = refusal or no_onnx(record) or _no_drawings(record)
    if refusal:
        return Snippet(title, f"Not possible: {refusal}.")
    text = "`pip install onnxruntime pillow`, without samadapt."
    folder = ""
    if not exported:
        folder = "onnx_model/"
        command = "samadapt export adapter=. to=onnx output=onnx_model"
        text = f"Export it once with samadapt:\n\n```bash\n{command}\n```\n\nThen {text}"
    return Snippet(title, text, _on_onnx(record, folder))


def _no_such_encoder(record: AdapterRecord) -> str:
    names = {"tiny_vit": "TinyViT", "hiera": "Hiera", "rope_vit": "ViT of SAM 3"}
    return f"segment-anything has no {names[BUILDS[record.base].encoder]}"


def no_onnx(record: AdapterRecord) -> str:
    """Return why an adapter has no ONNX form; empty if it has one."""
    if record.base in BUILDS and BUILDS[record.base].version != "1":
        return "the graphs of SAM 2 and SAM 3 are not supported yet"
    return _parts_of_samadapt(record)


def _parts_of_samadapt(record: AdapterRecord) -> str:
    """Return what of an adapter runs in samadapt alone; empty if nothing does."""
    if record.method.get("name") == "unet":
        return "a U-Net of samadapt is loaded by samadapt alone"
    if record.input_channels > 3:
        return (
            f"a trained projection maps {record.input_channels} channels to SAM's three, which no "
            "exported format holds"
        )
    if record.separates_objects:
        return "its objects are separated by a watershed, which no exported format holds"
    if record.makes_prompts:
        return "a network makes its prompts, which no exported format holds"
    if recorded_stack(record) > 1:
        return "it sees several slices at once, and the graph takes one picture"
    return ""


def _no_drawings(record: AdapterRecord) -> str:
    """Return why code without samadapt cannot prompt as in training; empty if it can."""
    kind = prompt_kind(record)
    if kind == "mask" and not record.head:
        return (
            "the adapter is prompted with rough masks, which samadapt turns into logits for the "
            "model (the exported decoder takes them as `mask_input`)"
        )
    if record.prompt.get("click_disks") and kind == "interactive":
        return "clicks are also drawn into the mask prompt, which samadapt does"
    return ""


def _no_plain_code(record: AdapterRecord) -> str:
    if record.prompt.get("background_token"):
        return "the background has a token of its own, whose logit samadapt subtracts"
    return _parts_of_samadapt(record) or _no_drawings(record)


def _source(record: AdapterRecord) -> str:
    """Return the argument that names the image."""
    suffix = "nii.gz" if is_volume(record) else "png"
    inputs = record.intensity.get("inputs")
    if not isinstance(inputs, list):
        return f'"{"scan" if is_volume(record) else "image"}.{suffix}"'
    channels = record.data_options.get("channel")
    names = channels if isinstance(channels, list) else range(len(inputs))
    return json.dumps([f"channel_{name}.{suffix}" for name in names])


def _samadapt_prompts(record: AdapterRecord) -> list[str]:
    """Return the prompts as arguments of ``segment``."""
    kind = prompt_kind(record)
    prompts: dict[str, Any] = {
        "box": ("boxes", [list(BOX)]),
        "point": ("points", [list(POINT)]),
        "interactive": ("points", [list(POINT)]),
        "scribble": ("scribbles", [list(point) for point in CURVE]),
    }
    if record.head or record.method.get("name") == "unet" or kind in ("semantic", "auto"):
        return []
    if kind == "mask":
        given = [f'masks="rough.{"nii.gz" if is_volume(record) else "png"}"']
    else:
        name, value = prompts[kind]
        given = [f"{name}={ {SLICE: value} if is_volume(record) else value }"]
    if len(record.classes) > 1:
        given.append(f"labels={json.dumps(record.classes[0])}")
    return given


def _with_output(record: AdapterRecord, lines: Sequence[str]) -> list[str]:
    """Add the lines that write ``labels`` of ``segment``, and the imports that they need."""
    first, *rest = lines
    if record.overlapping:
        note = f"  # ({len(record.classes)}, ...): one mask of 0 and 1 for each class"
        return ["import numpy", first, *rest, f'numpy.save("mask.npy", labels){note}']
    if not is_volume(record):
        picture = "Image.fromarray(labels" + (
            '.astype("uint16"))' if record.separates_objects else ")"
        )
        note = "" if record.separates_objects else "  # values are numbers of classes, from 1"
        return [first, "from PIL import Image", *rest, f'{picture}.save("mask.png"){note}']
    source = _source(record).strip("[]").split(", ")[0]
    return [
        "import nibabel",
        first,
        *rest,
        f"affine = nibabel.load({source}).affine",
        'nibabel.save(nibabel.Nifti1Image(labels, affine), "mask.nii.gz")',
    ]


def _weights(record: AdapterRecord) -> str:
    """Return the file name of the base weights."""
    from samadapt.sam.weights.sources import known_weights  # it imports torch

    if record.checkpoint:
        return record.checkpoint
    return known_weights[record.base].file if record.base in known_weights else "base.pth"


def picture_lines(record: AdapterRecord) -> list[str]:
    """Return the lines that make ``image`` (h, w, 3) uint8 of a file, with the intensity rule."""
    rule = record.intensity
    read = 'image = numpy.array(Image.open("image.png").convert("RGB"))'
    if "channels" in rule or "inputs" in rule or rule.get("neighbours"):
        note = "# Red, green and blue of this picture are the channels that the table above lists."
        return [note, read]
    kind = rule.get("kind", "rgb")
    if kind == "rgb":
        return [read]
    volume = is_volume(record)
    lines = ['values = numpy.array(Image.open("image.png"), dtype="float32")']
    if volume:
        lines = [
            f"# The values of the file as (h, w, slices), each {record.axis} slice upright.",
            'values = numpy.load("volume.npy").astype("float32")',
        ]
    low, high = f"{rule['low']:g}", f"{rule['high']:g}"
    if kind == "window":
        lines.append(f"low, high = {low}, {high}")
    else:
        chosen = "values[values != 0]" if kind == "percentile" else "values"
        lines.append(f"low, high = numpy.percentile({chosen}, ({low}, {high}))")
    values = f"values[:, :, {SLICE}]" if volume else "values"
    return [
        *lines,
        f"scaled = numpy.clip(({values} - low) / (high - low), 0, 1)",
        'grey = numpy.rint(255 * scaled).astype("uint8")',
        "image = grey if grey.ndim == 3 else numpy.stack([grey] * 3, axis=-1)",
    ]


def _square(record: AdapterRecord) -> list[str]:
    """Return the lines that make ``square`` (1, 3, s, s) of ``image``."""
    rule = {"normalization": "mean_std", "resize": "longest", **record.preprocessing}
    lines = ["height, width = image.shape[:2]", f"side = {record.image_size}"]
    if rule["resize"] == "squash":
        lines.append("size = (side, side)  # (width, height) in the model's square")
    else:
        lines += [
            "scale = side / max(height, width)",
            "size = (int(width * scale + 0.5), int(height * scale + 0.5))  # in the model's square",
        ]
    lines += [
        "pixels = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)",
        'pixels = numpy.asarray(pixels, dtype="float32")',
    ]
    if rule["normalization"] == "min_max":
        lines.append("pixels = (pixels - pixels.min()) / max(pixels.max() - pixels.min(), 1e-8)")
    else:
        mean, std = (
            list(rule.get(name, default))
            for name, default in (
                ("mean", (123.675, 116.28, 103.53)),
                ("std", (58.395, 57.12, 57.375)),
            )
        )
        lines.append(f"pixels = (pixels - {mean}) / {std}")
    return [
        *lines,
        'square = numpy.zeros((1, 3, side, side), dtype="float32")  # zeros right and below',
        "square[0, :, : size[1], : size[0]] = pixels.transpose(2, 0, 1)",
    ]


def _is_semantic(record: AdapterRecord) -> bool:
    return prompt_kind(record) == "semantic"


def _takes_best(record: AdapterRecord) -> bool:
    """Return whether the best of several masks answers a single prompt, as samadapt has it."""
    return prompt_kind(record) in ("point", "interactive")


def _points(record: AdapterRecord) -> tuple[list[list[int]], list[int]]:
    """Return points of the example with their labels; a box is two points labelled 2 and 3."""
    kind = prompt_kind(record)
    if kind == "box":
        return [list(BOX[:2]), list(BOX[2:])], [2, 3]
    if kind == "scribble":
        return [list(point) for point in CURVE], [1] * len(CURVE)
    return [list(POINT)], [1]


def _labels_of_logits(record: AdapterRecord) -> list[str]:
    """Return the lines that turn ``logits`` (K, h, w) into ``mask``."""
    if record.overlapping:
        return [
            "mask = logits > 0  # one mask for each class",
            'numpy.save("mask.npy", mask)',
        ]
    return [
        "mask = numpy.where(logits.max(0) > 0, 1 + logits.argmax(0), 0)  # numbers of classes",
        'Image.fromarray(mask.astype("uint8")).save("mask.png")',
    ]


def _save_mask() -> str:
    return 'Image.fromarray(255 * mask.astype("uint8")).save("mask.png")'


def _resampled(record: AdapterRecord) -> list[str]:
    """Return the lines that bring a base of segment-anything to another image size."""
    build = BUILDS[record.base]
    if record.image_size == build.image_size:
        return []
    return [
        f"# The base is for {build.image_size} px. Resample its position tables as in training",
        f"side, grid = {record.image_size}, {embedding_grid(record.base, record.image_size)}",
        "with torch.no_grad():",
        "    table = sam.image_encoder.pos_embed.permute(0, 3, 1, 2)",
        '    table = interpolate(table, (grid, grid), mode="bicubic", antialias=True)',
        "    sam.image_encoder.pos_embed = torch.nn.Parameter(table.permute(0, 2, 3, 1))",
        "    for block in sam.image_encoder.blocks:",
        "        if block.window_size == 0:  # it attends over the whole picture",
        '            for name in ("rel_pos_h", "rel_pos_w"):',
        "                table = getattr(block.attn, name).T[None]",
        '                table = interpolate(table, size=2 * grid - 1, mode="linear")',
        "                setattr(block.attn, name, torch.nn.Parameter(table[0].T))",
        "sam.image_encoder.img_size = side",
        "sam.prompt_encoder.input_image_size = (side, side)",
        "sam.prompt_encoder.image_embedding_size = (grid, grid)",
    ]


def _on_segment_anything(record: AdapterRecord, merged: str = "") -> str:
    """Return code for segment-anything: base weights and peft, or the file of a merged model."""
    registry = "vit_b" if record.base == _MEDSAM else record.base
    resampled = _resampled(record)
    weights = _weights(record)
    safe = weights.endswith(".safetensors") and not merged
    build = f'sam = sam_model_registry["{registry}"]'
    if merged and resampled:
        # The file holds tables of the new size, so the model gets this size first.
        load = [
            f"{build}()",
            *resampled,
            f'sam.load_state_dict(torch.load("{merged}", weights_only=True))',
            "sam.eval()",
        ]
    elif merged:
        load = [f'{build}(checkpoint="{merged}").eval()']
    else:
        read = [f"{build}(checkpoint={json.dumps(weights)})"]
        if safe:
            read = [f"{build}()", f"sam.load_state_dict(load_file({json.dumps(weights)}))"]
        peft = 'PeftModel.from_pretrained(sam, ".").eval()  # the folder of this page; changes sam'
        load = [*read, *resampled, peft]
    return "\n".join(
        [
            "import numpy",
            "import torch",
            *([] if merged else ["from peft import PeftModel"]),
            "from PIL import Image",
            *(["from safetensors.torch import load_file"] if safe else []),
            "from segment_anything import sam_model_registry",
            *(["from torch.nn.functional import interpolate"] if resampled else []),
            "",
            *load,
            "",
            *picture_lines(record),
            *_square(record),
            "",
            *_decoded_by_segment_anything(record),
        ]
    )


def _decoded_by_segment_anything(record: AdapterRecord) -> list[str]:
    """Return the lines from ``square`` to ``mask`` with segment-anything's modules."""
    semantic = _is_semantic(record)
    coords, labels = _points(record)
    given, prompts = "points=None, boxes=None", []
    if not semantic and prompt_kind(record) == "box":
        prompts = [
            "ratio = torch.tensor([size[0] / width, size[1] / height] * 2)",
            f"boxes = torch.tensor([{list(map(float, BOX))}]) * ratio  # x0, y0, x1, y1",
        ]
        given = "points=None, boxes=boxes"
    elif not semantic:
        prompts = [
            "ratio = torch.tensor([size[0] / width, size[1] / height])",
            f"coords = torch.tensor([{[list(map(float, p)) for p in coords]}]) * ratio  # x, y",
            f"labels = torch.tensor([{labels}])  # 1 inside, 0 outside",
        ]
        given = "points=(coords, labels), boxes=None"
    several = semantic or _takes_best(record)
    lines = [
        *prompts,
        "with torch.no_grad():",
        "    embedding = sam.image_encoder(torch.from_numpy(square))",
        f"    sparse, dense = sam.prompt_encoder({given}, masks=None)",
        "    low, iou = sam.mask_decoder(",
        "        image_embeddings=embedding,",
        "        image_pe=sam.prompt_encoder.get_dense_pe(),",
        "        sparse_prompt_embeddings=sparse,",
        "        dense_prompt_embeddings=dense,",
        f"        multimask_output={several},",
        "    )",
        "    logits = sam.postprocess_masks(low, (size[1], size[0]), (height, width))",
    ]
    if semantic:
        lines.append(f"logits = logits[0, :{len(record.classes)}].numpy()  # one for each class")
        return [*lines, *_labels_of_logits(record)]
    which = "iou[0].argmax()" if several else "0"
    return [*lines, f"mask = logits[0, {which}].numpy() > {record.threshold:g}", _save_mask()]


def _on_samadapt(record: AdapterRecord, merged: str = "") -> str:
    """Return code for samadapt's own model: base weights and peft, or a merged file."""
    weights = merged or record.checkpoint
    named = f", {json.dumps(weights)}" if weights else ""
    coords, labels = _points(record)
    if _is_semantic(record):
        prompts = "multimask_output=True, return_logits=True"
    elif prompt_kind(record) == "box":
        prompts = f"box=numpy.array({list(BOX)}), multimask_output=False"
    else:
        prompts = (
            f"numpy.array({coords}), numpy.array({labels}), multimask_output={_takes_best(record)}"
        )
    peft = 'PeftModel.from_pretrained(sam, ".").eval()  # the folder of this page; changes sam'
    lines = [
        "import numpy",
        "import samadapt",
        *([] if merged else ["from peft import PeftModel"]),
        "from PIL import Image",
        "",
        f'sam = samadapt.load_sam("{record.base}"{named}, image_size={record.image_size})',
        *([] if merged else [peft]),
        "predictor = samadapt.SamPredictor(sam)",
        "",
        *picture_lines(record),
        "predictor.set_image(image)",
    ]
    if _is_semantic(record):
        lines += [
            f"logits, _, _ = predictor.predict({prompts})",
            f"logits = logits[:{len(record.classes)}]  # one for each class",
            *_labels_of_logits(record),
        ]
    else:
        lines += [
            f"masks, iou, _ = predictor.predict({prompts})",
            f"mask = masks[{'iou.argmax()' if _takes_best(record) else 0}]",
            _save_mask(),
        ]
    return "\n".join(lines)


def _on_onnx(record: AdapterRecord, folder: str) -> str:
    head = ["import numpy", "import onnxruntime", "from PIL import Image", ""]
    body = [*picture_lines(record), *_square(record), ""]
    if record.head:
        lines = [
            f'model = onnxruntime.InferenceSession("{folder}classes.onnx")',
            "",
            *body,
            *_dense_by_onnx(record),
        ]
        return "\n".join([*head, *lines])
    lines = [
        f'encoder = onnxruntime.InferenceSession("{folder}encoder.onnx")',
        f'decoder = onnxruntime.InferenceSession("{folder}decoder.onnx")',
        "",
        *body,
        *_decoded_by_onnx(record),
    ]
    return "\n".join([*head, *lines])


def _decoded_by_onnx(record: AdapterRecord) -> list[str]:
    """Return the lines from ``square`` to ``mask`` with the two graphs."""
    semantic = _is_semantic(record)
    low = 4 * embedding_grid(record.base, record.image_size)
    coords, labels = _points(record)
    if semantic:
        prompts = [
            'coords = numpy.zeros((1, 0, 2), dtype="float32")  # no prompt',
            'labels = numpy.zeros((1, 0), dtype="float32")',
        ]
    else:
        note = "a box is two points labelled 2 and 3"
        if prompt_kind(record) != "box":
            coords, labels = [*coords, [0, 0]], [*labels, -1]
            note = "1 inside, 0 outside, -1 for the last point, which is not used"
        prompts = [
            "ratio = [size[0] / width, size[1] / height]",
            f'coords = numpy.array([{coords}], dtype="float32") * ratio  # x, y',
            f'labels = numpy.array([{labels}], dtype="float32")  # {note}',
        ]
    tokens = semantic and record.class_tokens > 0
    outputs = '["class_logits"]' if tokens else '["masks", "iou_predictions"]'
    lines = [
        '(embedding,) = encoder.run(None, {"input_image": square})',
        *prompts,
        "given = {",
        '    "image_embeddings": embedding,',
        '    "point_coords": coords.astype("float32"),',
        '    "point_labels": labels,',
        f'    "mask_input": numpy.zeros((1, 1, {low}, {low}), dtype="float32"),',
        '    "has_mask_input": numpy.zeros(1, dtype="float32"),',
        '    "orig_im_size": numpy.array([height, width], dtype="float32"),',
        "}",
    ]
    if tokens:
        return [
            *lines,
            f"(found,) = decoder.run({outputs}, given)",
            *_to_picture(record, record.image_size, "size"),
            *_labels_of_logits(record),
        ]
    lines.append(f"masks, iou = decoder.run({outputs}, given)  # of every mask token")
    if semantic:
        classes = f"masks[0, 1 : {len(record.classes) + 1}]"
        background = " - masks[0, 0]" if record.prompt.get("background_token") else ""
        return [*lines, f"logits = {classes}{background}", *_labels_of_logits(record)]
    best = _takes_best(record)
    which = "1 + iou[0, 1:].argmax()" if best else "0"
    note = "the best of several" if best else "the single mask"
    return [
        *lines,
        f"mask = masks[0, {which}] > {record.threshold:g}  # {note}",
        _save_mask(),
    ]


def _dense_by_onnx(record: AdapterRecord) -> list[str]:
    """Return the lines from ``square`` to ``mask`` with the graph of a dense head."""
    side, channels = record.head["side"], record.head.get("channels", 3)
    squash = record.preprocessing.get("resize") == "squash"
    scale = f"{side} / max(height, width)"
    inner = (
        f"inner = ({side}, {side})"
        if squash
        else f"inner = tuple(int(n * {scale} + 0.5) for n in (width, height))"
    )
    return [
        f"# The head also sees the picture itself, in a square of {side} px.",
        inner,
        f'picture = numpy.zeros((1, {channels}, {side}, {side}), dtype="float32")',
        "resized = Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR)",
        "picture[0, :, : inner[1], : inner[0]] = numpy.asarray(resized).transpose(2, 0, 1)",
        '(found,) = model.run(None, {"input_image": square, "picture": picture})',
        *_to_picture(record, side, "inner"),
        *_labels_of_logits(record),
    ]


def _to_picture(record: AdapterRecord, side: int, inner: str) -> list[str]:
    """Return the lines that bring ``found`` (1, K, n, n) to the size of the picture."""
    return [
        "logits = []",
        "for plane in found[0]:  # one for each class",
        f"    plane = Image.fromarray(plane).resize(({side}, {side}), Image.Resampling.BILINEAR)",
        f"    plane = plane.crop((0, 0, *{inner}))",
        "    plane = plane.resize((width, height), Image.Resampling.BILINEAR)",
        "    logits.append(numpy.asarray(plane))",
        f"logits = numpy.stack(logits[:{len(record.classes)}])",
    ]
