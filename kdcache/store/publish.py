"""Publishing: a file of a cache appears whole or not at all, once, and never changes again."""

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import CacheMismatch
from kdcache.files import atomic_file, sha256_of

WORK = ".work"
"""The folder in a cache for what is temporary; whatever a killed process leaves, it leaves here."""


@dataclass(frozen=True)
class FileDigest:
    """What a manifest promises of a file."""

    num_bytes: int
    sha256: str


def publish(root: Path, name: str, *parts: bytes | memoryview, hint: str) -> FileDigest:
    """Put `parts`, one after the other, at `root/name`; where the same bytes are, leave them.

    Args:
        hint: what the user should do when other bytes are there.

    Raises:
        CacheMismatch: other bytes are there; both digests are named.
    """
    digest = digest_of(*parts)
    target = root / name
    if not target.exists():
        staged = root / WORK / "staged" / f"{os.getpid()}-{secrets.token_hex(8)}"
        with atomic_file(staged) as file:
            for part in parts:
                file.write(part)
        try:
            if _link(staged, target):
                return digest
        finally:
            staged.unlink()
    if (found := sha256_of(target)) != digest.sha256:
        raise CacheMismatch(
            f"`{target}` is there with the SHA-256 `{found}`,"
            f" and what was made now has `{digest.sha256}`",
            hint=hint,
        )
    return digest


def digest_of(*parts: bytes | memoryview) -> FileDigest:
    """Size and digest of the parts, one after the other."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return FileDigest(sum(memoryview(part).nbytes for part in parts), sha256.hexdigest())


def _link(staged: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(staged, target)
    except FileExistsError:
        return False
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return True
