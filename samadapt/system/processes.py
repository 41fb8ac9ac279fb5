"""What the processes of one run tell each other; with a single process nothing is said.

There is no wrapper around the model. Every process reads its share of each batch and adds up its
share of the gradient; the shares are summed once a step (``collectives.py``). Whatever else must be
the same for all, such as the number of objects in a batch, is agreed on here. All processes must
call these functions in the same order; a process that skips a call leaves the others waiting.

With a single process the functions return what it gave them, so no caller needs to know how many
there are. This file imports torch only where there are several.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from samadapt.errors import ConfigError, LostOthersError, RunError, SamadaptError
from samadapt.system.launchers import Place, find_place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

ARRIVAL_SECONDS = 120.0
"""How long the processes of a run wait for each other at the start."""

WAIT = timedelta(hours=24)
"""How long they wait for each other later: one may score a large volume while others are done. A
process that dies is noticed at once, because its connections close."""

ALONE = Place()

_MEETINGS: list[Place] = []
"""Where this program has met others so far."""

_place = ALONE
_store: Store | None = None


def place() -> Place:
    """Return which of the run's processes this one is."""
    return _place


def count() -> int:
    """Return the number of processes that share the run."""
    return _place.size


def is_first() -> bool:
    """Return whether this process writes the run directory and talks to the user."""
    return _place.rank == 0


@contextmanager
def together(device: str = "cpu") -> Iterator[None]:
    """Join the other processes of the run while the block runs, if a launcher started several.

    Inside another such block nothing happens. On a machine with GPUs each process takes the one of
    its local rank.

    Args:
        device: the key ``device`` of the run.

    Raises:
        ConfigError: processes are missing, or the machine has fewer GPUs than processes.
        RunError: the processes cannot meet.
    """
    found = find_place() if _place.size == 1 else ALONE
    if found.size == 1:
        yield
        return
    import torch

    # Default arguments of its functions are the group of all processes at the time of its import.
    # If that were the one below, it would outlive this block, and with it threads of gloo, which
    # abort the program if they still run when Python ends. Libraries import it at any time.
    import torch.distributed.nn
    from torch import distributed

    uses_gpu = device not in ("cpu", "mps") and torch.cuda.is_available()
    if uses_gpu:
        _choose_gpu(found)
    store = _meet(found)
    has_nccl = uses_gpu and distributed.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_nccl else "gloo"
    with lost_others():
        distributed.init_process_group(
            backend, store=store, rank=found.rank, world_size=found.size, timeout=WAIT
        )
    _set_place(found, store)
    try:
        if uses_gpu:
            _refuse_shared_gpu()
        yield
    finally:
        _set_place(ALONE, store)  # errors are still compared through the store
        distributed.destroy_process_group()


def _set_place(own: Place, store: Store) -> None:
    global _place, _store
    _place, _store = own, store


def share(items: Sequence[T]) -> list[T]:
    """Return this process's share of some items: every ``count()``-th one."""
    return list(items[_place.rank :: _place.size])


