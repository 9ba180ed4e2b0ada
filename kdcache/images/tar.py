"""Images in WebDataset shards: plain tar files, read in place by offset.

Source: the WebDataset convention: members whose names agree up to the first dot of the base name
are one sample; `.cls` holds its class as a number.
"""

import functools
import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from kdcache.errors import DataError
from kdcache.images.formats import has_image_name
from kdcache.images.image_set import ImageSet, PathColumn, label_column
from kdcache.shapes import Int32, Int64

_NUM_OPEN_SHARDS = 64
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class TarSet(ImageSet):
    """Images that lie in tar files; the first part of a path is the name of the tar."""

    shards: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    shard_of: Int32[np.ndarray, " N"]
    offsets: Int64[np.ndarray, " N"]
    num_bytes: Int64[np.ndarray, " N"]

    def __post_init__(self) -> None:
        self._forget_handles()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_handles()

    def read(self, row: int) -> bytes:
        """The bytes of one member."""
        shard = int(self.shard_of[row])
        size = int(self.num_bytes[row])
        # pread has no file position, so threads and forked processes can share the handle.
        data = os.pread(self._handle(shard).number, size, int(self.offsets[row]))
        if len(data) != size:
            raise self._changed(shard)
        return data

    def _forget_handles(self) -> None:
        # A handle that falls out of this cache is closed when the last thread lets go of it.
        object.__setattr__(self, "_open", functools.lru_cache(_NUM_OPEN_SHARDS)(_Handle))

    def _handle(self, shard: int) -> "_Handle":
        try:
            handle: _Handle = self.__dict__["_open"](self.shards[shard])
        except FileNotFoundError:
            message = f"`{self.shards[shard]}` is gone since `{self.source}` was listed"
            raise DataError(message, hint="put it back, or run the command again") from None
        if handle.num_bytes != self.shard_bytes[shard]:
            raise self._changed(shard)
        return handle

    def _changed(self, shard: int) -> DataError:
        message = f"`{self.shards[shard]}` was changed since `{self.source}` was listed"
        return DataError(message, hint="run the command again")


class _Handle:
    """An open file, closed with its last reference."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)
        self.num_bytes = os.fstat(self.number).st_size

    def __del__(self) -> None:
        if "number" in self.__dict__:
            os.close(self.number)


@dataclass
class _Sample:
    """The members that share a key."""

    image: tarfile.TarInfo | None = None
    label: int | None = None


class _Entry(NamedTuple):
    """An image of a shard, as the columns of a set hold it."""

    path: str
    label: int | None
    shard: int
    offset: int
    num_bytes: int


def open_tars(source: str, shards: Sequence[Path]) -> TarSet:
    """The images of some shards.

    Raises:
        DataError: a shard is cut off, damaged, compressed or twice there; a sample holds two
            images, a class that is no number, or a link; there are no images.
    """
    found = sorted(
        (entry for number, shard in enumerate(shards) for entry in _scan(shard, number)),
        key=lambda entry: entry.path,
    )
    if not found:
        message = f"`{source}` holds no images in {len(shards):,} tar files"
        raise DataError(message, hint=f"see what is in one: `tar tf {shards[0]} | head`")
    for one, other in itertools.pairwise(found):
        if one.path == other.path:
            message = f"`{shards[one.shard]}` and `{shards[other.shard]}` both hold `{one.path}`"
            raise DataError(message, hint="give the shards different names")
    numbers = sorted({entry.label for entry in found if entry.label is not None})
    classes = tuple(str(number) for number in numbers)
    names = [None if entry.label is None else str(entry.label) for entry in found]
    return TarSet(
        source,
        PathColumn(entry.path for entry in found),
        label_column(names, classes),
        classes,
        shards=tuple(str(shard.absolute()) for shard in shards),
        shard_bytes=tuple(shard.stat().st_size for shard in shards),
        shard_of=np.array([entry.shard for entry in found], dtype=np.int32),
        offsets=np.array([entry.offset for entry in found], dtype=np.int64),
        num_bytes=np.array([entry.num_bytes for entry in found], dtype=np.int64),
    )


def _scan(shard: Path, number: int) -> Iterator[_Entry]:
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                _add(samples, tar, member, shard)
            _check_end(tar, shard)
    except tarfile.TarError as error:
        message = f"`{shard}` is cut off, or not an uncompressed tar file: {error}"
        raise DataError(
            message, hint=f"look at it with `tar tf {shard}`, and copy it anew"
        ) from error
    for sample in samples.values():
        image = sample.image
        if image is not None:
            path = PurePosixPath(f"{shard.name}/{image.name}")
            yield _Entry(str(path), sample.label, number, image.offset_data, image.size)


def _add(
    samples: dict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path
) -> None:
    """Put a member where it belongs: the image of a sample, its class, or nothing to us."""
    path = PurePosixPath(member.name)
    is_image, is_class = has_image_name(path.name), path.suffix == ".cls"
    is_hidden = any(part.startswith(".") for part in path.parts)
    if member.isdir() or is_hidden or not (is_image or is_class):
        return
    if not member.isreg() or member.issparse():
        message = f"`{member.name}` in `{shard}` is a link or a sparse file, not a plain one"
        raise DataError(message, hint="pack with `tar --dereference --hard-dereference`")
    sample = samples.setdefault(str(path.with_name(path.name.partition(".")[0])), _Sample())
    if is_class:
        sample.label = _class_number(tar, member, shard)
    elif sample.image is not None:
        message = f"`{sample.image.name}` and `{member.name}` in `{shard}` are one sample"
        raise DataError(message, hint="pack one image a sample, or give each its own base name")
    else:
        sample.image = member


def _class_number(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    file = tar.extractfile(member)
    assert file is not None  # only members that are not files have none
    text = file.read()
    if not text.strip().isdigit():
        message = f"`{member.name}` in `{shard}` holds {text[:20]!r}; a class is a whole number"
        raise DataError(message, hint="pack the number of the class as text")
    return int(text)


def _check_end(tar: tarfile.TarFile, shard: Path) -> None:
    """Refuse what tarfile takes for an end: a cut between two members, or a damaged header."""
    assert tar.fileobj is not None  # we opened it by its name
    tar.fileobj.seek(tar.offset)
    tail = tar.fileobj.read(_TAIL_BYTES)
    if len(tail) < tarfile.BLOCKSIZE:
        message = f"`{shard}` is cut off: it has no end mark after {tar.offset:,} bytes"
        raise DataError(message, hint="copy it anew")
    if tail.strip(b"\0"):
        message = f"`{shard}` goes on with what is no tar member after {tar.offset:,} bytes"
        raise DataError(message, hint="copy it anew; tar files must not be joined with `cat`")
