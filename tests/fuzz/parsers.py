"""Every parser with a small corpus of valid files and of files that once made trouble."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Mutate = Callable[[bytes, list[bytes], Any, bool], bytes]
PARSERS: dict[str, type[Parser]] = {}


class Parser:
    """One parser, its corpus, and how it reads a file."""

    is_text = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def seeds(self) -> dict[str, bytes]:
        """Return files by name."""
        raise NotImplementedError

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        """Return a damaged file. Formats with checksums correct them, so that it is read."""
        return mutate(content, others, rng, self.is_text)

    def parse(self, name: str, content: bytes) -> None:
        """Feed a file to the parser."""
        raise NotImplementedError

    def put(self, name: str, content: bytes) -> Path:
        """Write a file into the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def parser(name: str, *packages: str) -> Callable[[type[Parser]], type[Parser]]:
    """Class decorator: add a parser if the packages that it needs are installed."""

    def add(kind: type[Parser]) -> type[Parser]:
        if all(find_spec(package) for package in packages):
            PARSERS[name] = kind
        return kind

    return add


def volume(seed: int = 0, shape: tuple[int, ...] = (7, 6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)


def examine(name: str, root: Path, **options: Any) -> None:
    """Discover and examine the cases of a data set.

    Unlike a scan, this does not turn unforeseen exceptions into findings.
    """
    from samadapt.data.opening import open_reader

    *_, reader = open_reader(name, root, **options)
    layout = reader.discover()
    for case in layout.cases[:6]:
        if not {case.image, case.labels} & layout.ambiguous:  # a scan leaves those out
            reader.examine(case)


class ImageParser(Parser):
    """A file that ``read_image`` reads; its name decides the format."""

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.data.formats.base import reader_for

        path = self.put(name, content)
        reader_for(path).read_image(path)


@parser("nifti")
class Nifti(ImageParser):
    def seeds(self) -> dict[str, bytes]:
        import nibabel as nib

        found = {}
        for number, values in enumerate(
            (volume(), volume(shape=(5, 4, 3, 2)), volume(shape=(8, 8)))
        ):
            for kind in (nib.Nifti1Image, nib.Nifti2Image):
                image = kind(values, np.diag([2.0, 2, 3, 1]))
                image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"comment"))
                content = image.to_bytes()
                found[f"{kind.__name__}_{number}.nii"] = content
                found[f"{kind.__name__}_{number}.nii.gz"] = gzip.compress(content)
        return {name: content for name, content in found.items() if "_1" not in name}

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        if content[:2] == b"\x1f\x8b" and rng.random() < 0.7:
            plain = [other for other in others if other[:2] != b"\x1f\x8b"]
            return gzip.compress(mutate(gzip.decompress(content), plain, rng, False), 1)
        return mutate(content, others, rng, False)


class Itk(ImageParser):
    is_text = True

    def parse(self, name: str, content: bytes) -> None:
        self.put("inside.raw", bytes(range(210)) * 2)
        self.put("inside1.raw", bytes(range(210)) * 2)
        super().parse(name, content)


@parser("nrrd", "SimpleITK")
class Nrrd(Itk):
    def seeds(self) -> dict[str, bytes]:
        head = (
            "NRRD0004\n# comment\ntype: int16\ndimension: 3\nspace: left-posterior-superior\n"
            "sizes: 7 6 5\nspace directions: (1,0,0) (0,1,0) (0,0,2)\nkinds: domain domain domain\n"
            "endian: little\nencoding: {}\nspace origin: (0,0,0)\nkey:=value\n"
        )
        raw = volume().tobytes()
        segments = (
            "Segment0_ID:=a\nSegment0_LabelValue:=1\nSegment0_Layer:=0\nSegment0_Name:=liver\n"
        )
        return {
            "raw.nrrd": head.format("raw").encode() + b"\n" + raw,
            "gzip.nrrd": head.format("gzip").encode() + b"\n" + gzip.compress(raw),
            "text.nrrd": head.format("ascii").encode() + b"\n" + b"1 2 3 " * 70,
            "a.seg.nrrd": (head.format("raw") + segments).encode() + b"\n" + raw,
            "detached.nhdr": (head.format("raw") + "data file: inside.raw\n").encode(),
            "list.nhdr": (head.format("raw") + "data file: LIST\ninside.raw\n").encode(),
            "pattern.nhdr": (head.format("raw") + "data file: inside%d.raw 1 1 1\n").encode(),
        }


