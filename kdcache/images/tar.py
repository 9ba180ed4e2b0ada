"""Images in WebDataset shards: plain tar files, read in place by offset, on a disk or in a bucket.

Rows are in the order of the members, shard after shard, so whoever reads rows in their order reads
each shard from front to back; a sample is named by its member, as everywhere.
Source: the WebDataset convention: members whose names agree up to the first dot of the base name
are one sample; `.cls` holds its class as a number, or else `label` of the object in `.json` does
(as in timm's sets on the Hugging Face Hub).
"""

import functools
import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from kdcache.errors import DataError
from kdcache.images.formats import has_image_name
from kdcache.images.image_set import ImageSet, PathColumn, label_column
from kdcache.images.shards import Shard, Shards, open_to_scan
from kdcache.shapes import Int32, Int64

_NUM_OPEN_SHARDS = 64
_TAIL_BYTES = 1 << 20
_SCANNED_AT_ONCE = 8


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
        (data,) = self.read_rows([row])
        return data

    def read_rows(self, rows: Sequence[int]) -> list[bytes]:
        """The bytes of some members; of a bucket, near ones by one request."""
        found: list[bytes] = []
        for shard, group in itertools.groupby(rows, lambda row: int(self.shard_of[row])):
            members = list(group)
            sizes = self.num_bytes[members].tolist()
            data = self._opened(shard).read(self.offsets[members].tolist(), sizes)
            if [len(one) for one in data] != sizes:
                raise self._changed(shard)
            found += data
        return found

    def _forget_handles(self) -> None:
        # A shard that falls out of this cache is closed when the last thread lets go of it.
        opened = functools.lru_cache(_NUM_OPEN_SHARDS)(Shards().open)
        object.__setattr__(self, "_open", opened)

    def _opened(self, number: int) -> Shard:
        try:
            shard: Shard = self.__dict__["_open"](self.shards[number])
        except FileNotFoundError:
            message = f"`{self.shards[number]}` is gone since `{self.source}` was listed"
            raise DataError(message, hint="put it back, or run the command again") from None
        if shard.num_bytes != self.shard_bytes[number]:
            raise self._changed(number)
        return shard

    def _changed(self, shard: int) -> DataError:
        message = f"`{self.shards[shard]}` was changed since `{self.source}` was listed"
        return DataError(message, hint="run the command again")


@dataclass
class _Sample:
    """The members that share a key."""

    image: tarfile.TarInfo | None = None
    label: int | None = None
    other_label: int | None = None
    """Of its `.json`."""


class _Entry(NamedTuple):
    """An image of a shard, as the columns of a set hold it."""

    path: str
    label: int | None
    shard: int
    offset: int
    num_bytes: int


class _Scanned(NamedTuple):
    """A shard that was read through."""

    num_bytes: int
    entries: list[_Entry]


def open_tars(source: str, places: Sequence[str]) -> TarSet:
    """The images of some shards, at paths or URLs.

    Raises:
        DataError: a shard is cut off, damaged, compressed or twice there; a sample holds two
            images, a class that is no number, or a link; there are no images.
        PlaceError: a bucket cannot be asked.
    """
    shards, numbered = Shards(), sorted(places, key=_name)
    with ThreadPoolExecutor(_SCANNED_AT_ONCE) as pool:
        scanned = list(pool.map(lambda at: _scan(shards, numbered[at], at), range(len(numbered))))
    found = [entry for one in scanned for entry in one.entries]
    if not found:
        message = f"`{source}` holds no images in {len(places):,} tar files"
        raise DataError(message, hint=f"see what is in one: `tar tf {numbered[0]} | head`")
    _refuse_twins(found, numbered)
    numbers = sorted({entry.label for entry in found if entry.label is not None})
    classes = tuple(str(number) for number in numbers)
    names = [None if entry.label is None else str(entry.label) for entry in found]
    return TarSet(
        source,
        PathColumn(entry.path for entry in found),
        label_column(names, classes),
        classes,
        shards=tuple(numbered),
        shard_bytes=tuple(one.num_bytes for one in scanned),
        shard_of=np.array([entry.shard for entry in found], dtype=np.int32),
        offsets=np.array([entry.offset for entry in found], dtype=np.int64),
        num_bytes=np.array([entry.num_bytes for entry in found], dtype=np.int64),
    )


