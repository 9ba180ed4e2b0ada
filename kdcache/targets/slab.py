"""One view's targets on the device, in as few bytes as the cache keeps them in.

What is quantised stays so until rows are taken: a slab of uint8 costs D + 8 bytes a row, where its
float32 values would cost 4 D.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdcache.shapes import Float, Int64, Shaped
from kdcache.store import Quantised, Stored


@dataclass(frozen=True, eq=False)
class Slab:
    """Rows of one array; made by `Slab.of`."""

    values: Shaped[Tensor, "N D"]
    scale: Float[Tensor, "N 1"] | None = None
    minimum: Float[Tensor, "N 1"] | None = None
    """Both of what is quantised only."""

    @classmethod
    def of(cls, stored: Stored, device: torch.device) -> "Slab":
        """The same rows on a device; on a CPU without a copy."""
        if not isinstance(stored, Quantised):
            return cls(torch.from_numpy(stored).to(device))
        values, scale, minimum = (
            torch.from_numpy(part).to(device)
            for part in (stored.values, stored.scale[:, None], stored.minimum[:, None])
        )
        return cls(values, scale, minimum)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Some rows in float32, to the bit what the cache's reader gives."""
        taken = self.values.index_select(0, index).float()
        if self.scale is None or self.minimum is None:
            return taken
        # Two operations and not a fused one, which would round once instead of twice.
        taken *= self.scale.index_select(0, index)
        taken += self.minimum.index_select(0, index)
        return taken
