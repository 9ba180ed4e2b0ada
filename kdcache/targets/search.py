"""Nearest slots of a queue by an IVF index that follows it, for queues of millions.

The index is built once in a run; then it overwrites the slots that have changed since it was asked
last: a batch of them in a ring, all of them once an epoch in a queue of all samples. A search opens
a few lists and so may miss a neighbour: what is done with the slots must not depend on having all.

Source: upkeep and recall, `queue.md` section 1.
"""

import torch
from torch import Tensor

from kdcache.nearest import IvfIndex
from kdcache.shapes import Float, Int64
from kdcache.targets.queue import Queue


class QueueSearch:
    """Finds slots of one queue, as it is when asked. The index lies in memory, not on a device."""

    def __init__(
        self, queue: Queue, *, first: Float[Tensor, "K D"], nprobe: int, seed: int = 0
    ) -> None:
        """Follow `queue`.

        Args:
            first: what the queue held at position 0, from which the lists are made: so a run that
                was resumed has the same ones.
            nprobe: lists that a search opens; more of them miss less.
            seed: of the k-means.
        """
        self._queue = queue
        self._nprobe = nprobe
        self._index = IvfIndex(first.cpu().numpy(), seed=seed)
        self._position = 0

    def __call__(self, query: Float[Tensor, "B D"], count: int) -> Int64[Tensor, "B N"]:
        """The slots of the rows of the queue most alike to each row of `query`; -1 pads.

        Raises:
            DataError: a row is not finite.
        """
        rows = query.detach().float().cpu().numpy()
        _, slots = self._caught_up().search(rows, count, self._nprobe)
        return torch.from_numpy(slots).to(query.device)

    def _caught_up(self) -> IvfIndex:
        """The index of what the queue holds now."""
        rows = self._queue.negatives
        slots = self._queue.changed(self._position)
        if len(slots):
            changed = rows[torch.from_numpy(slots).to(rows.device)]
            self._index.replace(slots, changed.cpu().numpy())
        self._position = self._queue.position
        return self._index
