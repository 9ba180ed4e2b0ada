"""Rendering ahead: items of a source in a given order, made by other processes.

Only pixels travel through these processes; what a cache holds is looked up where it is used. The
processes are forked by a server that has never used a thread: forking this process, in which torch
and OpenCV have, makes workers that hang now and then (seen: 7 minutes without an image).
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from kdcache.errors import KdcacheError, WorkerKilled

T = TypeVar("T", covariant=True)

# What fetching an item from a process that is gone may raise, besides torch's own RuntimeError:
# tensors lie in shared memory, which is asked for through a socket of the process. Errors of the
# source itself are never raised here: they come as values.
_CUT_OFF = (ConnectionError, EOFError, FileNotFoundError)

_AHEAD = 2
"""Items that each process has ready or under way; they wait in shared memory."""


@runtime_checkable
class Source(Protocol[T]):
    """Makes what an item names; it is pickled, or forked, into every process."""

    def __getitem__(self, item: Any) -> T:
        """What the item names, which depends on the item alone."""
        ...


def render_ahead(
    source: Source[T], order: Iterable[Any], *, workers: int, pin: bool = False
) -> Iterator[T]:
    """The items of `source` in `order`, made by `workers` processes; 0 makes them in this one.

    Args:
        order: an iterator is asked for the next name when a process can take it.
        pin: put tensors into page-locked memory, for copies to a GPU.

    Raises:
        KdcacheError, OSError: as the source raised it.
        WorkerKilled: a process is gone.
    """
    return Renderers(source, workers=workers, pin=pin)(order)


class Renderers(Generic[T]):
    """The processes of `render_ahead`, for one order after the other."""

    def __init__(
        self, source: Source[T], *, workers: int, pin: bool = False, stay: bool = False
    ) -> None:
        """
        Args:
            stay: keep the processes from one order to the next; to start them takes seconds.
        """
        self.workers = workers
        self._order = _Order()
        with _without_advice():
            self._loader: DataLoader[Any] = DataLoader(
                _Carrier(source),
                batch_size=None,
                sampler=self._order,
                num_workers=workers,
                collate_fn=_as_it_is,
                pin_memory=pin,
                prefetch_factor=_AHEAD if workers else None,
                worker_init_fn=partial(_prepare, dict(os.environ)),
                persistent_workers=stay and workers > 0,
                # Of its own: it draws a number, which must not come from the run's generator.
                generator=torch.Generator(),
                multiprocessing_context=_context(type(source).__module__) if workers else None,
            )

    def __call__(self, order: Iterable[Any]) -> Iterator[T]:
        """The items in `order`; the last order must be at its end."""
        self._order.names = order
        yield from _received(self._loader)


class _Order:
    """Where a loader looks for the names of items, which are new for each order."""

    names: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.names)


@contextmanager
def _without_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        # More processes than cores is what was asked for, and sometimes right: reading waits.
        warnings.filterwarnings("ignore", message=".*worker processes in total", module="torch")
        yield


def _received(loader: DataLoader[Any]) -> Iterator[Any]:
    """What a loader gives, its errors explained."""
    with _without_advice():
        items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, *_CUT_OFF) as error:
            raise _explained(error) from error
        if isinstance(item, KdcacheError | OSError):
            raise item
        yield item


def _explained(error: Exception) -> Exception:
    """A worker that was killed is the user's to know of; anything else is passed on."""
    if "DataLoader worker" not in str(error) and not isinstance(error, _CUT_OFF):
        return error
    return WorkerKilled(
        "a process that renders views was killed from outside, perhaps for want of memory",
        hint="run the same command again, with fewer --workers if memory is short",
    )


class _Carrier(Dataset[Any]):
    """Hands errors over as values: torch would raise them anew, without hint, errno and file."""

    def __init__(self, source: Source[Any]) -> None:
        self._source = source

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._source[item]
        except (KdcacheError, OSError) as error:
            return error


def _context(module: str) -> Any:
    """How workers start: from a clean server where there can be one, else from nothing.

    Args:
        module: imported once by the server, with all it imports, rather than by every worker.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])  # has no effect once the server runs
    return context


def _as_it_is(item: Any) -> Any:
    return item


def _prepare(environment: dict[str, str], _: int) -> None:
    """The environment as it is now, not as it was when the first of all workers was started; one
    thread, for the processes are the parallelism; Ctrl-C is the parent's to answer."""
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Leave when the process that asked for the items is gone, however it went.

    torch's own watchdog looks at the parent by number, which here is the server; the server in turn
    lives as long as its children, so a killed run would leave all of them, with their memory.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
