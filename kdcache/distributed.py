"""What several processes of one run share: rows, gradients, and the statistics of batch norm.

Every function is the identity in a run of one process, so nothing else asks how many there are.
A process is started by `torchrun`; rank r of W holds the r-th of W equal parts of every batch.
"""

import torch
from torch import Tensor, distributed

from kdcache.shapes import Float


def world_size() -> int:
    """Processes of this run."""
    return distributed.get_world_size() if _is_on() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _is_on() else 0


@torch.no_grad()
def gather_rows(rows: Float[Tensor, "B D"]) -> Float[Tensor, "W*B D"]:
    """The rows of all processes in the order of the whole batch, without a gradient."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _is_on() -> bool:
    return distributed.is_available() and distributed.is_initialized()
