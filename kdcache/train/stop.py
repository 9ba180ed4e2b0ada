"""Signals that ask a run to stop, which it does between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """The signal that has asked for an end; 0 while there is none."""

    def __init__(self) -> None:
        self.number = 0
        self._came = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        """Whether one comes within that time."""
        return self._came.wait(timeout_s)

    def handle(self, number: int, _: object) -> None:
        """The handler of signals; a second SIGINT interrupts at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        self._came.set()


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """What SIGINT and SIGTERM ask for.

    Signals reach the main thread only; elsewhere there is never one.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
