"""Buckets of S3, GCS and Azure, and folders behind plain HTTP, all through obstore.

What a bucket holds is known without moving it: every object that is put here carries the SHA-256
of its bytes as an attribute, and a bucket shows an object only when all of it has come. obstore
signs what it sends, so a bucket refuses a body that changed on the way.

obstore runs threads of its own: nothing here may be used in a forked process (`storage.md` 3.1).
"""

from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError
from obstore.store import HTTPStore

from kdcache.errors import CacheCorrupt
from kdcache.objects import explained, open_store, require_bucket
from kdcache.progress import Progress
from kdcache.share.arrival import Stream, receive
from kdcache.share.outgoing import PIECE_BYTES, checked_pieces
from kdcache.store import FileDigest, digest_of

_PIECES_AT_ONCE = 2
_STREAM_BYTES = 1 << 16  # what has arrived of a piece of this size is lost with the connection
_SHA256 = "sha256"


class Web:
    """Files below a URL, to read."""

    def __init__(self, url: str, store: Any) -> None:
        self.url = url
        self._store = store

    def read(self, name: str) -> bytes | None:
        found = self._get(name)
        return None if found is None else found[0]

    def fetch(self, name: str, to: Path, digest: FileDigest, progress: Progress) -> None:
        where = f"{self.url}/{name}"
        with explained(where):
            receive(to, digest, where, lambda offset: self._send(name, offset), progress)

    def _get(self, name: str) -> tuple[bytes, dict[str, Any]] | None:
        """A small object, and which version of it this is."""
        with explained(f"{self.url}/{name}"):
            try:
                found = obstore.get(self._store, name)
            except FileNotFoundError as error:
                require_bucket(error)
                return None
            version = {key: found.meta[key] for key in ("e_tag", "version") if found.meta.get(key)}
            return bytes(found.bytes()), version

    def _send(self, name: str, offset: int) -> Stream:
        try:
            found = self._open(name, offset)
        except NotSupportedError:  # a server of plain files that begins at the beginning only
            found, offset = self._open(name, 0), 0
        except FileNotFoundError as error:
            require_bucket(error)
            raise CacheCorrupt(
                f"`{self.url}/{name}` is missing",
                hint="who has the cache should push it again: what is there is not sent twice",
            ) from None
        pieces = map(bytes, found.stream(min_chunk_size=_STREAM_BYTES))
        return Stream(offset, found.meta["size"], pieces)

    def _open(self, name: str, offset: int) -> Any:
        options: Any = {"range": {"offset": offset}} if offset else None
        return obstore.get(self._store, name, options=options)


class Bucket(Web):
    """Objects below a URL, to read and to write."""

    def sizes(self) -> dict[str, int]:
        with explained(self.url):
            return {
                found["path"]: found["size"]
                for batch in obstore.list(self._store)
                for found in batch
            }

    def holds(self, name: str, digest: FileDigest) -> bool:
        with explained(f"{self.url}/{name}"):
            try:
                found = obstore.get(self._store, name, options={"head": True})
            except FileNotFoundError as error:
                require_bucket(error)
                return False
            size: int = found.meta["size"]
            return size == digest.num_bytes and found.attributes.get(_SHA256) == digest.sha256

    def put(self, name: str, path: Path, digest: FileDigest, progress: Progress) -> None:
        with explained(f"{self.url}/{name}"):
            obstore.put(
                self._store,
                name,
                checked_pieces(path, digest, progress),
                attributes={_SHA256: digest.sha256},
                chunk_size=PIECE_BYTES,
                max_concurrency=_PIECES_AT_ONCE,
            )

    def swap(self, name: str, data: bytes, old: bytes | None) -> bool:
        mode: Any = "create"
        if old is not None:
            found = self._get(name)
            if found is None or found[0] != old:
                return found is not None and found[0] == data
            mode = found[1]
        with explained(f"{self.url}/{name}"):
            try:
                obstore.put(
                    self._store,
                    name,
                    data,
                    mode=mode,
                    attributes={_SHA256: digest_of(data).sha256},
                )
            except (AlreadyExistsError, PreconditionError):
                # A request that was sent again because its answer got lost meets its own object.
                return self.read(name) == data
        return True

    def copy(self, name: str, to: str) -> None:
        with explained(f"{self.url}/{name}"):
            obstore.copy(self._store, name, to)

    def delete(self, name: str) -> None:
        with explained(f"{self.url}/{name}"):
            obstore.delete(self._store, name)

    def clear(self) -> None:
        """Nothing that could be seen is left; the pieces of uploads that died are the bucket's to
        expire (a lifecycle rule for incomplete multipart uploads)."""


def open_bucket(url: str) -> Web:
    """What is below `url`: a `Bucket` unless it is plain HTTP. The environment has credentials."""
    store = open_store(url)
    return Web(url, store) if isinstance(store, HTTPStore) else Bucket(url, store)
