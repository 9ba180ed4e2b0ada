"""A folder of images, read as torchvision's ImageFolder does: the first-level folder is the class.

Source: torchvision.datasets.ImageFolder (layout and labels). Other than there, hidden files are
skipped, links that loop end, and images that lie in the root itself make a set without labels.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from kdcache.errors import DataError
from kdcache.images.formats import has_image_name
from kdcache.images.image_set import ImageSet, PathColumn, label_column

_NUM_NAMED = 3

_FileIdentity = tuple[int, int]


@dataclass(frozen=True, eq=False)
class FolderSet(ImageSet):
    """Images that lie as files below one folder."""

    root: Path

    def read(self, row: int) -> bytes:
        """The bytes of the file of one row."""
        return read_file(self.root, self.paths[row], self.source)


@dataclass
class Listing:
    """What lies below a folder, in no order."""

    images: list[str] = field(default_factory=list)
    """Paths relative to the folder."""
    dangling: list[str] = field(default_factory=list)
    """Links with an image's name that lead nowhere."""
    others: Counter[str] = field(default_factory=Counter)
    """How many files of each other extension."""


def build_folder_set(source: str, listing: Listing) -> FolderSet:
    """The images of a listing, sorted and labelled.

    Raises:
        DataError: a link leads nowhere, or a file name is not UTF-8.
    """
    if listing.dangling:
        named = ", ".join(f"`{path}`" for path in sorted(listing.dangling)[:_NUM_NAMED])
        message = f"{len(listing.dangling):,} links in `{source}` lead to no file: {named}"
        raise DataError(message, hint=f"see them all with `find {source} -xtype l`")
    paths = sorted(listing.images)
    tops = [path.partition("/")[0] for path in paths]
    if any(top == path for top, path in zip(tops, paths, strict=True)):
        classes: tuple[str, ...] = ()
        labels = np.full(len(paths), -1, dtype=np.int32)
    else:
        classes = tuple(sorted(set(tops)))
        labels = label_column(tops, classes)
    return FolderSet(source, PathColumn(paths), labels, classes, root=Path(source).absolute())


def list_folder(root: Path) -> Listing:
    """What lies below a folder, at any depth; links are followed, hidden names are skipped."""
    listing = Listing()
    waiting: list[tuple[str, str, tuple[_FileIdentity, ...]]] = [(str(root), "", ())]
    while waiting:
        folder, prefix, parents = waiting.pop()
        identity = _identity(folder)
        if identity in parents:  # a link back to a folder that we came through
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = prefix + entry.name
                if _is_folder(entry):
                    waiting.append((entry.path, path + "/", (*parents, identity)))
                else:
                    _add_file(listing, entry, path)
    return listing


def read_file(root: Path, path: str, source: str) -> bytes:
    """The bytes of `root / path`.

    Raises:
        DataError: it is gone since `source` was listed.
    """
    try:
        # Not by pathlib: half of the time that indexing a million small files takes would be its.
        with open(os.path.join(root, path), "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        message = f"`{root / path}` is gone since `{source}` was listed"
        raise DataError(message, hint="put the file back, or run the command again") from None


def _add_file(listing: Listing, entry: os.DirEntry[str], path: str) -> None:
    if not has_image_name(entry.name):
        listing.others[PurePosixPath(entry.name).suffix.lower() or "without extension"] += 1
    elif entry.is_symlink() and not os.path.exists(entry.path):
        listing.dangling.append(path)
    else:
        listing.images.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # DirEntry.is_dir raises for a link to itself; os.path.isdir calls that no folder.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _identity(folder: str) -> _FileIdentity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
