"""The processes of one run: who they are, which part of a batch is whose, and when they meet.

`torchrun` starts them and tells each its number through the environment.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from kdcache.distributed.collective import all_there, gather_equal, reduce_in_place
from kdcache.errors import ConfigError

_TIMEOUT_S = 1800.0
"""How long a process is waited for. The first one examines a student (`--eval-data`) and writes
files while the others wait, so this is much longer than a step."""


@contextmanager
def process_group(device: torch.device, *, timeout_s: float = _TIMEOUT_S) -> Iterator[None]:
    """Joins the processes of the run inside, if `torchrun` started several.

    Tensors on a GPU travel through NCCL, those on the CPU through gloo.

    Args:
        timeout_s: how long a process that does not answer is waited for, in seconds.

    Raises:
        ConfigError: there are several processes, and this one was not told its number.
        TrainingError: the others have not come in time.
    """
    if _num_started() == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    here = local_device(device) if on_gpu else None
    if here is not None:
        torch.cuda.set_device(here)
    timeout = timedelta(seconds=timeout_s)
    with all_there():
        found = distributed.rendezvous("env://", timeout=timeout)  # type: ignore[attr-defined]
        store, number, num_processes = next(found)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore(_attempt(), store),
            rank=number,
            world_size=num_processes,
            timeout=timeout,
            device_id=here,
        )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _attempt() -> str:
    """A name for this start of the processes, which an earlier one did not have.

    torchrun keeps one store for all of them, in which the addresses of processes that are dead by
    now still lie: after a restart gloo would call them.
    """
    return f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {_num_started()}"


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several processes on one machine, each has a GPU of its own.

    Raises:
        ConfigError: the machine has fewer GPUs than processes.
    """
    if device.type != "cuda" or device.index is not None or _num_started() == 1:
        return device
    number, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= num_gpus:
        raise ConfigError(
            f"process {number} of this machine (from 0) needs a GPU of its own, and there are "
            f"`{num_gpus}`",
            hint=f"start with torchrun --nproc-per-node={max(num_gpus, 1)}",
        )
    return torch.device("cuda", number)


def world_size() -> int:
    """Processes of this run."""
    return distributed.get_world_size() if _is_joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _is_joined() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


class Share(NamedTuple):
    """A process's part of a batch."""

    rows: slice
    weight: float
    """Of its mean in that of the whole batch, times the number of processes: the mean over all
    processes of means so weighted is the batch's."""


def share_of(count: int, rank: int, world_size: int) -> Share:
    """Which of `count` rows are a process's: parts differ in length by one row at most."""
    start, stop = count * rank // world_size, count * (rank + 1) // world_size
    return Share(slice(start, stop), (stop - start) * world_size / count)


def largest(number: int) -> int:
    """The largest number that a process says. All must ask; no GPU waits: it goes by the CPU."""
    if world_size() == 1:
        return number
    said = torch.tensor(number)
    reduce_in_place(said, distributed.ReduceOp.MAX)
    return int(said)


def any_rank(flag: bool) -> bool:
    """Whether any process says so. All must ask."""
    return bool(largest(int(flag)))


def everyones(number: int) -> list[int]:
    """What each process says, in their order. All must ask."""
    if world_size() == 1:
        return [number]
    return [int(said) for said in gather_equal(torch.tensor(number))]


def barrier() -> None:
    """Returns when every process has come here."""
    any_rank(False)


def _is_joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _num_started() -> int:
    """Processes that `torchrun` started, known before they have joined."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number > 1 and not {"RANK", "LOCAL_RANK"} <= set(os.environ):
        raise ConfigError(
            f"the environment says WORLD_SIZE=`{number}`, but not which of them this process is "
            "(RANK, LOCAL_RANK)",
            hint="start with torchrun --nproc-per-node=N -m kdcache_cli train ..., or unset "
            "WORLD_SIZE",
        )
    return number
