"""Files that are either whole or not there: atomic writes, digests, canonical JSON."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kdcache.errors import ConfigError


def cache_folder() -> Path:
    """Where kdcache keeps what it can get again: KDCACHE_HOME, else the cache folder of XDG."""
    if home := os.environ.get("KDCACHE_HOME"):
        return Path(home).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (caches if caches.is_absolute() else Path.home() / ".cache") / "kdcache"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which appears at `path` only when the block ends without an error."""
    with _temporary_beside(path) as (file, name):
        yield file
        _flush(file)
        os.replace(name, path)
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, replacing what was there, so that no reader ever sees a part of it."""
    with atomic_file(path) as file:
        file.write(data)


def put_if_absent(path: Path, data: bytes) -> bool:
    """Put `data` at `path` unless something is there; of several writers exactly one gets True."""
    with _temporary_beside(path) as (file, name):
        file.write(data)
        _flush(file)
        try:
            os.link(name, path)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a folder; the lock ends with the process.

    Raises:
        ConfigError: another process has the folder.
    """
    try:
        handle = _lock(folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another process is at work in `{folder}`",
            hint="wait for it to end, or give another --out",
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until nobody else on this machine is in this block for the same folder, then enter."""
    handle = _lock(folder / ".lock", fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make what has been linked or renamed into a folder outlast a loss of power."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Make the bytes of a file that is closed already outlast a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one way we write JSON: UTF-8, sorted keys, two spaces, a newline at the end."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _lock(path: Path, how: int) -> int:
    """A handle that holds the lock of the file which is at `path` now.

    Somebody may take the file away between opening and locking it: then the lock is one that nobody
    else would ever meet.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, how)
            if os.fstat(handle).st_nlink:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables, each with its dotted key."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def _temporary_beside(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        os.fchmod(handle, 0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        with os.fdopen(handle, "wb") as file:
            yield file, name
    finally:
        Path(name).unlink(missing_ok=True)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
