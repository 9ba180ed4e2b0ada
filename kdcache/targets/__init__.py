"""Targets, the order they are asked for in, and the queue that follows from both."""

from kdcache.targets.order import SampleStream, permutation, pick_neighbours
from kdcache.targets.queue import AllSamples, Queue, StreamQueue
from kdcache.targets.search import QueueSearch
from kdcache.targets.table import Targets, TargetTable, centered, load_head

__all__ = [
    "AllSamples",
    "Queue",
    "QueueSearch",
    "SampleStream",
    "StreamQueue",
    "TargetTable",
    "Targets",
    "centered",
    "load_head",
    "permutation",
    "pick_neighbours",
]