@parser("metaimage", "SimpleITK")
class MetaImage(Itk):
    def seeds(self) -> dict[str, bytes]:
        head = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            "CompressedData = {}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
            "CenterOfRotation = 0 0 0\nElementSpacing = 1 1 2\nDimSize = 7 6 5\n"
            "ElementType = MET_SHORT\n"
        )
        raw = volume().tobytes()
        packed = zlib.compress(raw)
        size = f"CompressedDataSize = {len(packed)}\n"
        local = "ElementDataFile = LOCAL\n"
        return {
            "raw.mha": (head.format("False") + local).encode() + raw,
            "zlib.mha": (head.format("True") + size + local).encode() + packed,
            "detached.mhd": (head.format("False") + "ElementDataFile = inside.raw\n").encode(),
            "list.mhd": (head.format("False") + "ElementDataFile = LIST\ninside.raw\n").encode(),
            "pattern.mhd": (
                head.format("False") + "ElementDataFile = inside%d.raw 1 1 1\n"
            ).encode(),
        }


class TiffParser(ImageParser):
    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        if rng.random() < 0.5:  # damage after the header hits the list of tags
            offset = struct.unpack("<I", content[4:8])[0] if content[:2] == b"II" else 0
            head, tail = content[:offset], content[offset:]
            return head + mutate(tail, [other[offset:] for other in others], rng, False)
        return mutate(content, others, rng, False)


