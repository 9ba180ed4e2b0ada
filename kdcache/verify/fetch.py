"""Another copy of a cache, as a place that files are fetched from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import CacheCorrupt
from kdcache.progress import silent
from kdcache.share import fetch_promised, find_published, open_place, split_identity
from kdcache.store import FileDigest

Fetch = Callable[[str, FileDigest, Path], None]
"""Called with a file's path in the cache, what is promised of it, and where to put it; raises
FileNotFoundError where there is none. The caller compares what comes with the promise."""


@dataclass(frozen=True)
class Copy:
    """Another copy of a cache."""

    place: str
    """Where it is, for people."""
    manifest: bytes
    fetch: Fetch


def copy_at(url: str) -> Copy:
    """The copy in a folder, or at a place where caches are shared.

    Args:
        url: as of `kdcache pull`; `URL@IDENTITY` for a cache that the place held before.

    Raises:
        CacheError: there is no finished cache.
        PlaceError: the place cannot be asked.
    """
    address, identity = split_identity(url)
    place = open_place(address)
    found = find_published(place, identity)
    now = found if identity is None else find_published(place)

    def fetch(name: str, digest: FileDigest, to: Path) -> None:
        try:
            fetch_promised(place, name, to, digest, now.manifest, silent)
        except CacheCorrupt as error:
            raise FileNotFoundError(str(error)) from error

    return Copy(url, found.data, fetch)
