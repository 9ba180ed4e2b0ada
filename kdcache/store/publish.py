"""Publishing: a file of a cache appears whole or not at all; what is promised never changes."""

import errno
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import CacheMismatch
from kdcache.files import atomic_file, sha256_of, sync_folder

WORK = ".work"
"""The folder in a cache for what is temporary; whatever a killed process leaves, it leaves here."""

# Another file system, one without links, a file of somebody else, too many names; or the target
# is there by now.
_NO_LINK = {
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EEXIST,
}


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
        staged = _stage(root, *parts)
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


def adopt(root: Path, name: str, source: Path, promised: FileDigest, *, hint: str) -> None:
    """Put a file of another cache at `root/name`: the same file by another name, where the file
    system allows that, else a copy. Neither cache ever writes to it, so none can spoil the other's.

    Args:
        promised: size and digest, which the caller has checked.
        hint: what the user should do when other bytes are there.

    Raises:
        CacheMismatch: other bytes are there.
    """
    target = root / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        else:
            sync_folder(target.parent)
            return
    if not target.exists():
        publish(root, name, source.read_bytes(), hint=hint)
    if (found := sha256_of(target)) != promised.sha256:
        raise CacheMismatch(
            f"`{target}` is there with the SHA-256 `{found}`, and `{source}` is promised with"
            f" `{promised.sha256}`",
            hint=hint,
        )


def overwrite(root: Path, name: str, data: bytes) -> None:
    """Put `data` in the place of the file `root/name`, which no manifest promises."""
    os.replace(_stage(root, data), root / name)
    sync_folder((root / name).parent)


def digest_of(*parts: bytes | memoryview) -> FileDigest:
    """Size and digest of the parts, one after the other."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return FileDigest(sum(memoryview(part).nbytes for part in parts), sha256.hexdigest())


def tidy(root: Path) -> None:
    """Remove what is temporary from a finished cache; several processes may do so at once."""
    shutil.rmtree(root / WORK, ignore_errors=True)


def _stage(root: Path, *parts: bytes | memoryview) -> Path:
    """Write a file that is still to get its name."""
    staged = root / WORK / "staged" / f"{os.getpid()}-{secrets.token_hex(8)}"
    with atomic_file(staged) as file:
        for part in parts:
            file.write(part)
    return staged


def _link(staged: Path, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(staged, target)
    except FileExistsError:
        return False
    sync_folder(target.parent)
    return True
