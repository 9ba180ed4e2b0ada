"""A file that arrives: kept as it comes, checked on the way, in its place when it is right.

What has arrived lies beside the file, under a name that holds its digest, so that bytes of two
versions never mix; the next attempt asks for the rest of it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kdcache.errors import CacheCorrupt
from kdcache.files import sync_folder
from kdcache.progress import Progress
from kdcache.store import FileDigest

_BLOCK_BYTES = 1 << 20
_PART = ".part"


class Stream(NamedTuple):
    """What a place sends of a file."""

    offset: int
    """The first byte that it sends: the one asked for, or 0 where it cannot begin in between."""
    num_bytes: int
    """The size of the whole file."""
    pieces: Iterator[bytes]


def receive(
    to: Path,
    digest: FileDigest,
    where: str,
    send: Callable[[int], Stream],
    progress: Progress,
) -> None:
    """Bring a file to `to`, going on with what has arrived of it before.

    Args:
        where: the address, for messages.
        send: opens a stream that begins at the given byte.
        progress: told of bytes; of negative ones where some have to be fetched again.

    Raises:
        CacheCorrupt: the file there is another one; what came of it is deleted.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.{digest.sha256[:16]}{_PART}")
    arrived = part.stat().st_size if part.exists() else 0
    progress(arrived)
    found = _go_on(part, arrived, digest, where, send, progress)
    if found != digest.sha256 and arrived:  # a machine that lost power may leave wrong bytes
        progress(-digest.num_bytes)
        part.unlink()
        found = _go_on(part, 0, digest, where, send, progress)
    if found != digest.sha256:
        progress(-digest.num_bytes)
        part.unlink()
        raise CacheCorrupt(
            f"`{where}` has the SHA-256 `{found}`, and the manifest promises `{digest.sha256}`",
            hint="if trying again does not help, who has the cache should `kdcache verify` it and"
            " push it again",
        )
    os.replace(part, to)
    sync_folder(to.parent)


def remove_parts(root: Path) -> None:
    """Delete what has arrived of files that nobody waits for any more."""
    for part in root.rglob(f".*{_PART}"):
        part.unlink()


def _go_on(
    part: Path,
    arrived: int,
    digest: FileDigest,
    where: str,
    send: Callable[[int], Stream],
    progress: Progress,
) -> str:
    """Add what is lacking, and return the SHA-256 of all of it."""
    sha256 = hashlib.sha256()
    with part.open("r+b" if arrived else "w+b") as file:
        for piece in iter(lambda: file.read(_BLOCK_BYTES), b""):
            sha256.update(piece)
        if arrived < digest.num_bytes:
            stream = send(arrived)
            if stream.num_bytes != digest.num_bytes:
                raise CacheCorrupt(
                    f"`{where}` has {stream.num_bytes} bytes, and the manifest promises"
                    f" {digest.num_bytes}",
                    hint="see what is there with `kdcache info`, and pull that",
                )
            if stream.offset < arrived:
                progress(-arrived)
                sha256 = hashlib.sha256()
                file.seek(0)
                file.truncate()
            for piece in stream.pieces:
                file.write(piece)
                sha256.update(piece)
                progress(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return sha256.hexdigest()
