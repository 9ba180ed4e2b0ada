"""Push: a finished cache goes to a place; the manifest last, and only in the place of what it was.

A place belongs to one cache and those that follow it. Who pushes claims it first, so that files of
two caches never mix; then come the shards, the small files, and the manifest by compare-and-swap.
What a cache before has promised is never lost: before one of its files is replaced, it is copied to
`superseded/`, and its manifest to `manifests/`.

Format: FORMAT.md, "A published place".
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from kdcache.errors import CacheMismatch, ConfigError, PlaceError
from kdcache.files import canonical_json
from kdcache.progress import Bar, Progress
from kdcache.share.history import PUSHING, Published, current, pusher, superseded
from kdcache.share.outgoing import read_checked
from kdcache.share.parallel import each
from kdcache.share.place import CommitPlace, WritablePlace, open_place
from kdcache.store import (
    GROUP,
    MANIFEST,
    Cache,
    FileDigest,
    Manifest,
    digest_of,
    kept_manifest,
    require_whole,
    shard_of,
)


@dataclass
class Pushed:
    """What a push did."""

    name: str
    """What the cache is called at the place."""
    num_sent: int = 0
    """Files that were sent."""
    sent_bytes: int = 0
    replaced: str | None = None
    """The identity of the cache that the place held before."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, file: FileDigest) -> None:
        """A file was sent."""
        with self._lock:
            self.num_sent += 1
            self.sent_bytes += file.num_bytes


def push_cache(
    cache: Cache, url: str, *, bar: Bar, data_licence: str | None = None, public: bool = False
) -> Pushed:
    """Put a whole cache at a place; what is there with the right digest is not sent again.

    Args:
        data_licence: of the images, for the card that the Hub shows.
        public: whether a repository of the Hub that is made is for everyone.

    Raises:
        ConfigError: what is for the Hub alone is asked of another place.
        CacheMismatch: the place holds another cache, or one is being pushed there; or this is a
            copy of a part.
        CacheCorrupt: a file is not what the manifest promises; it was not sent.
        PlaceError: the place cannot be written to, or broke off; the same push goes on.
    """
    require_whole(cache)
    place = open_place(url)
    if isinstance(place, CommitPlace):
        return Pushed(place.push(cache, bar, data_licence=data_licence, public=public))
    if public or data_licence is not None:
        raise ConfigError(
            f"`{url}` is not on the Hub, and --public and --data-licence are for its repositories",
            hint="leave them out; `kdcache card CACHE --data-licence TEXT` writes a card",
        )
    if not isinstance(place, WritablePlace):
        raise PlaceError(
            f"`{url}` is for reading only",
            hint="push to s3://, gs://, az://, hf:// or a folder",
        )
    _related(cache, place)  # refuses before anything is written
    done = Pushed(f"{place.url}@{cache.identity}")
    with _claimed(cache, place):
        before = _related(cache, place)  # nobody else changes it from here on
        if before is not None and before.identity != cache.identity:
            _keep(before, cache.manifest, place)
            done.replaced = before.identity
        there = place.sizes()
        _send_files(cache, place, there, done, bar)
        if before is None:
            _settle(place, GROUP, (cache.path / GROUP).read_bytes(), there)
        _swap_manifest(cache, place, before)
        _settle(place, GROUP, (cache.path / GROUP).read_bytes(), place.sizes())
        place.clear()
    return done


def _related(cache: Cache, place: WritablePlace) -> Published | None:
    """What is at the place, if anything: this cache, or one that it may follow."""
    before = current(place)
    if before is None or before.identity in cache.lineage:
        return before
    if place.read(kept_manifest(cache.identity)) is not None:
        raise CacheMismatch(
            f"`{place.url}` has held `{cache.identity}`, and holds `{before.identity}` now,"
            " which has followed it",
            hint=f"it is there still: {place.url}@{cache.identity}",
        )
    old = {name: file for name, file in before.manifest.files.items() if _is_values(name)}
    if old and old.items() <= cache.manifest.files.items():
        return before
    raise CacheMismatch(
        f"`{place.url}` holds the cache `{before.identity}`, and this one is `{cache.identity}`,"
        " which has not grown from it",
        hint="push to another address",
    )


