"""The targets of an epoch, resident: one bulk read a view, then a lookup is an index.

In an epoch every image is shown the same view, so its targets are one contiguous slab of the cache
(`storage.md` 1.4, 1.6). An array of the cache keeps its own precision and becomes float32 as rows
are taken. Embeddings that the cache does not hold are derived from the slab of features by the
projection head that it does hold, once a slab, in float32.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kdcache.heads import ProjectionHead
from kdcache.shapes import Float, Int64
from kdcache.store import Cache, Stored, dequantise
from kdcache.targets.slab import Slab


@runtime_checkable
class Targets(Protocol):
    """What one teacher says of samples, whether it said so before or says so now."""

    dim: int
    """Width of a target."""
    device: torch.device

    def take(self, samples: Int64[np.ndarray, " B"], view: int) -> Float[Tensor, "B D"]:
        """Targets of `samples` for one view, float32 on the device."""
        ...


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
        center: bool = False,
    ) -> None:
        """Look targets up for samples 0..N-1, which are `rows` of the cache.

        Args:
            array: `feature` or `embedding`.
            keep: how many slabs stay resident; the views of one step, at least.
            center: give unit rows less their mean over view 0, made unit length again.
        """
        self.cache = cache
        self.array = array
        self.rows = rows
        self.device = device
        self._head = None if array in cache.arrays else load_head(cache).to(device)
        self.dim: int = cache.arrays[array].dim if self._head is None else self._head.out_dim
        self._keep = keep
        self._slabs: dict[int, Slab] = {}
        self.mean = self._mean() if center else None
        """Of the unit targets, if they are centred."""

    def take(self, samples: Int64[np.ndarray, " B"], view: int) -> Float[Tensor, "B D"]:
        """Targets of `samples` for one view, float32 on the device: as the teacher gave them, or
        centred."""
        index = torch.from_numpy(samples).to(self.device, non_blocking=True)
        return centered(self._slab(view).take(index), self.mean)

    def expect(self, view: int) -> None:
        """A view will be asked for soon: what is far away is fetched meanwhile."""
        if view not in self._slabs:
            self.cache.expect(self._source, view)

    @property
    def _source(self) -> str:
        """The array that is looked up."""
        return self.array if self._head is None else "feature"

    def _slab(self, view: int) -> Slab:
        if view not in self._slabs:
            while len(self._slabs) >= self._keep:
                self._slabs.pop(next(iter(self._slabs)))
            stored = self.cache.stored_slab(self._source, view)
            if len(self.rows) != self.cache.num_rows or not _is_range(self.rows):
                stored = stored[self.rows]
            if self._head is None:
                self._slabs[view] = Slab.of(stored, self.device)
            else:
                self._slabs[view] = self._embedded(self._head, stored)
        # The one just used becomes the youngest, so that the oldest leaves first.
        self._slabs[view] = self._slabs.pop(view)
        return self._slabs[view]

    def _embedded(self, head: ProjectionHead, stored: Stored) -> Slab:
        """What the head makes of features, which come to the device some at a time."""
        parts = []
        for start in range(0, len(self.rows), _ROWS_AT_ONCE):
            feature = torch.from_numpy(dequantise(stored[start : start + _ROWS_AT_ONCE]))
            parts.append(head.embed(feature, device=self.device))
        return Slab(torch.cat(parts))

    def _mean(self) -> Float[Tensor, " D"]:
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        everyone = torch.arange(len(self.rows), device=self.device)
        for part in torch.split(everyone, _ROWS_AT_ONCE):
            rows = functional.normalize(self._slab(0).take(part), dim=1)
            total += rows.sum(0, dtype=torch.float64)
        return (total / len(self.rows)).float()


_ROWS_AT_ONCE = 8192


def centered(target: Float[Tensor, "B D"], mean: Float[Tensor, " D"] | None) -> Tensor:
    """Unit rows less `mean`, made unit length again; the rows as they are where there is none."""
    if mean is None:
        return target
    return functional.normalize(functional.normalize(target, dim=1) - mean, dim=1)


def load_head(cache: Cache) -> ProjectionHead:
    """The projection head in a cache, frozen and in eval mode; there must be one."""
    kept = cache.head()
    assert kept is not None, "asked before the needs were checked"
    return ProjectionHead.from_arrays(*kept).requires_grad_(False).eval()


def _is_range(rows: Int64[np.ndarray, " N"]) -> bool:
    return bool(np.array_equal(rows, np.arange(len(rows))))
