"""A queue of keys that a method makes itself, of earlier batches; saved with the method.

Keys of the teacher are no matter of this file: they lie in the cache, and come with the batch.

Source: the dictionary of He et al., MoCo, CVPR 2020, arXiv:1911.05722; official code
moco/builder.py, from which two things differ: no random vectors stand in for images that have not
been seen, and the length need not be a multiple of the batch.

Shapes: B batch (of this process), D embedding, L length, N keys so far, at most L.
"""

import torch
from torch import Tensor, nn

from kdcache.distributed import gather_rows
from kdcache.shapes import Float


class KeyQueue(nn.Module):
    """The last `length` keys, the same on every process."""

    rows: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, dim))
        self._held: list[Tensor] = []  # of the step under way, one for each part of its batch
        self._num_keys = 0  # since the start; plain, so that no step waits for the device

    @property
    def filled(self) -> Float[Tensor, "N D"]:
        """The rows that hold a key: all of them once the queue has gone round."""
        return self.rows[: self._num_keys]

    def hold(self, keys: Float[Tensor, "B D"]) -> None:
        """Set keys of a step aside: until its backward pass is over, the rows are in the graph."""
        self._held.append(keys.detach())

    @torch.no_grad()
    def advance(self) -> None:
        """Let in what was held since, of all processes, in place of the oldest keys."""
        keys = torch.cat([gather_rows(part) for part in self._held])[-len(self.rows) :]
        slots = torch.arange(self._num_keys, self._num_keys + len(keys), device=keys.device)
        self.rows[slots % len(self.rows)] = keys
        self._num_keys += len(keys)
        self._held = []

    def get_extra_state(self) -> dict[str, int]:
        """What a checkpoint keeps besides the rows."""
        return {"num_keys": self._num_keys}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up a checkpoint's position."""
        self._num_keys = state["num_keys"]
