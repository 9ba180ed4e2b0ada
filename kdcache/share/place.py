"""Places where caches are shared, told by their URL: one small set of things that each can do."""

import re
from pathlib import Path
from typing import Protocol, runtime_checkable

from kdcache.errors import ConfigError, MissingExtra
from kdcache.progress import Bar, Progress
from kdcache.share.folder import Folder
from kdcache.store import Cache, FileDigest

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")


@runtime_checkable
class Place(Protocol):
    """A place that files are read from."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file; None where it is absent.

        Raises:
            PlaceError: the place cannot be asked.
        """
        ...

    def fetch(self, name: str, to: Path, digest: FileDigest, progress: Progress) -> None:
        """Bring a file to a path, where it appears when it is whole and has the digest.

        Args:
            progress: told of bytes; of negative ones where some have to be fetched again.

        Raises:
            CacheCorrupt: the place has no file of this name and digest.
            PlaceError: the place cannot be asked, or broke off; what has arrived is kept.
        """
        ...


@runtime_checkable
class WritablePlace(Place, Protocol):
    """A place that files are written to one by one. A file appears there whole or not at all."""

    def sizes(self) -> dict[str, int]:
        """The bytes of every file that is there, by name."""
        ...

    def holds(self, name: str, digest: FileDigest) -> bool:
        """Whether a file is there with this digest, without moving its bytes."""
        ...

    def put(self, name: str, path: Path, digest: FileDigest, progress: Progress) -> None:
        """Put a file, over one that may be there.

        Raises:
            CacheCorrupt: the file at `path` has not this digest; nothing was put.
        """
        ...

    def swap(self, name: str, data: bytes, old: bytes | None) -> bool:
        """Put a small file in the place of `old` (None: of nothing), unless something else is
        there by now: of all who would put something in the place of the same `old`, one gets
        True; so does who finds his own data there."""
        ...

    def copy(self, name: str, to: str) -> None:
        """Copy a file within the place."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file."""
        ...

    def clear(self) -> None:
        """Remove what those who died while they wrote have left."""
        ...


@runtime_checkable
class CommitPlace(Place, Protocol):
    """A place that takes a whole cache at once, in a transaction of its own."""

    def push(
        self, cache: Cache, bar: Bar, *, data_licence: str | None = None, public: bool = False
    ) -> str:
        """Put a cache there with its card; returns what it is called there.

        Args:
            data_licence: of the images, for the card.
            public: whether a place that is made is for everyone.
        """
        ...


def is_url(text: str) -> bool:
    """Whether a cache is named by its URL instead of its path."""
    return _SCHEME.match(text) is not None


def open_place(url: str) -> Place:
    """The place of a URL: `s3://`, `gs://`, `az://`, `https://`, `hf://datasets/`, or a folder.

    Nothing is asked of it yet.

    Raises:
        ConfigError: no such kind of place is known.
        MissingExtra: what speaks to it is not installed.
    """
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if scheme == "file":
        return Folder(Path(url.removeprefix("file://")).expanduser())
    if scheme == "hf":
        from kdcache.share.hub import open_hub  # imports torch, for the card

        place: Place = open_hub(url)
        return place
    if scheme not in _BUCKETS:
        raise ConfigError(
            f"`{url}` names no place that is known",
            hint="s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, https://HOST/PATH,"
            " hf://datasets/ORG/NAME, or a folder",
        )
    try:
        from kdcache.share.bucket import open_bucket
    except ImportError as error:
        raise MissingExtra(
            f"`{url}` is spoken to through `{error.name}`, which is not installed",
            hint="pip install 'kdcache[remote]'",
        ) from None
    return open_bucket(url.rstrip("/"))
