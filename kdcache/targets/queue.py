"""Queues of teacher targets, as windows of the sample stream instead of things of their own.

A frozen teacher says the same of a view whenever it is asked, so a queue after n samples is what
the cache holds for the last K samples of the stream: full at step 0, never stale, the same on every
process, and rebuilt from the number n when a run resumes (`queue.md` section 5).

Source of the queue's part in the loss: Fang et al., SEED, ICLR 2021, arXiv:2101.04731; official
code seed/builder.py (`_dequeue_and_enqueue` runs after the loss).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from kdcache.shapes import Float, Int64
from kdcache.targets.order import SampleStream

Keys = Callable[[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]], Tensor]
"""Unit-length target rows [B, D] of (samples, epochs), on the device of the loss."""


@runtime_checkable
class Queue(Protocol):
    """Negatives for the step at hand."""

    position: int
    """Samples of the stream shown so far."""

    @property
    def negatives(self) -> Float[Tensor, "K D"]:
        """What the queue holds, without a copy; it changes with the next `push`."""
        ...

    def push(self, count: int) -> None:
        """Go on by `count` samples of the stream."""
        ...

    def changed(self, since: int) -> Int64[np.ndarray, " C"]:
        """The slots that hold something else than they did at the position `since`."""
        ...

    def own_slots(self, samples: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, "B E"]:
        """The slots in which the queue holds views of the given samples; -1 pads."""
        ...


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

    def changed(self, since: int) -> Int64[np.ndarray, " C"]:
        """The slots written since then, each once."""
        return np.arange(max(since, self.position - self.length), self.position) % self.length

    def _slots(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.arange(start, stop) % self.length).to(
            self._ring.device, non_blocking=True
        )


class AllSamples:
    """Every sample's target in the view of the epoch: sample s lies in slot s."""

    def __init__(self, stream: SampleStream, keys: Keys, *, position: int = 0) -> None:
        """The targets of the epoch that `position` lies in."""
        self.stream = stream
        self.position = position
        self._keys = keys
        self._epoch: int | None = None
        self._targets = torch.empty(0)

    @property
    def negatives(self) -> Float[Tensor, "N D"]:
        """The targets of all samples, looked up once an epoch."""
        epoch = self.position // self.stream.epoch_length
        if epoch != self._epoch:
            samples = np.arange(self.stream.num_samples)
            self._targets = self._keys(samples, np.full_like(samples, epoch))
            self._epoch = epoch
        return self._targets

    def push(self, count: int) -> None:
        """Go on by `count` samples."""
        self.position += count

    def own_slots(self, samples: Int64[np.ndarray, " B"]) -> Int64[np.ndarray, "B 1"]:
        """Each sample's own slot."""
        return samples[:, None]

    def changed(self, since: int) -> Int64[np.ndarray, " C"]:
        """Every slot where another epoch has begun since then, else none."""
        turned = since // self.stream.epoch_length != self.position // self.stream.epoch_length
        return np.arange(self.stream.num_samples if turned else 0)
