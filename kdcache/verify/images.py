"""Images: which of a folder are the rows of a cache, whatever they are called by now."""

from dataclasses import dataclass, field

import numpy as np

from kdcache.images import ImageSet, image_id, index_images
from kdcache.progress import Progress, silent
from kdcache.shapes import Bool, Int64, UInt8
from kdcache.store import RowIndex
from kdcache.verify.finding import Finding, in_rows

_NOTHING = b""  # no decoder takes it for an image


@dataclass(frozen=True, eq=False)
class Matched:
    """The images of a cache's rows."""

    places: Int64[np.ndarray, " N"]
    """Where each row is in the set of images; -1 where it is not."""
    changed: list[int] = field(default_factory=list)
    """Rows at whose path another image lies now, and whose own is nowhere."""
    missing: list[int] = field(default_factory=list)
    """Rows of which there is no trace."""
    renamed: list[int] = field(default_factory=list)
    """Rows whose image lies at another path."""
    added: list[str] = field(default_factory=list)
    """Paths of images that the cache knows nothing of."""


@dataclass(frozen=True, eq=False)
class CacheImages(ImageSet):
    """The images of a cache's rows, in its order."""

    images: ImageSet
    places: Int64[np.ndarray, " N"]

    def read(self, row: int) -> bytes:
        """The encoded image of a row; nothing where there is none."""
        place = int(self.places[row])
        return _NOTHING if place < 0 else self.images.read(place)


def match_images(
    index: RowIndex,
    readable: Bool[np.ndarray, " N"],
    images: ImageSet,
    *,
    thorough: bool,
    progress: Progress = silent,
) -> Matched:
    """Find each row's image by the hash of its bytes.

    Args:
        thorough: read every image; else those alone that lie at no path of the cache, so that one
            which was changed in its place is found only where it is read later.
        progress: counts images, all of the set.

    Raises:
        DataError: a file is gone since the set was opened.
    """
    at_path = {path: at for at, path in enumerate(images.paths)}
    own = np.array([at_path.get(path, -1) for path in index.paths])
    read = np.arange(len(images)) if thorough else np.setdiff1d(np.arange(len(images)), own)
    progress(len(images) - len(read))
    some = CacheImages(
        images.source,
        [images.paths[at] for at in read.tolist()],
        images.labels[read],
        images.classes,
        images,
        read,
    )
    ids = {
        at: _as_bytes(found) for at, found in zip(read.tolist(), _ids(some, progress), strict=True)
    }
    return _match(index, readable, images, own, ids)


def _match(
    index: RowIndex,
    readable: Bool[np.ndarray, " N"],
    images: ImageSet,
    own: Int64[np.ndarray, " N"],
    ids: dict[int, bytes],
) -> Matched:
    """The match.

    Args:
        own: the image at each row's path, -1 for none.
        ids: of the images that were read.
    """
    by_id: dict[bytes, int] = {}
    for at, name in ids.items():
        by_id.setdefault(name, at)
    matched = Matched(np.full(len(index.paths), -1, np.int64))
    for row in range(len(index.paths)):
        name, at = _as_bytes(index.image_ids[row]), int(own[row])
        if at >= 0 and ids.get(at, name) == name:
            matched.places[row] = at
        elif name in by_id:
            matched.places[row] = by_id[name]
            matched.renamed.append(row)
        elif readable[row]:
            (matched.missing if at < 0 else matched.changed).append(row)
    known = {_as_bytes(one) for one in index.image_ids}
    matched.added.extend(images.paths[at] for at, name in ids.items() if name not in known)
    return matched


def image_findings(
    index: RowIndex, images: ImageSet, matched: Matched
) -> tuple[list[Finding], list[str]]:
    """Images that are missing or have changed; and a note of those that were renamed or added."""
    findings, notes = [], []
    if rows := matched.missing:
        found = f"and {len(rows) - 1:,} other images are missing" if rows[1:] else "is missing"
        path = index.paths[rows[0]]
        findings.append(
            Finding(path, "image missing", found, "the images of the cache", **in_rows(rows))
        )
    if rows := matched.changed:
        found = f"and {len(rows) - 1:,} other images have changed" if rows[1:] else "has changed"
        path = index.paths[rows[0]]
        findings.append(
            Finding(path, "image changed", found, "the images of the cache", **in_rows(rows))
        )
    if rows := matched.renamed:
        row = rows[0]
        now = images.paths[int(matched.places[row])]
        notes.append(
            f"{len(rows):,} images lie at another path, which changes nothing; the first is"
            f" `{now}`, and was `{index.paths[row]}`"
        )
    if added := matched.added:
        notes.append(
            f"{len(added):,} images of `{images.source}` are not in the cache, the first is"
            f" `{added[0]}`"
        )
    return findings, notes


def rows_of(
    index: RowIndex, readable: Bool[np.ndarray, " N"], images: ImageSet, matched: Matched
) -> tuple[CacheImages, UInt8[np.ndarray, "N 16"]]:
    """The images of the rows, and the ids by which they are to be known.

    An unreadable image that is no more is replaced by nothing, which is as unreadable.
    """
    ids = index.image_ids.copy()
    ids[~readable & (matched.places < 0)] = np.frombuffer(image_id(_NOTHING), np.uint8)
    rows = CacheImages(
        images.source, index.paths, index.labels, tuple(index.classes), images, matched.places
    )
    return rows, ids


def _ids(images: ImageSet, progress: Progress) -> UInt8[np.ndarray, "N 16"]:
    return index_images(images, progress=progress).ids


def _as_bytes(row: UInt8[np.ndarray, " 16"]) -> bytes:
    return row.tobytes()
