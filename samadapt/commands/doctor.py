"""``samadapt doctor``: what this machine has, what is wrong with it, and a fix for each problem."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from samadapt.errors import ConfigError, WeightsError
from samadapt.system import openmp
from samadapt.system.machine import busy_processors, total_memory_bytes
from samadapt.version import __version__

HELP = """
Reports versions, devices, precision, memory, disk and weights, with a fix for each problem. Exits
with 2 if something is broken, with 0 otherwise.
"""
SCHEMA = None

PACKAGES = ("torch", "torchvision", "timm", "peft", "monai", "accelerate", "hydra-core", "nibabel")
DISK_WANTED_GB, MEMORY_WANTED_GB = 5, 8
MUCH_LOAD = 0.5  # processors that others keep busy; less is the noise of a desktop
REINSTALL = "pip install --force-reinstall torch torchvision (both in one command, from one index)"


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        status: ``"fail"`` stops samadapt, ``"warn"`` limits it.
        what: the thing.
        found: how it is here.
        fix: what to do; empty where nothing is.
    """

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    fix: str = ""


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return every line, and ``exit_code`` 2 if one of them is a failure.

    Raises:
        ConfigError: for an argument; there are none.
    """
    if arguments:
        raise ConfigError(f"doctor takes no arguments; got {arguments[0]!r}")
    lines = [line for look in LOOKS for line in look()]
    broken = any(line.status == "fail" for line in lines)
    return {"lines": [asdict(line) for line in lines], "exit_code": 2 if broken else 0}


def render(result: dict[str, Any]) -> str:
    """Return the lines, each with its fix below it."""
    texts = []
    for line in result["lines"]:
        texts.append(f"{line['status']:<5} {line['what']:<12} {line['found']}")
        if line["fix"]:
            texts.append(f"{'':<19}fix: {line['fix']}")
    return "\n".join(texts)


def look_at_versions() -> list[Line]:
    """Python, samadapt and the packages that it stands on."""
    lines = [
        Line("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        Line("ok", "samadapt", f"{__version__} in {Path(__file__).parents[1]}"),
    ]
    for package in PACKAGES:
        try:
            lines.append(Line("ok", package, version(package)))
        except PackageNotFoundError:
            fix = f"pip install {package}, or install samadapt again"
            lines.append(Line("fail", package, "not installed", fix))
    return lines


def look_at_torchvision() -> list[Line]:
    """Whether torchvision was built for this torch: timm and peft need it."""
    try:
        import torch
        import torchvision  # noqa: F401
    except Exception as error:
        return [torchvision_fault(error)]
    return [Line("ok", "torch build", f"{torch.__version__}, and torchvision loads beside it")]


def torchvision_fault(error: Exception) -> Line:
    """Return the line for an error raised by ``import torchvision``."""
    if "torchvision::nms" in str(error):
        found = "torchvision was built for another torch (a CUDA build beside a CPU build?)"
        return Line("fail", "torch build", f"{found}: {error}", REINSTALL)
    return Line("fail", "torch build", f"{type(error).__name__}: {error}", REINSTALL)


def look_at_devices() -> list[Line]:
    """Accelerators, and the precision that each computes fast in."""
    try:
        import torch
    except Exception:  # reported by look_at_torchvision
        return []
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if properties.major >= 8 else "no fast bf16: use precision=fp32"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        lines.append(Line("ok", f"cuda:{index}", f"{properties.name}, {memory}, {bf16}"))
    if torch.backends.mps.is_available():
        lines.append(Line("ok", "mps", "Apple GPU; precision=fp32"))
    if not lines:
        fix = "none needed for lite_medsam; vit_b and larger train slowly without a GPU"
        lines.append(Line("warn", "gpu", "none that torch can use", fix))
    lines.append(Line("ok", "cpu", describe_cpu()))
    return [*lines, look_at_products(), look_at_attention(), *look_at_threads()]


def look_at_threads() -> list[Line]:
    """How many threads compute, how they wait, and whether other programs take their processors."""
    import torch

    threads = torch.get_num_threads()
    lines = [
        Line("ok", "threads", openmp.settings.describe_threads(threads)),
        Line("ok", "waiting", openmp.settings.describe_waiting()),
    ]
    busy, cores = busy_processors(), os.cpu_count() or 1
    found = f"other programs keep {busy:.1f} of {cores} processors busy"
    if busy < MUCH_LOAD or threads <= cores - busy + MUCH_LOAD / 2:
        return [*lines, Line("ok", "load", found)]
    found += f": too few are left for {threads} of ours, and every step takes longer"
    fewer = max(1, int(cores - busy))
    fix = "wait until they are done"
    fix += f", or leave them room with OMP_NUM_THREADS={fewer}" if fewer < threads else ""
    return [*lines, Line("warn", "load", found, fix)]


def look_at_products() -> Line:
    """How matrix products are computed on this CPU, and the measurement behind it."""
    import torch

    from samadapt.training.precision import choose_precision

    chosen = choose_precision("auto", torch.device("cpu"))
    return Line("ok", "products", f"precision=auto is {chosen.name} here: {chosen.reason}")


def look_at_attention() -> Line:
    """Whether attention is compiled: it was built when samadapt was installed, or not."""
    from samadapt.sam.attention.compiled import describe_attention, is_missing

    fix = "install gcc and Python's headers, then samadapt again; encoders are slower without"
    if is_missing():
        return Line("warn", "attention", describe_attention(), fix)
    return Line("ok", "attention", describe_attention())


def describe_cpu() -> str:
    """Return cores and the fast bf16 instructions of the CPU, where Linux tells them."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    fast = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    bf16 = f"fast bf16 ({', '.join(fast)})" if fast else "no fast bf16"
    return f"{os.cpu_count()} cores, {bf16}"


def look_at_space() -> list[Line]:
    """Memory, and free disk below the current directory."""
    memory = total_memory_bytes() / 2**30
    fix = "lower train.batch_size and eval.batch_size, or set cache.where=disk"
    lines = [_enough("memory", memory, MEMORY_WANTED_GB, "GiB in all", fix)]
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    fix = "free some, or set output.dir to another disk"
    lines.append(_enough("disk", free, DISK_WANTED_GB, f"GiB free in {Path.cwd()}", fix))
    return lines


def _enough(what: str, amount: float, wanted: int, unit: str, fix: str) -> Line:
    """Return ``ok`` or a warning, with a tenth of tolerance for what a system keeps to itself."""
    if amount >= 0.9 * wanted:
        return Line("ok", what, f"{amount:.1f} {unit}")
    return Line("warn", what, f"{amount:.1f} {unit}; {wanted} are wanted", fix)


def look_at_weights() -> list[Line]:
    """Which pretrained weights are on this machine; nothing is fetched."""
    try:
        from samadapt.sam.weights.sources import find_weights, known_weights
    except Exception as error:
        return [Line("fail", "weights", f"samadapt.sam does not load: {error}", REINSTALL)]
    lines = []
    for name, source in known_weights.items():
        try:
            lines.append(Line("ok", name, str(find_weights(name))))
        except WeightsError as error:
            found, _, fix = str(error).partition("; ")
            if source.url is None:
                lines.append(Line("warn", name, found, fix))
            else:
                later = f"not on this machine; fetched when first used ({source.size_mb} MB)"
                lines.append(Line("ok", name, later))
    return lines


def look_at_demo() -> list[Line]:
    """The images of the embedded default."""
    if find_spec("nilearn") is None:
        fix = "pip install 'samadapt[demo]'"
        return [Line("warn", "demo images", "nilearn is not installed: data=mni152 fails", fix)]
    return [Line("ok", "demo images", f"nilearn {version('nilearn')}")]


def look_at_shadow() -> list[Line]:
    """Whether a folder called ``datasets`` hides Hugging Face's package of that name."""
    spec = find_spec("datasets")
    if spec is None or spec.origin is not None:
        return [Line("ok", "datasets", "no folder hides Hugging Face's package")]
    places = ", ".join(sorted(set(spec.submodule_search_locations or [])))
    found = f"the folder {places} is importable as Hugging Face's 'datasets'"
    return [Line("warn", "datasets", found, "take its parent off PYTHONPATH and sys.path")]


LOOKS: tuple[Callable[[], list[Line]], ...] = (
    look_at_versions,
    look_at_torchvision,
    look_at_devices,
    look_at_space,
    look_at_weights,
    look_at_demo,
    look_at_shadow,
)