@parser("tiff_stack")
class TiffStack(TiffParser):
    def seeds(self) -> dict[str, bytes]:
        import tifffile

        stack = volume(shape=(6, 9, 8)).astype(np.uint16)
        kinds: dict[str, dict[str, Any]] = {
            "plain.tif": {"metadata": None},
            "shaped.tif": {},
            "imagej.tif": {"imagej": True, "metadata": {"spacing": 2.0, "unit": "um"}},
            "ome.ome.tif": {"metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5}},
            "zlib.tif": {"compression": "zlib", "metadata": None},
            "big.tif": {"bigtiff": True, "metadata": None},
            "tiled.tif": {"tile": (16, 16), "compression": "zlib"},
            "msb.tif": {"byteorder": ">", "metadata": None},
        }
        found = {}
        for name, options in kinds.items():
            stream = io.BytesIO()
            tifffile.imwrite(stream, stack, **options)
            found[name] = stream.getvalue()
        found["circle.tif"] = b"II*\0\x08\0\0\0\0\0\x08\0\0\0"
        return found

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.data.formats.tiff.reader import is_stack, load_stack
        from samadapt.errors import SamadaptError

        path = self.put(name, content)
        is_stack(path)
        try:
            load_stack(path, None)
        except SamadaptError:
            if not name.startswith("circle"):
                raise


class Pictures(Parser):
    """Picture files, read as image and as mask."""

    ending = ".png"
    options: tuple[dict[str, Any], ...] = ({},)
    modes: tuple[str, ...] = ("RGB", "L", "P")

    def seeds(self) -> dict[str, bytes]:
        from PIL import Image

        found = {}
        values = np.random.default_rng(0).integers(0, 255, (14, 11, 3), dtype=np.uint8)
        for mode in self.modes:
            picture = Image.fromarray(values[:, :, 0].astype(np.uint16) * 200)
            if mode != "I;16":
                picture = Image.fromarray(values).convert(mode)
            for number, options in enumerate(self.options):
                stream = io.BytesIO()
                picture.save(stream, **{"format": self.ending[1:].upper(), **options})
                found[f"{mode.replace(';', '')}_{number}{self.ending}"] = stream.getvalue()
        return found

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.data.formats.shared.pictures import load_mask, load_picture
        from samadapt.errors import SamadaptError

        path = self.put(name, content)
        load_picture(path)
        try:
            load_mask(path)
        except SamadaptError:
            if content not in self.seeds().values():
                raise


@parser("png")
class Png(Pictures):
    modes = ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        damaged = mutate(content, others, rng, False)
        return _right_checksums(damaged) if rng.random() < 0.8 else damaged


def _right_checksums(content: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that their content is read."""
    changed, at = bytearray(content), 8
    while at + 12 <= len(changed):
        size = struct.unpack(">I", changed[at : at + 4])[0]
        if at + 12 + size > len(changed):
            break
        end = at + 8 + size
        changed[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(changed[at + 4 : end])))
        at = end + 4
    return bytes(changed)


@parser("jpeg")
class Jpeg(Pictures):
    ending, modes = ".jpg", ("RGB", "L", "CMYK")

    def seeds(self) -> dict[str, bytes]:
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6
        self.options = (
            {"format": "JPEG"},
            {"format": "JPEG", "progressive": True},
            {"format": "JPEG", "exif": exif},
        )
        return super().seeds()


@parser("bmp")
class Bmp(Pictures):
    ending, modes = ".bmp", ("RGB", "L", "P", "1")


@parser("gif")
class Gif(Pictures):
    ending, modes = ".gif", ("P", "L")


@parser("webp")
class WebP(Pictures):
    ending, modes = ".webp", ("RGB", "RGBA")
    options = ({}, {"lossless": True})


@parser("tiff_picture")
class TiffPicture(Pictures):
    ending, modes = ".tif", ("RGB", "L", "P", "1", "I;16")
    options = tuple(
        {"format": "TIFF", "compression": kind} for kind in (None, "tiff_lzw", "tiff_adobe_deflate")
    )


@parser("medsam_npz")
class MedSam(Parser):
    def seeds(self) -> dict[str, bytes]:
        found = {}
        for name, image in (("volume", volume()), ("picture", volume(shape=(9, 8)))):
            for save in (np.savez, np.savez_compressed):
                stream = io.BytesIO()
                save(stream, imgs=image, gts=(image > 99).astype(np.uint8), spacing=np.ones(3))
                found[f"{name}_{save.__name__}.npz"] = stream.getvalue()
        stream = io.BytesIO()
        np.save(stream, volume())
        return found | {"a.npy": stream.getvalue()}

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        if content[:2] != b"PK" or rng.random() < 0.4:
            return mutate(content, others, rng, False)
        stream = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as source,
            zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            parts = [source.read(name) for name in source.namelist()]
            for name, part in zip(source.namelist(), parts, strict=True):
                hit = rng.random() < 0.6
                target.writestr(name, mutate(part, parts, rng, rng.random() < 0.5) if hit else part)
        return stream.getvalue()

    def parse(self, name: str, content: bytes) -> None:
        shutil.rmtree(self.folder)
        path = self.put(name, content)
        if name.endswith(".npz"):
            examine("medsam_npz", self.folder)
            return
        from samadapt.data.formats.base import reader_for

        reader_for(path).read_image(path)


class JsonParser(Parser):
    is_text = True


def _folder_of_pictures(root: Path, count: int = 3, side: int = 16) -> None:
    from PIL import Image

    (root / "images").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        values = np.random.default_rng(index).integers(0, 255, (side, 12), dtype=np.uint8)
        Image.fromarray(values).save(root / "images" / f"p{index}.png")


@parser("coco", "pycocotools")
class Coco(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        _folder_of_pictures(self.folder)
        images = [{"id": i, "file_name": f"p{i}.png", "height": 16, "width": 12} for i in range(3)]
        shapes: list[Any] = [
            [[1, 1, 9, 1, 9, 9, 1, 9]],
            {"size": [16, 12], "counts": [10, 30, 152]},
            {"size": [16, 12], "counts": ":N_4"},
        ]
        entries = [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": s, "iscrowd": 0, "area": 9}
            for i, s in enumerate(shapes)
        ]
        content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "c"}]}
        return {"annotations.json": json.dumps(content).encode()}

    def parse(self, name: str, content: bytes) -> None:
        self.put(name, content)
        examine("coco", self.folder)


@parser("sa1b", "pycocotools")
class Sa1b(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        from PIL import Image

        values = np.random.default_rng(0).integers(0, 255, (16, 12, 3), dtype=np.uint8)
        Image.fromarray(values).save(self.folder / "sa_1.jpg")
        runs = {"size": [16, 12], "counts": [10, 30, 152]}
        content = {
            "image": {"image_id": 1, "height": 16, "width": 12, "file_name": "sa_1.jpg"},
            "annotations": [{"id": 1, "segmentation": runs, "bbox": [1, 1, 4, 4], "area": 30}],
        }
        return {"sa_1.json": json.dumps(content).encode()}

    def parse(self, name: str, content: bytes) -> None:
        self.put(name, content)
        examine("sa1b", self.folder)


@parser("annotations")
class Annotations(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        boxes = {"boxes": [[1, 1, 9, 9], [2.5, 3, 4, 5]], "labels": ["a", "b"]}
        points = {"points": [[1, 1], [3, 4]], "point_labels": [1, 0], "labels": ["a", "b"]}
        return {f"{i}.json": json.dumps(c).encode() for i, c in enumerate((boxes, points, {}))}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.data.annotations import read_annotation

        read_annotation(self.put(name, content), 16, 12)


@parser("dataset_json")
class DatasetJson(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        import nibabel as nib

        for part in ("imagesTr", "labelsTr"):
            (self.folder / part).mkdir()
            values = volume() if part == "imagesTr" else (volume() > 99).astype(np.uint8)
            nib.save(nib.Nifti1Image(values, np.eye(4)), self.folder / part / "a.nii.gz")
        entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
        msd = {"modality": {"0": "MRI"}, "labels": {"0": "b", "1": "c"}, "training": [entry]}
        nnunet = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "c": [1, 2], "d": 2, "ignore": 3},
            "numTraining": 1,
            "file_ending": ".nii.gz",
            "regions_class_order": [1, 2],
        }
        return {
            f"{i}.json": json.dumps(content).encode() for i, content in enumerate((msd, nnunet))
        }

    def parse(self, name: str, content: bytes) -> None:
        self.put("dataset.json", content)
        examine("msd", self.folder)
        examine("msd", self.folder, channel="CT")


@parser("labelme")
class Labelme(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        _folder_of_pictures(self.folder)
        shapes = [
            {"label": "a", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]},
            {"label": "b", "shape_type": "rectangle", "points": [[1, 1], [5, 5]]},
            {"label": "b", "shape_type": "circle", "points": [[5, 5], [8, 8]]},
        ]
        content = {"imagePath": "p0.png", "imageHeight": 16, "imageWidth": 12, "shapes": shapes}
        return {"p0.json": json.dumps(content | {"version": "5.0", "imageData": None}).encode()}

    def parse(self, name: str, content: bytes) -> None:
        shutil.copy(self.folder / "images" / "p0.png", self.folder / "p0.png")
        self.put(name, content)
        examine("labelme", self.folder)


@parser("yolo")
class Yolo(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        _folder_of_pictures(self.folder)
        text = "0 0.1 0.1 0.9 0.1 0.9 0.9\n1 0.2 0.2 0.4 0.2 0.4 0.4 0.2 0.4\n"
        return {"labels/p0.txt": text.encode(), "data.yaml": b"path: .\nnames:\n  0: a\n  1: b\n"}

    def parse(self, name: str, content: bytes) -> None:
        for other, whole in self.seeds().items():
            self.put(other, content if other == name else whole)
        examine("yolo", self.folder)


@parser("yaml_recipe")
class Recipe(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        from samadapt.config.compose import compose, recipes, to_yaml

        found = {path.name: path.read_bytes() for path in recipes().values()}
        found["alias.yaml"] = b"a: &a {b: 1}\nmodel: {<<: *a}\ntrain: {steps: 3}\n"
        return found | {"stored.yaml": to_yaml(compose("medical")).encode()}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.config.compose import from_yaml
        from samadapt.errors import ConfigError

        try:
            from_yaml(self.put(name, content))
        except ConfigError:
            if name == "alias.yaml" or content not in self.seeds().values():
                return
            raise


@parser("yaml_card")
class DataCard(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        from samadapt.data.cards import cards_folder

        return {path.name: path.read_bytes() for path in sorted(cards_folder().glob("*.yaml"))}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.data.cards import read_card

        read_card(self.put(name, content))


@parser("command_line")
class CommandLine(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        lines = (
            "data.classes={liver: 1, spleen: [2, 3]}",
            "data.classes=[liver,spleen]",
            "train.augment=[flip,noise]",
            "train.lr=1e-4",
            "peft=[lora,bias]",
            "data.intensity=ct:-160,240",
            "data.image='*/a b.nii.gz'",
            "cache.max_gb=null",
        )
        return {str(number): line.encode() for number, line in enumerate(lines)}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.config.compose import compose

        compose("medical", content.decode("utf-8", "replace").split("\n"))


@parser("adapter_record")
class Record(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        content = {
            "base": "vit_b",
            "base_sha256": "0" * 64,
            "image_size": 1024,
            "method": {"name": "lora", "rank": 4},
            "classes": ["liver"],
            "intensity": {"kind": "window", "low": -160, "high": 240},
            "prompt": {"kind": "box", "objects": "component"},
            "scores": {"dice": 0.9},
            "data_options": {"name": "nifti", "tile": None, "tile_overlap": 0.1},
            "trained_on": {"a" * 32: [1, 2], "b" * 32: None},
        }
        return {"samadapt.json": json.dumps(content).encode()}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.adapters.record import read_record
        from samadapt.data.intensity import IntensityRule
        from samadapt.data.tiles import recorded_tiling
        from samadapt.prompts.policy import PromptPolicy

        self.put(name, content)
        record = read_record(self.folder)
        recorded_tiling(record.data_options)
        for kind, entry in ((IntensityRule, record.intensity), (PromptPolicy, record.prompt)):
            if hasattr(kind, "from_dict"):
                kind.from_dict(entry)


@parser("annotated")
class Annotated(JsonParser):
    """The file that ``data.annotated`` names, as CSV and as JSON."""

    def seeds(self) -> dict[str, bytes]:
        rows = "case,classes,slices\na,liver; spleen,0-4; 7\nb,liver,\n*,,\n"
        content = {"a": ["liver"], "b": {"classes": ["spleen"], "slices": [[0, 3], 5]}}
        return {"a.csv": rows.encode(), "a.json": json.dumps(content).encode()}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.data.classes import make_table
        from samadapt.data.formats.base import Scan
        from samadapt.data.partial_labels import read_partial_labels
        from samadapt.data.types import Case

        cases = [Case(case, Path(case), shape=(9, 9, 9)) for case in "ab"]
        table = make_table({"liver": (1,), "spleen": (2,)}, None, {1, 2})
        read_partial_labels(self.put(name, content), None, Scan(cases), table)


class Weights(Parser):
    """Files of tensors."""

    def tensors(self) -> dict[str, Any]:
        import torch

        return {
            "image_encoder.blocks.0.attn.qkv.weight": torch.ones(6, 2),
            "image_encoder.patch_embed.proj.weight": torch.ones(2, 3, 4, 4),
            "mask_decoder.a": torch.ones(3, dtype=torch.bfloat16),
        }

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.sam.weights.checkpoints import read_checkpoint

        read_checkpoint(self.put(name, content))


@parser("safetensors")
class SafeTensors(Weights):
    def seeds(self) -> dict[str, bytes]:
        from safetensors.torch import save

        return {"a.safetensors": save(self.tensors(), metadata={"format": "pt"})}

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        if rng.random() < 0.5:
            return mutate(content, others, rng, False)
        size = struct.unpack("<Q", content[:8])[0]
        head = mutate(content[8 : 8 + size], others, rng, True)
        return struct.pack("<Q", len(head)) + head + content[8 + size :]


@parser("pth")
class Pth(Weights):
    def seeds(self) -> dict[str, bytes]:
        import torch

        found = {}
        for name, new in (("new.pth", True), ("old.pth", False)):
            stream = io.BytesIO()
            content = {"model": self.tensors(), "epoch": 3}
            torch.save(content, stream, _use_new_zipfile_serialization=new)
            found[name] = stream.getvalue()
        return found

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        if content[:2] != b"PK" or rng.random() < 0.4:
            return mutate(content, others, rng, False)
        stream = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as source,
            zipfile.ZipFile(stream, "w") as target,
        ):
            for name in source.namelist():
                part = source.read(name)
                hit = name.endswith(".pkl") or rng.random() < 0.1
                target.writestr(name, mutate(part, [part], rng, False) if hit else part)
        return stream.getvalue()


@parser("adapter_weights")
class AdapterWeights(SafeTensors):
    def parse(self, name: str, content: bytes) -> None:
        from samadapt.adapters.verify import read_weights

        read_weights(self.put(name, content))


@parser("weights_index")
class WeightsIndex(JsonParser):
    def seeds(self) -> dict[str, bytes]:
        from safetensors.torch import save_file

        save_file(Weights.tensors(Weights(self.folder)), self.folder / "a.safetensors")
        (self.folder / "config.json").write_text('{"model_type": "sam"}', encoding="utf-8")
        index = {"metadata": {"total_size": 9}, "weight_map": {"x": "a.safetensors"}}
        return {
            "model.safetensors.index.json": json.dumps(index).encode(),
            "config.json": b'{"model_type": "sam"}',
        }

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.sam.weights.checkpoints import read_checkpoint

        for other, whole in self.__dict__.setdefault("whole", self.seeds()).items():
            self.put(other, content if other == name else whole)
        read_checkpoint(self.folder)


@parser("resume")
class Resume(Parser):
    """A run's checkpoint with one damaged file; the manifest is corrected."""

    def seeds(self) -> dict[str, bytes]:
        import torch

        from samadapt.training.checkpoint import Checkpoint, save_checkpoint

        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter])
        parameter.sum().backward()
        optimizer.step()
        progress = {
            "step": 2,
            "best_step": 1,
            "best_score": 0.5,
            "skipped": 0,
            "sampler": 3,
            "prompts": np.random.default_rng(0).bit_generator.state,
        }
        weights = {"a": torch.ones(3)}
        state = {"cpu": torch.get_rng_state()}
        whole = Checkpoint(2, weights, weights, optimizer.state_dict(), progress, state)
        self.step = save_checkpoint(self.folder, whole)
        files = {path.name: path.read_bytes() for path in self.step.iterdir() if path.is_file()}
        self.whole = files
        return files | {"LATEST": (self.folder / "LATEST").read_bytes()}

    def damage(self, content: bytes, others: list[bytes], rng: Any, mutate: Mutate) -> bytes:
        return mutate(content, others, rng, content[:1] == b"{")

    def parse(self, name: str, content: bytes) -> None:
        import hashlib

        from samadapt.training.checkpoint import load_checkpoint

        for other, whole in self.whole.items():
            (self.step / other).write_bytes(content if other == name else whole)
        (self.folder / "LATEST").write_bytes(
            content if name == "LATEST" else self.step.name.encode()
        )
        manifest = self.step / "manifest.json"
        if name not in ("manifest.json", "LATEST"):
            said = json.loads(self.whole["manifest.json"])
            said["sha256"][name] = hashlib.sha256(content).hexdigest()
            manifest.write_text(json.dumps(said), encoding="utf-8")
        load_checkpoint(self.folder)


