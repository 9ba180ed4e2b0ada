"""The processes of one run: who they are, which part of a batch is whose, and when they meet.

`torchrun` starts them and tells each its number through the environment.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from kdcache.errors import ConfigError


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes of the run inside, if `torchrun` started several.

    Tensors on a GPU travel through NCCL, those on the CPU through gloo.

    Raises:
        ConfigError: there are several processes, and this one was not told its number.
    """
    if _num_started() == 1:
        yield
        return
    on_gpu = device.type == "cuda"
    here = local_device(device) if on_gpu else None
    if here is not None:
        torch.cuda.set_device(here)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", device_id=here)
    try:
        yield
    finally:
        distributed.destroy_process_group()


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


def any_rank(flag: bool) -> bool:
    """Whether any process says so. All must ask; no GPU waits, for it goes through the CPU."""
    if world_size() == 1:
        return flag
    said = torch.tensor(int(flag))
    distributed.all_reduce(said, distributed.ReduceOp.MAX)
    return bool(said)


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
            hint="start with torchrun --nproc-per-node=N -m kdcache_cli.main train ..., or unset "
            "WORLD_SIZE",
        )
    return number
