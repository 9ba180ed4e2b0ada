"""The queue holds the last K targets of the stream, whatever the batch, and after any resume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.targets import SampleStream, StreamQueue


def keys(samples, epochs):
    """A target that tells which sample and which epoch it is of."""
    rows = torch.tensor(np.stack([samples, epochs, np.ones_like(samples)], 1), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


def contents(queue):
    return sorted(tuple(round(v, 9) for v in row) for row in queue.negatives.tolist())


@given(
    num_samples=st.integers(3, 30),
    batch_size=st.integers(1, 30),
    length=st.integers(1, 70),
    steps=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_queue_is_the_window_of_the_stream(num_samples, batch_size, length, steps):
    stream = SampleStream(num_samples, min(batch_size, num_samples), seed=4)
    queue = StreamQueue(stream, length, keys)
    for _ in range(steps):
        queue.push(stream.batch_size)
    window = stream.window(queue.position - length, queue.position)
    expected = sorted(tuple(round(v, 9) for v in row) for row in keys(*window).tolist())
    assert contents(queue) == expected


@pytest.mark.parametrize("length", [5, 16, 50])
def test_resumed_queue_equals_the_one_that_went_on(length):
    stream = SampleStream(17, 4, seed=1)
    queue = StreamQueue(stream, length, keys)
    for _ in range(9):
        queue.push(4)
    again = StreamQueue(stream, length, keys, position=queue.position)
    assert torch.equal(again.negatives, queue.negatives)


@pytest.mark.parametrize("length", [4, 16, 40])
def test_own_slots_are_exactly_the_slots_of_the_same_sample(length):
    stream = SampleStream(13, 3, seed=6)
    queue = StreamQueue(stream, length, keys)
    samples_in_slot = np.empty(length, np.int64)
    start, _ = stream.window(-length, 0)
    samples_in_slot[np.arange(-length, 0) % length] = start
    for step in range(12):
        batch = stream.batch(step)
        own = queue.own_slots(batch)
        for row, sample in enumerate(batch):
            found = sorted(slot for slot in own[row].tolist() if slot >= 0)
            assert found == np.flatnonzero(samples_in_slot == sample).tolist()
        first = queue.position
        queue.push(3)
        samples_in_slot[np.arange(first, first + 3) % length] = batch[-length:]


def test_queue_is_full_before_the_first_step():
    queue = StreamQueue(SampleStream(10, 2, seed=0), 6, keys)
    assert queue.negatives.shape == (6, 3)
    assert torch.allclose(queue.negatives.norm(dim=1), torch.ones(6, dtype=torch.float64))
