"""The package runs where there is nothing of POSIX: Windows, and what macOS lacks of Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Other packages have branches of their own for Windows, so they are loaded first, and what they
# need of this system is kept for them.
WITHOUT_POSIX = """
import os, pathlib, shutil, signal, sys
import accelerate, filelock, matplotlib.pyplot, monai, peft, psutil, safetensors.torch, timm, torch
import skimage.measure, torchvision, multiprocessing.popen_fork, multiprocessing.resource_tracker
import torch._dynamo

room = shutil.disk_usage(".")
shutil.disk_usage = lambda path: room
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"):
    sys.modules[name] = None
LACKING = (
    "statvfs", "sysconf", "sched_getaffinity", "sched_setaffinity", "fork", "forkpty", "getuid",
    "geteuid", "getgid", "getpgid", "killpg", "uname", "getloadavg", "fchmod", "chown", "mkfifo",
    "nice", "setsid", "wait3", "wait4", "posix_fallocate",
)
for name in LACKING:
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGKILL",
             "alarm", "setitimer", "siginterrupt", "pthread_sigmask", "sigwait", "pause"):
    if hasattr(signal, name):
        delattr(signal, name)

plain_open = os.open
def no_folders(path, flags, *rest, **more):  # Windows opens no folder
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return plain_open(path, flags, *rest, **more)
os.open = no_folders

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        caller = sys._getframe(1)
        while caller and "samadapt" not in caller.f_code.co_filename:
            caller = caller.f_back
        if caller and "psutil" not in sys._getframe(1).f_code.co_filename:
            raise FileNotFoundError(2, "there is none", arguments[0])
sys.addaudithook(refuse)

if sys.argv[1] == "import":
    import importlib, pkgutil, samadapt
    for module in pkgutil.walk_packages(samadapt.__path__, "samadapt."):
        if not module.name.endswith(("__main__", "_avx2", "_avx512")):
            importlib.import_module(module.name)
    sys.exit()
from samadapt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Give a folder of five pictures with masks."""
    y, x = np.mgrid[:64, :64]
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(5):
        disc = (y - 32) ** 2 + (x - 20 - 4 * i) ** 2 < 150
        Image.fromarray((disc * 200).astype("uint8")).save(tmp_path / f"data/images/a{i}.png")
        Image.fromarray((disc * 255).astype("uint8")).save(tmp_path / f"data/masks/a{i}.png")
    return tmp_path / "data"


def without_posix(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, *arguments],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )


@pytest.mark.slow
def test_every_module_is_imported_without_posix() -> None:
    done = without_posix("import")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_needs_nothing_of_posix(pictures: Path, tmp_path: Path) -> None:
    """Train and predict; the features are kept on disk, under locks."""
    out = tmp_path / "runs"
    trained = without_posix(
        "finetune",
        "recipe=photos",
        "model=tiny",
        "peft.blocks=[3]",
        "train.steps=2",
        f"data.root={pictures}",
        f"output.dir={out}",
        "device=cpu",
    )
    assert trained.returncode == 0, trained.stderr
    (adapter,) = out.glob("photos/*/adapter")
    assert list((out / "features").glob("*.safetensors"))
    predicted = without_posix(
        "predict",
        f"adapter={adapter}",
        f"input={pictures / 'images' / 'a0.png'}",
        f"output={tmp_path / 'mask.png'}",
        "boxes=[[10,20,40,45]]",
    )
    assert predicted.returncode == 0, predicted.stderr
    assert (tmp_path / "mask.png").is_file()


@pytest.mark.slow
def test_doctor_needs_nothing_of_posix() -> None:
    done = without_posix("doctor")
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout
