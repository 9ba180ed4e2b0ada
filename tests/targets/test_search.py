"""An index that follows a queue finds what a search of the queue itself finds."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kdcache import nearest
from kdcache.targets import AllSamples, SampleStream, StreamQueue
from kdcache.targets import search as search_module
from kdcache.targets.search import QueueSearch

ALL_LISTS = 10_000


def keys(samples, epochs):
    """A unit row of (sample, epoch), always the same."""
    rows = np.empty((len(samples), 8), np.float32)
    for i in range(len(samples)):
        rows[i] = np.random.default_rng([samples[i], epochs[i] + 100]).normal(size=8)
    return normalize(torch.from_numpy(rows), dim=1)


def queues():
    stream = SampleStream(400, 30, seed=3)
    return [StreamQueue(stream, 190, keys), AllSamples(stream, keys)]


@pytest.mark.parametrize("kind", [0, 1], ids=["fifo", "all"])
def test_search_follows_the_queue_over_an_epoch_and_more(kind):
    queue = queues()[kind]
    find = QueueSearch(queue, first=queue.negatives, nprobe=ALL_LISTS)
    query = normalize(torch.randn(6, 8), dim=1)
    for pushed in (0, 30, 30, 250, 30, 120):  # not looked at each step; more than the ring at once
        queue.push(pushed)
        held = queue.negatives
        found = find(query, 7)
        expected = nearest.search(query.numpy(), held.numpy(), 7, device="cpu")[1]
        np.testing.assert_array_equal(found.numpy(), expected)


def test_index_of_a_ring_is_built_once(monkeypatch):
    built = []

    class Counted(nearest.IvfIndex):
        def __init__(self, *args, **kwargs):
            built.append(1)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(search_module, "IvfIndex", Counted)
    queue = queues()[0]
    find = QueueSearch(queue, first=queue.negatives, nprobe=1)
    for _ in range(20):
        find(torch.eye(8), 3)
        queue.push(30)
    assert len(built) == 1


def test_few_lists_may_leave_places_empty_and_say_so():
    queue = queues()[0]
    found = QueueSearch(queue, first=queue.negatives, nprobe=1)(torch.eye(8), 190)
    assert (found == -1).any()
    assert (found[:, 0] >= 0).all()


def test_resumed_search_finds_what_the_one_that_went_on_finds():
    """Its lists are those of the start, whatever the queue holds when it is built."""
    stream = SampleStream(3000, 100, seed=3)
    went_on = StreamQueue(stream, 2000, keys)
    find = QueueSearch(went_on, first=went_on.negatives, nprobe=2)
    query = normalize(torch.randn(50, 8), dim=1)
    for _ in range(30):
        went_on.push(100)
        find(query, 5)
    resumed = StreamQueue(stream, 2000, keys, position=went_on.position)
    at_start = StreamQueue(stream, 2000, keys)
    again = QueueSearch(resumed, first=at_start.negatives, nprobe=2)
    assert torch.equal(again(query, 5), find(query, 5))
