"""The local tier: the views of a far cache that a run needs, on this machine's disk, while it does.

It lies in the cache folder, one folder a cache, and is shared by all runs of the machine. The small
files are fetched first; then, whenever a view is asked for, its shards, and the next epoch's view
while the epoch trains. Where the limit is reached, the views that were used longest ago go first,
and those that a run holds never.

Each view has a mark, a file under `.views/`: its `flock` is shared by those who use the view, and
exclusive to who fetches or removes it; its text is the bytes that the view takes up, its time the
last use.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import ConfigError
from kdcache.files import cache_folder, in_turn
from kdcache.progress import Bar, Progress, silent
from kdcache.share.history import Published, current, fetch_promised, find_published, split_identity
from kdcache.share.parallel import each
from kdcache.share.place import Place, open_place
from kdcache.share.pull import pull_selection
from kdcache.store import Cache, FileDigest, Selection, array_names, shard_of

_TIERS = "caches"
_MARKS = ".views"


@contextmanager
def remote_cache(url: str, *, limit_bytes: int, bar: Bar) -> Iterator[Cache]:
    """A cache at a place, to be read as if it were here.

    Args:
        url: of the place; `URL@IDENTITY` for a cache that it held before.
        limit_bytes: what the views of all far caches may take up on this machine.

    Raises:
        CacheNotFound, CacheUnfinished, CacheCorrupt, PlaceError: as for a pull.
    """
    address, identity = split_identity(url)
    place = open_place(address)
    found = find_published(place, identity)
    root = cache_folder() / _TIERS / found.identity
    small = Selection(tuple(array_names(found.manifest.files)), 0, ())
    root.mkdir(parents=True, exist_ok=True)
    with in_turn(root.parent):
        pull_selection(place, found, small, root, source=url, bar=bar)
    tier = Tier(place, found, root, limit_bytes=limit_bytes, bar=bar)
    try:
        yield Cache(root, found.manifest, found.identity, source=tier)
    finally:
        tier.close()


class Tier:
    """Brings the shards of one cache, and makes room for them."""

    def __init__(
        self, place: Place, found: Published, root: Path, *, limit_bytes: int, bar: Bar
    ) -> None:
        self._place = place
        self._found = found
        self._root = root
        self._limit_bytes = limit_bytes
        self._bar = bar
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._expected: dict[tuple[str, int], Future[int]] = {}
        (root / _MARKS).mkdir(exist_ok=True)

    @contextmanager
    def hold(self, array: str, view: int) -> Iterator[None]:
        """Within it, the shards of a view are here."""
        mark = self._take(array, view)
        try:
            yield
        finally:
            os.close(mark)

    def expect(self, array: str, view: int) -> None:
        """Fetch a view in the background, and hold it until it is asked for."""
        if (array, view) not in self._expected:
            self._expected[array, view] = self._pool.submit(self._lock, array, view, silent)

    def close(self) -> None:
        """Stop fetching, and let go of what nobody has asked for."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for future in self._expected.values():
            if not future.cancelled() and future.exception() is None:
                os.close(future.result())

    def _take(self, array: str, view: int) -> int:
        ahead = self._expected.pop((array, view), None)
        # What went wrong ahead of time is tried again now, and raises if it goes wrong again.
        if ahead is not None and ahead.exception() is None:
            return ahead.result()
        files = self._files(array, view)
        if self._are_here(files):
            return self._lock(array, view, silent)
        total = sum(file.num_bytes for file in files.values())
        with self._bar(f"fetch {array} {view}", total=total, unit="B") as progress:
            return self._lock(array, view, progress)

    def _lock(self, array: str, view: int, progress: Progress) -> int:
        """The mark of a view that is here, locked: closing it unlocks it."""
        mark = os.open(self._root / _MARKS / f"{array}.{view}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            files = self._files(array, view)
            while True:
                fcntl.flock(mark, fcntl.LOCK_SH)
                if self._are_here(files):
                    os.utime(mark)
                    return mark
                # Others may come in between two locks, so what was seen is looked at again.
                fcntl.flock(mark, fcntl.LOCK_EX)
                if not self._are_here(files):
                    self._bring(mark, files, progress)
        except BaseException:
            os.close(mark)
            raise

    def _bring(self, mark: int, files: dict[str, FileDigest], progress: Progress) -> None:
        needed = sum(file.num_bytes for file in files.values())
        with in_turn(self._root.parent):
            _make_room(self._root.parent, mark, needed, self._limit_bytes)
            os.pwrite(mark, str(needed).encode(), 0)
        now = (current(self._place) or self._found).manifest

        def fetch(name: str, progress: Progress) -> None:
            fetch_promised(self._place, name, self._root / name, files[name], now, progress)

        missing = [name for name in files if not self._are_here({name: files[name]})]
        each(missing, fetch, progress, self._stop)

    def _files(self, array: str, view: int) -> dict[str, FileDigest]:
        """The shards of a view."""
        found = {}
        for name, digest in self._found.manifest.files.items():
            shard = shard_of(name)
            if shard and (shard.array, shard.view) == (array, view) and not shard.is_receipt:
                found[name] = digest
        return found

    def _are_here(self, files: dict[str, FileDigest]) -> bool:
        paths = ((self._root / name, file.num_bytes) for name, file in files.items())
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def _make_room(tiers: Path, own: int, needed: int, limit: int) -> None:
    """Remove the views that were used longest ago until `needed` bytes fit below the limit.

    Args:
        own: the mark that they are for.
    """
    others = (
        m for m in tiers.glob(f"*/{_MARKS}/*.*") if not os.path.samestat(m.stat(), os.fstat(own))
    )
    marks = sorted(others, key=lambda mark: mark.stat().st_mtime)
    total = sum(map(_bytes_of, marks))
    for mark in marks:
        if total + needed <= limit:
            return
        total -= _remove(mark)
    if total + needed > limit:
        raise ConfigError(
            f"a view takes {needed / 1e6:,.1f} MB, and views in use take {total / 1e6:,.1f} MB of"
            f" the {limit / 1e6:,.1f} MB that views of far caches may take up",
            hint=f"--local-size {-(-(total + 2 * needed) // 1_000_000)}MB, or more",
        )


def _remove(mark: Path) -> int:
    """Remove the shards of a view unless it is in use; returns the bytes that this frees."""
    handle = os.open(mark, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return 0
    try:
        size = _bytes_of(mark)
        array, _, view = mark.name.partition(".")
        for path in mark.parent.parent.glob(f"{array}*/c/*/{view}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.ftruncate(handle, 0)
        return size
    finally:
        os.close(handle)


def _bytes_of(mark: Path) -> int:
    return int(mark.read_bytes() or b"0")
