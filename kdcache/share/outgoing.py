"""A file that leaves: read once, and checked before its last bytes are handed over."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import CacheCorrupt
from kdcache.progress import Progress
from kdcache.store import FileDigest, digest_of

PIECE_BYTES = 8 << 20


def checked_pieces(path: Path, digest: FileDigest, progress: Progress) -> Iterator[bytes]:
    """The bytes of a file in pieces; whoever takes all of them has what the digest says.

    Raises:
        CacheCorrupt: the file is another one; its last piece is not given.
    """
    sha256 = hashlib.sha256()
    left = digest.num_bytes
    with path.open("rb") as file:
        while True:
            piece = file.read(PIECE_BYTES)
            sha256.update(piece)
            left -= len(piece)
            if left <= 0 and (left < 0 or sha256.hexdigest() != digest.sha256):
                raise _changed(path)
            if not piece:
                break
            yield piece
            progress(len(piece))
    if left:
        raise _changed(path)


def read_checked(path: Path, digest: FileDigest) -> bytes:
    """All of a small file.

    Raises:
        CacheCorrupt: the file is another one.
    """
    data = path.read_bytes()
    if digest_of(data) != digest:
        raise _changed(path)
    return data


def _changed(path: Path) -> CacheCorrupt:
    return CacheCorrupt(
        f"`{path}` is not the file that the manifest promises: it was not sent",
        hint="`kdcache verify` names every broken file; fetch or extract them again",
    )
