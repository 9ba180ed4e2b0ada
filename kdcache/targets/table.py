"""The targets of an epoch, resident: one bulk read a view, then a lookup is an index.

In an epoch every image is shown the same view, so its targets are one contiguous slab of the cache
(`storage.md` 1.4, 1.6). They are kept in the cache's own precision and cast as rows are taken.
"""

import numpy as np
import torch
from torch import Tensor

from kdcache.shapes import Float, Int64
from kdcache.store import Cache


class TargetTable:
    """Targets of some rows of a cache, slab by slab."""

    def __init__(
        self,
        cache: Cache,
        array: str,
        rows: Int64[np.ndarray, " N"],
        *,
        device: torch.device,
        keep: int = 2,
    ) -> None:
        """Look targets up for samples 0..N-1, which are `rows` of the cache.

        Args:
            array: `feature` or `embedding`.
            keep: how many slabs stay resident; the views of one step, at least.
        """
        self.cache = cache
        self.array = array
        self.rows = rows
        self.device = device
        self.dim: int = cache.arrays[array].dim
        self._keep = keep
        self._slabs: dict[int, Tensor] = {}

    def take(self, samples: Int64[np.ndarray, " B"], view: int) -> Float[Tensor, "B D"]:
        """Targets of `samples` for one view, float32 on the device, as the teacher gave them."""
        slab = self._slab(view)
        index = torch.from_numpy(samples).to(self.device)
        return slab.index_select(0, index).float()

    def _slab(self, view: int) -> Tensor:
        if view not in self._slabs:
            while len(self._slabs) >= self._keep:
                self._slabs.pop(next(iter(self._slabs)))
            slab = torch.from_numpy(self.cache.slab(self.array, view))
            if len(self.rows) != self.cache.num_rows or not _is_range(self.rows):
                slab = slab[torch.from_numpy(self.rows)]
            self._slabs[view] = slab.to(self.device)
        # The one just used becomes the youngest, so that the oldest leaves first.
        self._slabs[view] = self._slabs.pop(view)
        return self._slabs[view]


def _is_range(rows: Int64[np.ndarray, " N"]) -> bool:
    return bool(np.array_equal(rows, np.arange(len(rows))))