def block(items: Sequence[T]) -> list[T]:
    """Return this process's part of some items, which lie one after another.

    Items that lie together, such as slices of a volume, are then read by one process.
    """
    size, rank = _place.size, _place.rank
    return list(items[len(items) * rank // size : len(items) * (rank + 1) // size])


def shares_joined(parts: Sequence[Sequence[T]]) -> list[T]:
    """Put the shares of all processes, in the order of their ranks, back into one list."""
    size = len(parts)
    return [parts[at % size][at // size] for at in range(sum(map(len, parts)))]


def gather(value: T) -> list[T]:
    """Return the value of every process, by rank.

    The values are pickled by torch. They come from processes of this run, and never from a file.
    """
    if _place.size == 1:
        return [value]
    from torch import distributed

    found: list[Any] = [None] * _place.size
    with lost_others():
        distributed.all_gather_object(found, value)
    return found


def from_first(value: T) -> T:
    """Return the value of the first process."""
    return gather(value if is_first() else None)[0]  # type: ignore[return-value]


def by_first(work: Callable[[], T]) -> T:
    """Let the first process do what must happen once, and return its result in all processes.

    Raises:
        SamadaptError: what the first process raised, in all of them.
    """
    found: T | None = None
    failed: SamadaptError | None = None
    if is_first():
        try:
            found = work()
        except SamadaptError as error:
            failed = error
    # Errors with arguments of their own cannot be sent; the message and the exit code can.
    said = from_first(None if failed is None else (failed.exit_code, str(failed)))
    if failed is not None:
        raise failed
    if said is not None:
        raise (RunError if said[0] == RunError.exit_code else ConfigError)(said[1])
    return from_first(found)  # type: ignore[return-value]


def wait() -> None:
    """Wait until all processes are here."""
    gather(None)


def any_of(flag: bool) -> bool:
    """Return whether the flag of any process is set."""
    return flag if _place.size == 1 else any(gather(flag))


def refuse_differences(what: str, facts: Mapping[str, object], advice: str) -> None:
    """Check that all processes have the same facts.

    Args:
        what: names the facts in the message.
        facts: values by name.
        advice: what to do if they differ.

    Raises:
        ConfigError: naming the first facts that differ, in every process.
    """
    all_facts = gather({name: str(value) for name, value in facts.items()})
    first = all_facts[0]
    for rank, other in enumerate(all_facts):
        names = sorted(name for name in {*first, *other} if first.get(name) != other.get(name))
        if names:
            listed = "; ".join(
                f"{name}: {first.get(name)} in process 0, {other.get(name)} in process {rank}"
                for name in names[:3]
            )
            raise ConfigError(
                f"{what} differ between the processes of this run: {listed}. {advice}"
            )


@contextmanager
def lost_others() -> Iterator[None]:
    """Turn an error of torch's collectives into one that says what happened.

    Raises:
        LostOthersError: another process ended, or the network failed.
    """
    try:
        yield
    except RuntimeError as error:
        raise LostOthersError(
            f"process {_place.rank} of {_place.size} lost the others: one of them ended, or the "
            f"network failed ({_first_line(error)}). Its own message says why. Go on from the last "
            "checkpoint with resume=; predict and masks go on with the same command"
        ) from error


def tells_user(rank: int, message: str, *, is_lost: bool = False) -> bool:
    """Return whether this process should report the error that ends it.

    The first process reports what it finds. Others report what the first one does not: they wait a
    moment for its message, and compare.

    Args:
        rank: number of this process.
        message: the error.
        is_lost: the error is that another process ended. If the first one says why, that is enough.
    """
    if _store is None:  # the processes have not met; all have the same arguments
        return rank == 0
    try:
        _store.set(f"error/{rank}", message)
        if rank == 0:
            return True
        _store.wait(["error/0"], timedelta(seconds=5))
        return not is_lost and bool(_store.get("error/0").decode() != message)
    except RuntimeError:  # the first process has no error, or is gone
        return True


def _meet(own: Place) -> Store:
    """Return the store through which the processes find each other, once all are there.

    A program may meet several times, for one run after another. Each time it uses other keys of the
    store, which remembers those of the last time.
    """
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # torchrun's agent may serve the store; torch finds out from the environment.
    names = {
        "RANK": str(own.rank),
        "WORLD_SIZE": str(own.size),
        "MASTER_ADDR": own.address,
        "MASTER_PORT": str(own.port),
    }
    added = {name: value for name, value in names.items() if name not in os.environ}
    os.environ.update(added)
    _MEETINGS.append(own)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    prefix = f"samadapt/{restarts}/{len(_MEETINGS)}"
    patience = timedelta(seconds=ARRIVAL_SECONDS)
    try:
        store, _, _ = next(rendezvous("env://", own.rank, own.size, timeout=patience))
        store = PrefixStore(prefix, store)
        arrived, until = store.add("arrived", 1), time.monotonic() + ARRIVAL_SECONDS
        while arrived < own.size and time.monotonic() < until:
            time.sleep(0.05)
            arrived = store.add("arrived", 0)
    except (RuntimeError, ValueError) as error:
        # torch waits itself where it serves the store, and counts who came.
        counted = re.search(r"(\d+)/\d+ clients joined", str(error))
        if counted is None:
            raise RunError(
                f"the {own.size} processes of this run cannot meet at {own.address}:{own.port} "
                f"({_first_line(error)}); if the port is taken, name another with MASTER_PORT"
            ) from error
        arrived = int(counted[1])
    finally:
        for name in added:
            del os.environ[name]
    if arrived < own.size:
        raise ConfigError(
            f"only {arrived} of {own.size} processes arrived at {own.address}:{own.port} within "
            f"{ARRIVAL_SECONDS:.0f} seconds; start all of them, with the same MASTER_ADDR and "
            "MASTER_PORT"
        )
    found: Store = store
    return found


def _choose_gpu(own: Place) -> None:
    """Make ``cuda`` the GPU of this process.

    Raises:
        ConfigError: there are more processes than GPUs on this machine.
    """
    import torch

    # Launchers may show each process its own GPU alone.
    seen = torch.cuda.device_count()
    shows_one = seen == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if own.local_rank >= seen and not shows_one:
        raise ConfigError(
            f"process {own.rank} is number {own.local_rank} of its machine, which has {seen} GPUs; "
            "start one process for each GPU, or use device=cpu"
        )
    torch.cuda.set_device(own.local_rank % seen)


def _refuse_shared_gpu() -> None:
    """Check that every process has a GPU of its own.

    Raises:
        ConfigError: two processes use the same one.
    """
    import torch

    uuid = str(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", ""))
    names = gather(f"{platform.node()}, GPU {uuid or torch.cuda.current_device()}")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} of {len(names)} processes use the same GPU ({name}); start "
                "one process for each GPU that CUDA_VISIBLE_DEVICES shows, or use device=cpu"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
