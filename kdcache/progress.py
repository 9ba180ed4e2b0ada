"""Progress: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tqdm import tqdm

Progress = Callable[[int], None]
"""Called with the number of items finished since the last call."""

Bar = Callable[..., AbstractContextManager[Progress]]
"""How progress is shown: called with a title, `total` and `unit`, as `progress_bar` is."""

Tell = Callable[[str], None]
"""Called with a sentence that the user should read while the work goes on."""

_PLAIN_LINE_EVERY_S = 15.0


def silent(_: int) -> None:
    """The progress of a caller who does not look."""


@contextmanager
def silent_bar(title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """The bar of a caller who does not look."""
    yield silent


class _Lines:
    """A stream for tqdm that ends each state of the bar with a newline instead of redrawing it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and line != self._last:
            self._stream.write(line + "\n")
            self._last = line

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def progress_bar(title: str, *, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """A bar on standard error.

    Args:
        done: items finished before this call; they fill the bar but do not count for the rate.
    """
    look: dict[str, Any] = (
        {"dynamic_ncols": True, "file": sys.stderr}
        if sys.stderr.isatty()
        else {"mininterval": _PLAIN_LINE_EVERY_S, "miniters": 1, "ncols": 80, "ascii": True,
              "file": _Lines(sys.stderr)}
    )  # fmt: skip
    look["unit_scale"] = unit == "B"  # bytes are shown as k, M, G
    with tqdm(desc=title, total=total, unit=f" {unit}", initial=done, **look) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance
