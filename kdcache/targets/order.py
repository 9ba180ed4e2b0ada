"""The order in which a run shows its images: a pure function of the seed, whatever the machine.

The stream of samples is the epochs' permutations one after the other, each cut to whole batches.
Position n of it says which image is shown as the n-th sample, for any number of processes or
workers; what a queue holds at any moment is a window of the same stream.

With `repeats` above one, so many epochs make a turn: one permutation, in which each image stands as
often in a row, in the views of those epochs one after the other. A turn shows the same images in
the same views as its epochs would, and an image is decoded once for all of them.

*Source* of repeats: Hoffer et al., Augment Your Batch, CVPR 2020, arXiv:1901.09335; to decode once
for several crops: Shen and Xing, FKD, ECCV 2022, arXiv:2112.01528.
"""

import functools
from dataclasses import dataclass

import numpy as np

from kdcache.shapes import Int64, UInt64
from kdcache.views import philox4x32

# A constant in the last counter word keeps these draws apart from those of view parameters, whose
# last word is a small block number.
_ORDER_BLOCK = 0x4F524452
_NEIGHBOUR_BLOCK = 0x4E454947


def permutation(num_samples: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    """The order of one epoch: sample numbers sorted by a 64-bit Philox key of (sample, epoch).

    Args:
        epoch: may be negative; those before the first fill a queue that starts full.
    """
    words = _words(np.arange(num_samples), seed, epoch, _ORDER_BLOCK)
    return np.argsort((words[:, 1] << np.uint64(32)) | words[:, 0], kind="stable")


def pick_neighbours(
    graph: Int64[np.ndarray, "N K"],
    samples: Int64[np.ndarray, " B"],
    *,
    count: int,
    seed: int,
    epoch: int,
) -> Int64[np.ndarray, "B C"]:
    """`count` different neighbours of each sample, drawn anew each epoch; a Philox function too.

    Args:
        graph: the samples next to each sample, nearest first; -1 pads. A sample that has fewer
            than `count` gets some of them again, and one that has none gets itself.
    """
    near = graph[samples]
    num = (near >= 0).sum(1)
    first = _words(samples, seed, epoch, _NEIGHBOUR_BLOCK)[:, 0]
    turns = first[:, None] + np.arange(count, dtype=np.uint64)
    column = (turns % np.maximum(num, 1).astype(np.uint64)[:, None]).astype(np.int64)
    picked = np.take_along_axis(near, column, axis=1)
    return np.where(num[:, None] > 0, picked, samples[:, None])


def _words(
    samples: Int64[np.ndarray, " B"], seed: int, epoch: int, block: int
) -> UInt64[np.ndarray, "B 4"]:
    counter = np.zeros((len(samples), 4), np.uint32)
    counter[:, 0] = samples.astype(np.uint32)
    counter[:, 1] = epoch & 0xFFFFFFFF
    counter[:, 3] = block
    return philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)).astype(np.uint64)


@dataclass(frozen=True)
class SampleStream:
    """The samples of a run, at any position, before the first included."""

    num_samples: int
    batch_size: int
    seed: int
    repeats: int = 1
    """Times that an image stands in the stream in a row; it divides the batch."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the samples left over come in other epochs."""
        return self.num_samples // self.batch_size

    @property
    def epoch_length(self) -> int:
        """Samples shown in an epoch."""
        return self.steps_per_epoch * self.batch_size

    def turn(self, step: int) -> int:
        """The turn that a step lies in: an epoch, or `repeats` of them."""
        return step // (self.steps_per_epoch * self.repeats)

    def epochs(self, step: int) -> range:
        """The epochs whose views each image of a step is shown in."""
        first = self.turn(step) * self.repeats
        return range(first, first + self.repeats)

    def batch(self, step: int) -> Int64[np.ndarray, " B"]:
        """The images of the global optimiser step `step` (from 0), each once."""
        turn, within = divmod(step, self.steps_per_epoch * self.repeats)
        count = self.batch_size // self.repeats
        return self._shown(turn)[within * count : (within + 1) * count]

    def window(
        self, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
        """Samples and their epochs at stream positions `start` to `stop`; both may be negative."""
        samples, epochs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        length = self.epoch_length * self.repeats
        while start < stop:
            turn, within = divmod(start, length)
            place, again = np.divmod(
                np.arange(within, min(within + stop - start, length)), self.repeats
            )
            samples.append(self._shown(turn)[place])
            epochs.append(turn * self.repeats + again)
            start += len(place)
        return np.concatenate(samples), np.concatenate(epochs)

    def positions(
        self, samples: Int64[np.ndarray, " B"], start: int, stop: int
    ) -> Int64[np.ndarray, "B E"]:
        """Where in [start, stop) of the stream the given samples stand, one column an epoch.

        -1 stands for an epoch in which the sample is not shown within the window.
        """
        length = self.epoch_length * self.repeats
        columns = []
        for turn in range(start // length, (stop - 1) // length + 1):
            at = self._ranks(turn)[samples]
            for again in range(self.repeats):
                position = turn * length + at * self.repeats + again
                there = (at < self.epoch_length) & (position >= start) & (position < stop)
                # Positions may be negative themselves: they are counted from the window's start.
                columns.append(np.where(there, position - start, -1))
        return np.stack(columns, axis=1)

    def _shown(self, turn: int) -> Int64[np.ndarray, " L"]:
        order = _permutation(self.num_samples, self.seed, turn)
        return order[: self.epoch_length]

    def _ranks(self, turn: int) -> Int64[np.ndarray, " N"]:
        return _inverse(self.num_samples, self.seed, turn)


@functools.lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    return permutation(num_samples, seed=seed, epoch=epoch)


@functools.lru_cache(maxsize=4)
def _inverse(num_samples: int, seed: int, epoch: int) -> Int64[np.ndarray, " N"]:
    order = _permutation(num_samples, seed, epoch)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks
