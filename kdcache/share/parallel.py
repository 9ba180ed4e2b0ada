"""Several files on their way at once; the first trouble stops all of them."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from kdcache.progress import Progress

T = TypeVar("T")

_AT_ONCE = 4


class Stopped(Exception):
    """Another file has met trouble, or nobody waits any more."""


def each(
    items: Iterable[T],
    do: Callable[[T, Progress], None],
    progress: Progress,
    stop: threading.Event | None = None,
) -> None:
    """Do something with each item, several at a time.

    Args:
        do: told where to count its progress, which raises when it is to stop.
        stop: set by a caller who does not want the rest.
    """
    failed, lock = threading.Event(), threading.Lock()

    def count(number: int) -> None:
        if failed.is_set() or (stop is not None and stop.is_set()):
            raise Stopped
        with lock:
            progress(number)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(do, item, count) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