def _name(place: str) -> tuple[str, str]:
    """What shards are sorted by: where they lie must not matter."""
    return place.rpartition("/")[2], place


def _refuse_twins(found: Sequence[_Entry], shards: Sequence[str]) -> None:
    seen: dict[str, _Entry] = {}
    for entry in found:
        one = seen.setdefault(entry.path, entry)
        if one is not entry:
            message = f"`{shards[one.shard]}` and `{shards[entry.shard]}` both hold `{one.path}`"
            raise DataError(message, hint="give the shards different names")


def _scan(shards: Shards, shard: str, number: int) -> _Scanned:
    samples: dict[str, _Sample] = {}
    with _opened_to_scan(shards, shard) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    _add(samples, tar, member, shard)
                _check_end(tar, shard)
        except tarfile.TarError as error:
            message = f"`{shard}` is cut off, or not an uncompressed tar file: {error}"
            raise DataError(
                message, hint=f"look at it with `tar tf {shard}`, and copy it anew"
            ) from error
        num_bytes = file.seek(0, 2)
    entries = []
    for sample in samples.values():
        image = sample.image
        if image is not None:
            path = str(PurePosixPath(f"{_name(shard)[0]}/{image.name}"))
            label = sample.other_label if sample.label is None else sample.label
            entries.append(_Entry(path, label, number, image.offset_data, image.size))
    entries.sort(key=lambda entry: entry.offset)
    return _Scanned(num_bytes, entries)


def _opened_to_scan(shards: Shards, shard: str) -> io.BufferedReader:
    try:
        return open_to_scan(shards, shard)
    except FileNotFoundError:
        hint = "see that the address is right, or narrow the range"
        raise DataError(f"there is no `{shard}`", hint=hint) from None


def _add(
    samples: dict[str, _Sample], tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str
) -> None:
    """Put a member where it belongs: the image of a sample, its class, or nothing to us."""
    path = PurePosixPath(member.name)
    is_image, is_class = has_image_name(path.name), path.suffix in (".cls", ".json")
    is_hidden = any(part.startswith(".") for part in path.parts)
    if member.isdir() or is_hidden or not (is_image or is_class):
        return
    if not member.isreg() or member.issparse():
        message = f"`{member.name}` in `{shard}` is a link or a sparse file, not a plain one"
        raise DataError(message, hint="pack with `tar --dereference --hard-dereference`")
    sample = samples.setdefault(str(path.with_name(path.name.partition(".")[0])), _Sample())
    if path.suffix == ".cls":
        sample.label = _class_number(tar, member, shard)
    elif is_class:
        sample.other_label = _label_in_json(tar, member, shard)
    elif sample.image is not None:
        message = f"`{sample.image.name}` and `{member.name}` in `{shard}` are one sample"
        raise DataError(message, hint="pack one image a sample, or give each its own base name")
    else:
        sample.image = member


def _class_number(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> int:
    text = _text(tar, member)
    if not text.strip().isdigit():
        message = f"`{member.name}` in `{shard}` holds {text[:20]!r}; a class is a whole number"
        raise DataError(message, hint="pack the number of the class as text")
    return int(text)


def _label_in_json(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> int | None:
    """The whole number at `label`; what else is said of a sample is not ours."""
    try:
        said = json.loads(_text(tar, member))
    except ValueError as error:
        message = f"`{member.name}` in `{shard}` is no JSON: {error}"
        raise DataError(message, hint="pack it anew, or leave it out of the shard") from None
    label = said.get("label") if isinstance(said, dict) else None
    is_number = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return label if is_number else None


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only members that are not files have none
    return file.read()


def _check_end(tar: tarfile.TarFile, shard: str) -> None:
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
