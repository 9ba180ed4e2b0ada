"""What several processes of one run share; in a run of one process, each function does nothing.

So nothing else asks how many there are. `torchrun` starts the processes; number r of W holds the
r-th of W parts of every batch, and a run is the same for every W.
"""

from kdcache.distributed.batch_norm import whole_batch_norm
from kdcache.distributed.exchange import (
    gather_rows,
    gather_rows_with_gradient,
    mean_gradients,
    mean_scalars,
)
from kdcache.distributed.group import (
    Share,
    any_rank,
    barrier,
    everyones,
    is_first,
    largest,
    local_device,
    process_group,
    rank,
    share_of,
    world_size,
)

__all__ = [
    "Share",
    "any_rank",
    "barrier",
    "everyones",
    "gather_rows",
    "gather_rows_with_gradient",
    "is_first",
    "largest",
    "local_device",
    "mean_gradients",
    "mean_scalars",
    "process_group",
    "rank",
    "share_of",
    "whole_batch_norm",
    "world_size",
]
