"""An ordered set of encoded images: what every later row number, view and cache refers to."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, overload

import numpy as np

from kdcache.errors import DataError
from kdcache.shapes import Int32


class PathColumn(Sequence[str]):
    """Paths in one block of bytes.

    A million strings would be a million objects, which forked workers copy page by page as they
    count references, and which take seconds to send to spawned ones.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [_utf8(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        place = range(len(self))[row]
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode()


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """Images in an order that is the same on every machine; a row is a place in it.

    Files are in the order of their paths (that of Unicode code points), members of tar files in
    that in which they lie there. A set can be pickled, and read in forked and in spawned processes
    and in threads.
    """

    source: str
    """What the set was opened from, as it was written."""
    paths: Sequence[str]
    """Unique, with `/` between the parts; relative to the source."""
    labels: Int32[np.ndarray, " N"]
    """Places in `classes`, or -1 where an image has no label."""
    classes: tuple[str, ...]
    """Sorted names; empty where nothing is labelled."""

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded file of one row.

        Raises:
            DataError: it is gone, or was changed, since the set was opened.
        """

    def read_rows(self, rows: Sequence[int]) -> list[bytes]:
        """The encoded files of some rows, which a set may be able to read faster together.

        Raises:
            DataError: as `read`.
        """
        return [self.read(row) for row in rows]


def label_column(names: Sequence[str | None], classes: tuple[str, ...]) -> Int32[np.ndarray, " N"]:
    """The place of each name in `classes`, -1 for None."""
    places: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
    places[None] = -1
    return np.fromiter((places[name] for name in names), dtype=np.int32, count=len(names))


def _utf8(path: str) -> bytes:
    try:
        return path.encode()
    except UnicodeEncodeError:
        message = f"the file name `{path!r}` is not UTF-8, so it would not be the same elsewhere"
        raise DataError(message, hint="rename it, e.g. with `convmv -t utf8 --notest`") from None
