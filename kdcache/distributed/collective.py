"""The two things that processes do together, and what is said when one of them is gone.

A process that has died closes its connections, and one that hangs is waited for no longer than the
group's timeout (`process_group`): either way the others end with an error instead of waiting.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from kdcache.errors import TrainingError

Op = distributed.ReduceOp.RedOpType


def reduce_in_place(values: Tensor, op: Op = distributed.ReduceOp.SUM) -> None:
    """Replaces `values` by their sum over all processes, or what else `op` makes of them."""
    with all_there():
        distributed.all_reduce(values, op)


def gather_equal(rows: Tensor) -> list[Tensor]:
    """What each process gave, in their order; all give tensors of one shape."""
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    with all_there():
        distributed.all_gather(parts, rows)
    return parts


@contextmanager
def all_there() -> Iterator[None]:
    """Words for what torch says inside when a process is gone or silent."""
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "another process of this run has died, or has not answered in time: "
            f"{str(error).splitlines()[0]}",
            hint="see what it said; the same command goes on from the last checkpoint",
        ) from error
