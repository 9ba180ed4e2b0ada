"""Targets, the order they are asked for in, and the queue that follows from both."""

from kdcache.targets.order import SampleStream, permutation
from kdcache.targets.queue import StreamQueue
from kdcache.targets.table import TargetTable

__all__ = ["SampleStream", "StreamQueue", "TargetTable", "permutation"]
