"""Claims: processes that make one cache, here or on other machines, share its pieces out.

Each of them locks, in one file of the cache, the byte that has the number of its piece. So nobody
hands work out and nobody has to be asked: whoever has time takes what is neither there nor locked.
A lock is the system's: it ends with its process however that ends, and the piece is free again.

*Source:* record locks of POSIX.1 (fcntl, F_SETLK), which NFS carries between machines.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from kdcache.errors import CacheUnfinished
from kdcache.extract.report import Report
from kdcache.progress import Progress
from kdcache.store import MANIFEST, RECIPE, WORK, CacheWriter

Compute = Callable[[Iterable[int], Progress], Report]
"""Computes pieces, asking for one after the other, and tells of their images."""

_FILE = f"{WORK}/claims"
_BEGINNING, _END = 1 << 40, (1 << 40) + 1  # bytes after those of all pieces
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_LOOK_EVERY_S = 1.0
_SHOWN_WITHIN_S = 180.0  # NFS looks at a folder again after 60 s, unless told otherwise


class Claims:
    """What this process has claimed of a cache; made by `join`."""

    def __init__(self, handle: int | None, *, is_first: bool) -> None:
        """
        Args:
            handle: the file of locks; None where nothing is left to share.
            is_first: no other process is at this cache.
        """
        self._handle = handle
        self._held: set[int] = set()
        self.is_first = is_first
        """Whether no other process is at this cache, so that this one begins it."""

    def begun(self) -> None:
        """Let others in: what they need to know is in the folder."""
        if self._handle is not None:
            _lock(self._handle, fcntl.LOCK_SH, _BEGINNING)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No two processes are in here at once; the others wait."""
        if self._handle is None:
            yield
            return
        _lock(self._handle, fcntl.LOCK_EX, _END)
        try:
            yield
        finally:
            _lock(self._handle, fcntl.LOCK_UN, _END)

    def work_through(self, writer: CacheWriter, compute: Compute, progress: Progress) -> Report:
        """Compute what is missing, beside others who do the same; returns when nothing is.

        Args:
            progress: told of images, also of those that others computed.
        """
        left = dict.fromkeys(_in_turn(writer.missing()))
        report = Report()
        while left:
            free = self._free(writer, left, progress)
            first = next(free, None)
            if first is None:
                # Others have all that is left. Should one die, its pieces are free.
                time.sleep(_LOOK_EVERY_S)
                continue
            report.add(compute(chain([first], free), progress))
            self._await_held(writer)
        return report

    def _free(
        self, writer: CacheWriter, left: dict[int, None], progress: Progress
    ) -> Iterator[int]:
        """Pieces that nobody has, each claimed before it is given, and gone from `left`."""
        for piece in list(left):
            self._let_go({held for held in self._held if writer.has(held)})
            claimed = not writer.has(piece) and self._take(piece)
            if writer.has(piece):  # perhaps since it was looked at
                del left[piece]
                progress(len(writer.piece_rows(piece)))
                self._let_go({piece} & self._held)
            elif claimed:
                del left[piece]
                yield piece

    def _await_held(self, writer: CacheWriter) -> None:
        """Let go of what was computed, which other machines may have done: a shared folder shows
        here a little later what is put there.

        Raises:
            CacheUnfinished: it never shows.
        """
        started = time.monotonic()
        while self._held:
            self._let_go({held for held in self._held if writer.has(held)})
            if self._held and time.monotonic() - started > _SHOWN_WITHIN_S:
                raise CacheUnfinished(
                    f"{len(self._held)} pieces of `{writer.path}` were computed and kept, and are "
                    "not seen from here",
                    hint="give an --out on a file system that all machines share",
                )
            if self._held:
                time.sleep(_LOOK_EVERY_S)

    def _take(self, piece: int) -> bool:
        if self._handle is not None and not _lock(
            self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, piece
        ):
            return False
        self._held.add(piece)
        return True

    def _let_go(self, pieces: set[int]) -> None:
        for piece in list(pieces):
            self._held.remove(piece)
            if self._handle is not None:
                _lock(self._handle, fcntl.LOCK_UN, piece)


@contextmanager
def join(out: Path) -> Iterator[Claims]:
    """Take part in making a cache. Waits while another process begins it."""
    handle, is_first = _enter(out)
    try:
        yield Claims(handle, is_first=is_first)
    finally:
        if handle is not None:
            os.close(handle)
            _leave(out)


def _enter(out: Path) -> tuple[int | None, bool]:
    """The file of locks, and whether nobody else has it; no file where the cache is finished."""
    path = out / _FILE
    while not (out / MANIFEST).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # somebody has just taken the folder away
        try:
            is_first = _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, _BEGINNING)
            if not is_first:
                _lock(handle, fcntl.LOCK_SH, _BEGINNING)
            # Who had it may have failed, or finished the cache, and taken the file away.
            if os.fstat(handle).st_nlink and (is_first or (out / RECIPE).exists()):
                return handle, is_first
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    return None, True


def _leave(out: Path) -> None:
    """Leave no trace where nothing was begun."""
    if (out / RECIPE).exists() or (out / MANIFEST).exists():
        return
    with suppress(OSError):  # others may be there, or have been faster
        (out / _FILE).unlink()
        (out / WORK).rmdir()
        out.rmdir()


def _lock(handle: int, how: int, byte: int) -> bool:
    """Whether a byte could be locked; without LOCK_NB, waits until it can.

    Where the file system has no locks, every process has all of them: it may compute what another
    does, and then finds the same bytes there.
    """
    try:
        fcntl.lockf(handle, how, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _in_turn(pieces: list[int]) -> list[int]:
    """The pieces, from the place on where this process begins.

    They begin apart, where they were told how many they are: less to step over, and those without
    locks between them get on as well.
    """
    number, size = _place_in_run()
    start = len(pieces) * number // size
    return pieces[start:] + pieces[:start]


def _place_in_run() -> tuple[int, int]:
    """The number of this process and how many were started: by torchrun, or as a SLURM array."""
    told = os.environ
    if "RANK" in told and "WORLD_SIZE" in told:
        return int(told["RANK"]), int(told["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_COUNT" in told:
        number = int(told["SLURM_ARRAY_TASK_ID"]) - int(told["SLURM_ARRAY_TASK_MIN"])
        size = int(told["SLURM_ARRAY_TASK_COUNT"])
        return number % size, size
    return 0, 1
