"""SEED's queue of negatives, as a window of the sample stream instead of a thing of its own.

A frozen teacher says the same of a view whenever it is asked, so the queue after n samples is what
the cache holds for the last K samples of the stream: full at step 0, never stale, the same on every
process, and rebuilt from the number n when a run resumes (`queue.md` section 5).

Source of the queue's part in the loss: Fang et al., SEED, ICLR 2021, arXiv:2101.04731; official
code seed/builder.py (`_dequeue_and_enqueue` runs after the loss).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kdcache.shapes import Float, Int64
from kdcache.targets.order import SampleStream

Keys = Callable[[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]], Tensor]
"""Unit-length target rows [B, D] of (samples, epochs), on the device of the loss."""


class StreamQueue:
    """The last `length` targets of the stream, in a ring on the device of the loss.

    Position p of the stream lies in slot p modulo `length`; any length goes with any batch size.
    """

    def __init__(self, stream: SampleStream, length: int, keys: Keys, *, position: int = 0) -> None:
        """Fill the queue as it stands when `position` samples of the stream have been shown."""
        self.stream = stream
        self.length = length
        self.position = position
        self._keys = keys
        samples, epochs = stream.window(position - length, position)
        filled = keys(samples, epochs)
        self._ring = torch.empty_like(filled)
        self._ring[self._slots(position - length, position)] = filled

    @property
    def negatives(self) -> Float[Tensor, "K D"]:
        """What the queue holds, without a copy; it changes with the next `push`."""
        return self._ring

    def push(self, count: int) -> None:
        """Let the next `count` samples of the stream in, and as many of the oldest out."""
        stop = self.position + count
        start = max(self.position, stop - self.length)
        samples, epochs = self.stream.window(start, stop)
        self._ring[self._slots(start, stop)] = self._keys(samples, epochs)
        self.position = stop

    def own_slots(self, samples: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, "B E"]:
        """The slots in which the queue holds earlier views of the given samples; -1 pads."""
        start = self.position - self.length
        offset = self.stream.positions(samples, start, self.position)
        return np.where(offset >= 0, (offset + start) % self.length, -1)

    def _slots(self, start: int, stop: int) -> Tensor:
        # Stays on the CPU: indexing a device tensor by it moves `count` integers, not the ring.
        return torch.from_numpy(np.arange(start, stop) % self.length).to(self._ring_device())

    def _ring_device(self) -> torch.device:
        return self._ring.device