@parser("archive")
class Archive(Parser):
    def seeds(self) -> dict[str, bytes]:
        import tarfile

        found = {}
        for mode, name in (("w", "a.tar"), ("w:gz", "a.tar.gz"), ("w:xz", "a.tar.xz")):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode=mode) as tar:
                for index in range(3):
                    info = tarfile.TarInfo("set/" + "x" * 120 + str(index))
                    info.size = 9
                    tar.addfile(info, io.BytesIO(b"123456789"))
            found[name] = stream.getvalue()
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
            for index in range(3):
                target.writestr(f"set/{index}", "123456789" * 9)
        return found | {"a.zip": stream.getvalue()}

    def parse(self, name: str, content: bytes) -> None:
        from samadapt.system.archives import extract_archive

        out = self.folder / "out"
        try:
            extract_archive(self.put(name, content), out)
        finally:
            shutil.rmtree(out, ignore_errors=True)


def _dicom(planes: np.ndarray, kind: str, **tags: Any) -> Any:
    """Return a DICOM data set with the planes (frames, rows, columns) as its pixels."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, "1.2.3.4"
    data = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = kind, "1.2.3.4", "1.2.3"
    data.FrameOfReferenceUID, data.StudyInstanceUID, data.Modality = "1.2.9", "1.2.8", "CT"
    data.PatientID, data.SeriesNumber = "P", 1
    data.Rows, data.Columns = planes.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = planes.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, 0
    data.PixelSpacing, data.SliceThickness = [1, 1], 2
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    data.RescaleSlope, data.RescaleIntercept = 1, -1000
    if len(planes) > 1:
        data.NumberOfFrames = len(planes)
    for key, value in tags.items():
        setattr(data, key, value)
    data.PixelData = planes.tobytes()
    return data


def _saved(data: Any) -> bytes:
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@parser("dicom", "pydicom")
class Dicom(ImageParser):
    def seeds(self) -> dict[str, bytes]:
        import pydicom

        plane = volume(shape=(1, 9, 8)).astype(np.uint16)
        ct = pydicom.uid.CTImageStorage
        found = {"plain.dcm": _saved(_dicom(plane, ct))}
        deflated = _dicom(plane, ct)
        deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        found["deflated.dcm"] = _saved(deflated)
        packed = _dicom(plane, ct)
        packed.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        found["rle.dcm"] = _saved(packed)
        implicit = _dicom(plane, ct)
        implicit.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        found["implicit.dcm"] = _saved(implicit)
        return found


@parser("dicom_folder", "pydicom")
class DicomFolder(Parser):
    """A series and a segmentation that refers to it, with one damaged file."""

    def seeds(self) -> dict[str, bytes]:
        import pydicom

        ct = pydicom.uid.CTImageStorage
        found = {}
        for index in range(3):
            plane = volume(index, (1, 9, 8)).astype(np.uint16)
            place = [0, 0, 2 * index]
            data = _dicom(plane, ct, ImagePositionPatient=place, InstanceNumber=index)
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{index}"
            found[f"series/{index}.dcm"] = _saved(data)
        found["seg.dcm"] = _saved(self._segmentation())
        self.whole = found
        return found

    def _segmentation(self) -> Any:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        planes = (volume(5, (3, 9, 8)) > 99).astype(np.uint8)
        data = _dicom(planes, "1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
        data.SeriesInstanceUID, data.SegmentationType = "1.2.77", "BINARY"
        segment, series = Dataset(), Dataset()
        segment.SegmentNumber, segment.SegmentLabel = 1, "liver"
        series.SeriesInstanceUID = "1.2.3"
        data.SegmentSequence, data.ReferencedSeriesSequence = (
            Sequence([segment]),
            Sequence([series]),
        )
        groups = []
        for index in range(3):
            group, place, number = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [0, 0, 2 * index]
            number.ReferencedSegmentNumber = 1
            group.PlanePositionSequence = Sequence([place])
            group.SegmentIdentificationSequence = Sequence([number])
            groups.append(group)
        data.PerFrameFunctionalGroupsSequence = Sequence(groups)
        return data

    def parse(self, name: str, content: bytes) -> None:
        for other, whole in self.whole.items():
            self.put(other, content if other == name else whole)
        examine("dicom", self.folder)


@parser("dicom_rtstruct", "pydicom")
class RtStruct(DicomFolder):
    def _segmentation(self) -> Any:
        from pydicom.dataset import Dataset
        from pydicom.sequence import Sequence

        kind = "1.2.840.10008.5.1.4.1.1.481.3"
        data = _dicom(volume(shape=(1, 2, 2)).astype(np.uint16), kind, Modality="RTSTRUCT")
        for key in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(data, key)
        data.SeriesInstanceUID = "1.2.77"
        roi, contours, frame = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "liver", "1.2.9"
        contours.ReferencedROINumber = 1
        study, series, image = Dataset(), Dataset(), Dataset()
        image.ReferencedSOPInstanceUID = "1.2.3.4.1"
        series.SeriesInstanceUID, series.ContourImageSequence = "1.2.3", Sequence([image])
        study.RTReferencedSeriesSequence = Sequence([series])
        frame.FrameOfReferenceUID = "1.2.9"
        frame.RTReferencedStudySequence = Sequence([study])
        data.ReferencedFrameOfReferenceSequence = Sequence([frame])
        rings = []
        for z in (0, 2):
            ring = Dataset()
            ring.ContourGeometricType, ring.NumberOfContourPoints = "CLOSED_PLANAR", 4
            ring.ContourData = [1, 1, z, 6, 1, z, 6, 6, z, 1, 6, z]
            ring.ContourImageSequence = Sequence([image])
            rings.append(ring)
        contours.ContourSequence = Sequence(rings)
        data.StructureSetROISequence = Sequence([roi])
        data.ROIContourSequence = Sequence([contours])
        return data
