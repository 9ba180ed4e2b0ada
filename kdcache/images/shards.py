"""Where the bytes of tar files are: in a file that is open, or in an object of a store.

Objects are read in ranges: near ones by one request.
"""

import io
import os
import posixpath
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kdcache.errors import DataError, MissingExtra

_AHEAD_BYTES = 4 << 20
"""How much of an object is fetched at once where it is read from front to back."""


@runtime_checkable
class Shard(Protocol):
    """A tar file."""

    num_bytes: int

    def read(self, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        """The bytes of some ranges; fewer where the file ends before."""
        ...


class FileShard:
    """An open file, closed with its last reference."""

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_RDONLY)
        self.num_bytes = os.fstat(self._number).st_size

    def __del__(self) -> None:
        if "_number" in self.__dict__:
            os.close(self._number)

    def read(self, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        # pread has no file position, so threads and forked processes can share the handle.
        return [
            os.pread(self._number, size, start) for start, size in zip(starts, sizes, strict=True)
        ]


class ObjectShard:
    """An object of a store."""

    def __init__(self, store: Any, url: str, key: str) -> None:
        """Ask how large it is.

        Raises:
            FileNotFoundError: there is no such object.
            PlaceError: the store cannot be asked.
        """
        import obstore

        from kdcache.objects import explained, require_bucket

        self._store = store
        self._url = url
        self._key = key
        with explained(url):
            try:
                self.num_bytes: int = obstore.head(store, key)["size"]
            except FileNotFoundError as error:
                require_bucket(error)
                raise

    def read(self, starts: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
        import obstore

        from kdcache.objects import explained

        with explained(self._url):
            found = obstore.get_ranges(
                self._store, self._key, starts=list(starts), lengths=list(sizes)
            )
        return [bytes(one) for one in found]


class Shards:
    """Opens shards by their path or URL; those of one bucket through one store.

    What is open stays with the process: a copy that was pickled opens for itself.
    """

    def __init__(self) -> None:
        self._stores: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Shards, ()

    def open(self, place: str) -> Shard:
        """The shard at a path or a URL.

        Raises:
            FileNotFoundError: it is not there.
            PlaceError: its store cannot be asked.
        """
        if not is_remote(place):
            return FileShard(place)
        root, key = split_url(place)
        return ObjectShard(self.store(root), place, key)

    def store(self, root: str) -> Any:
        """The store of a bucket."""
        try:
            from kdcache.objects import open_store
        except ImportError as error:
            raise MissingExtra(
                f"`{root}` is spoken to through `{error.name}`, which is not installed",
                hint="pip install 'kdcache[remote]'",
            ) from None
        if root not in self._stores:
            self._stores[root] = open_store(root)
        return self._stores[root]

    def find(self, pattern: str) -> list[str]:
        """The URLs of the objects that a URL with `*`, `?` or `[...]` stands for, or that lie below
        one that ends in `/`; sorted."""
        import obstore

        from kdcache.objects import explained

        root, key = split_url(pattern)
        letters = [key.find(letter) for letter in "*?[" if letter in key]
        folder = posixpath.dirname(key[: min(letters)] if letters else key)
        with explained(pattern):
            found = [
                one["path"]
                for batch in obstore.list(self.store(root), prefix=folder or None)
                for one in batch
            ]
        if not letters:
            found = [path for path in found if path.startswith(key) and path.endswith(".tar")]
        else:
            # A star stands for a part of a name, as in a shell, not for folders.
            found = [
                path
                for path in found
                if fnmatchcase(path, key) and path.count("/") == key.count("/")
            ]
        return [f"{root}/{path}" for path in sorted(found)]


def is_remote(place: str) -> bool:
    """Whether this is a URL rather than a path."""
    return "://" in place


def split_url(url: str) -> tuple[str, str]:
    """Scheme with bucket (or host), and the key in it.

    Raises:
        DataError: there is no key.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket or not key:
        raise DataError(
            f"`{url}` names no tar files", hint="write it as s3://BUCKET/train-{000..099}.tar"
        )
    return f"{scheme}://{bucket}", key


def open_to_scan(shards: Shards, place: str) -> io.BufferedReader:
    """A shard as a file, to be read once from front to back."""
    if not is_remote(place):
        return Path(place).open("rb")
    return io.BufferedReader(_Reader(shards.open(place)), _AHEAD_BYTES)


class _Reader(io.RawIOBase):
    """A shard as a raw file."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._shard.num_bytes}
        self._at = base[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._shard.num_bytes - self._at)
        if size <= 0:
            return 0
        (data,) = self._shard.read([self._at], [size])
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
