"""Another copy of a cache, as a place that files are fetched from."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdcache.store import FileDigest, read_manifest
from kdcache.store.manifest import MANIFEST

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


def copy_in_folder(place: Path) -> Copy:
    """The copy in a folder.

    Raises:
        CacheError: there is no finished cache.
    """

    def fetch(name: str, digest: FileDigest, to: Path) -> None:
        shutil.copyfile(place / name, to)

    read_manifest(place)  # refuses what is none
    return Copy(str(place), (place / MANIFEST).read_bytes(), fetch)
