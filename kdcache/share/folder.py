"""A folder as a place: of this machine, or one that several machines mount."""

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from kdcache.errors import CacheCorrupt
from kdcache.files import in_turn, sha256_of, sync_folder
from kdcache.progress import Progress
from kdcache.share.arrival import Stream, receive
from kdcache.share.outgoing import checked_pieces
from kdcache.store import FileDigest

_BLOCK_BYTES = 1 << 20
_STAGING = ".push"


class Folder:
    """Files below a path. What is there is known by reading it: a folder keeps no digests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def fetch(self, name: str, to: Path, digest: FileDigest, progress: Progress) -> None:
        path = self.root / name
        if not path.is_file():
            raise CacheCorrupt(
                f"`{path}` is missing", hint=f"see what is there: kdcache verify {self.root}"
            )
        receive(to, digest, str(path), lambda offset: _send(path, offset), progress)

    def sizes(self) -> dict[str, int]:
        return {
            path.relative_to(self.root).as_posix(): path.stat().st_size
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def holds(self, name: str, digest: FileDigest) -> bool:
        path = self.root / name
        return path.is_file() and FileDigest(path.stat().st_size, sha256_of(path)) == digest

    def put(self, name: str, path: Path, digest: FileDigest, progress: Progress) -> None:
        self._write(name, checked_pieces(path, digest, progress))

    def swap(self, name: str, data: bytes, old: bytes | None) -> bool:
        self._staging.mkdir(parents=True, exist_ok=True)
        with in_turn(self._staging):
            if (there := self.read(name)) != old:
                return there == data
            self._write(name, [data])
        return True

    def copy(self, name: str, to: str) -> None:
        self._write(to, _pieces(self.root / name, 0))

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def clear(self) -> None:
        for staged in self._staging.glob("*.part"):
            with staged.open("rb") as file, suppress(BlockingIOError):  # somebody writes it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                staged.unlink()

    @property
    def _staging(self) -> Path:
        """Where files wait until they are whole."""
        return self.root / _STAGING

    def _write(self, name: str, pieces: Iterable[bytes]) -> None:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(exist_ok=True)
        staged = self._staging / f"{secrets.token_hex(8)}.part"
        with staged.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
                os.replace(staged, target)
            finally:
                staged.unlink(missing_ok=True)
        sync_folder(target.parent)


def _send(path: Path, offset: int) -> Stream:
    return Stream(offset, path.stat().st_size, _pieces(path, offset))


def _pieces(path: Path, offset: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")