def _is_values(name: str) -> bool:
    shard = shard_of(name)
    return shard is not None and not shard.is_receipt


@contextmanager
def _claimed(cache: Cache, place: WritablePlace) -> Iterator[None]:
    """Keep other caches out of the place, until the manifest is there.

    A push that dies leaves its claim, so that the same push can go on.
    """
    claim = canonical_json({"identity": cache.identity})
    if place.swap(PUSHING, claim, None):
        _require_conditions(place)
    elif (other := pusher(place)) != cache.identity:
        raise CacheMismatch(
            f"`{other}` is being pushed to `{place.url}`, and this cache is `{cache.identity}`",
            hint="push to another address; or wait; or, if that push has died for good, delete"
            f" `{place.url}/{PUSHING}`",
        )
    try:
        yield
    except CacheMismatch:
        place.delete(PUSHING)
        raise
    place.delete(PUSHING)


def _require_conditions(place: WritablePlace) -> None:
    """Refuse a server that puts an object where it was to put it only if there is none."""
    if place.swap(PUSHING, b"{}\n", None):
        place.delete(PUSHING)
        raise PlaceError(
            f"`{place.url}` ignores the condition of a put, so that of two who push both would win",
            hint="use a server that has conditional puts: S3, GCS, Azure, R2, MinIO; or a folder",
        )


def _keep(before: Published, now: Manifest, place: WritablePlace) -> None:
    """Have every file that `before` promises kept, and its manifest."""
    for name, digest in before.manifest.files.items():
        kept = superseded(digest)
        if now.files.get(name) in (None, digest) and name != GROUP:
            continue  # it stays where it is
        if place.holds(kept, digest):
            continue
        place.copy(name, kept)
        if not place.holds(kept, digest):
            raise CacheMismatch(
                f"`{place.url}/{name}` is not what the cache `{before.identity}` there promises",
                hint="have whoever has that cache push it again, or push to another address",
            )
    _settle(place, kept_manifest(before.identity), before.data, place.sizes())


def _send_files(
    cache: Cache, place: WritablePlace, there: dict[str, int], done: Pushed, bar: Bar
) -> None:
    files = cache.manifest.files
    with bar("push", total=sum(file.num_bytes for file in files.values()), unit="B") as progress:
        send = partial(_send, cache, place, there, done)
        each([name for name in files if _is_values(name)], send, progress)
        each([name for name in files if not _is_values(name)], send, progress)


def _send(
    cache: Cache,
    place: WritablePlace,
    there: dict[str, int],
    done: Pushed,
    name: str,
    progress: Progress,
) -> None:
    digest = cache.manifest.files[name]
    if there.get(name) == digest.num_bytes and place.holds(name, digest):
        progress(digest.num_bytes)
        return
    if _is_values(name):
        place.put(name, cache.path / name, digest, progress)
    else:
        _settle(place, name, read_checked(cache.path / name, digest), there)
        progress(digest.num_bytes)
    done.count(digest)


def _settle(place: WritablePlace, name: str, data: bytes, there: dict[str, int]) -> None:
    """Have a small file at the place, in the stead of the one that is known to be there."""
    old = place.read(name) if name in there else None
    if old != data and not place.swap(name, data, old):
        raise CacheMismatch(
            f"`{place.url}/{name}` was changed by somebody else just now",
            hint="run the same push again: it says who has been there",
        )


def _swap_manifest(cache: Cache, place: WritablePlace, before: Published | None) -> None:
    data = (cache.path / MANIFEST).read_bytes()
    if digest_of(data).sha256 != cache.identity:
        raise CacheMismatch(
            f"`{cache.path}` has grown while it was pushed", hint="run the same push again"
        )
    if not place.swap(MANIFEST, data, before.data if before is not None else None):
        winner = current(place)
        raise CacheMismatch(
            f"`{place.url}` holds the cache `{winner.identity if winner else None}` by now, and"
            f" this one is `{cache.identity}`: somebody else was faster",
            hint="push to another address",
        )
