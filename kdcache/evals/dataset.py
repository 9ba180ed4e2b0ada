"""A labelled data set for an exam: what is learned from, and what is asked."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdcache.errors import ConfigError, DataError
from kdcache.images import ImageSet, dataset_fingerprint, index_images, open_images, take_rows
from kdcache.progress import Bar, silent_bar
from kdcache.shapes import Int64, UInt8

_TEST_SPLITS = ("val", "test")


class LabelledSet(NamedTuple):
    """Images with their classes, and what they are known by."""

    images: ImageSet
    ids: UInt8[np.ndarray, "N 16"]
    fingerprint: str
    """SHA-256 of their paths, bytes and labels."""

    def take(self, rows: Int64[np.ndarray, " R"]) -> "LabelledSet":
        """The images of these rows, which rise."""
        digest = hashlib.sha256(self.fingerprint.encode() + rows.astype("<i8").tobytes())
        return LabelledSet(take_rows(self.images, rows), self.ids[rows], digest.hexdigest())

    def num_classes(self) -> int:
        """Classes of which there are images."""
        return len(np.unique(self.images.labels[self.images.labels >= 0]))


class Splits(NamedTuple):
    """The two sides of an exam."""

    train: ImageSet
    test: ImageSet
    test_name: str
    """`val` or `test`: which folder the queries came from."""
    train_ids: UInt8[np.ndarray, "N 16"]
    test_ids: UInt8[np.ndarray, "Q 16"]
    train_fingerprint: str
    test_fingerprint: str

    @property
    def gallery(self) -> LabelledSet:
        """What is learned from."""
        return LabelledSet(self.train, self.train_ids, self.train_fingerprint)

    @property
    def queries(self) -> LabelledSet:
        """What is asked."""
        return LabelledSet(self.test, self.test_ids, self.test_fingerprint)


def open_splits(data_dir: Path, split: str | None = None, *, bar: Bar = silent_bar) -> Splits:
    """The training images below `data_dir`, and those to be scored.

    Args:
        data_dir: holds `train/` and `val/` or `test/`, each with a folder of images per class.
        split: `val` or `test`; without it `val` where there is one, else `test`.

    Raises:
        ConfigError: the folder, or a split that was asked for, is not there.
        DataError: a split has no classes.
    """
    if not data_dir.is_dir():
        raise ConfigError(
            f"no folder `{data_dir}`", hint="give `--data` a folder that holds train/ and val/"
        )
    there = sorted(path.name for path in data_dir.iterdir() if path.is_dir())
    found = ", ".join(f"{name}/" for name in there[:8]) or "no folders"
    if "train" not in there:
        raise ConfigError(
            f"`{data_dir}` has no train/: it holds {found}",
            hint="give `--data` the folder above train/ and val/ (or test/)",
        )
    name = _test_split(data_dir, there, found, split)
    train, test = (open_labelled(data_dir / part, bar=bar) for part in ("train", name))
    return build_splits(train, test, name)


def build_splits(train: LabelledSet, test: LabelledSet, test_name: str) -> Splits:
    """Two sets as the sides of an exam."""
    sides = train.images, test.images, test_name, train.ids, test.ids
    return Splits(*sides, train.fingerprint, test.fingerprint)


def open_labelled(folder: Path, *, bar: Bar = silent_bar) -> LabelledSet:
    """The images of a folder that holds a folder of images for each class.

    Raises:
        DataError: there is none, or an image has no class.
    """
    images = open_images(folder)
    unlabelled = int((images.labels < 0).sum())
    if unlabelled:
        raise DataError(
            f"{unlabelled} of {len(images)} images in `{folder}` have no class",
            hint=f"sort them into one folder a class: {folder}/<class>/<image>",
        )
    with bar("index", total=len(images), unit="images") as progress:
        index = index_images(images, progress=progress)
    return LabelledSet(images, index.ids, dataset_fingerprint(images, index))


def _test_split(data_dir: Path, there: list[str], found: str, split: str | None) -> str:
    if split is not None and split not in _TEST_SPLITS:
        raise ConfigError(f"no split `{split}`", hint="there are: val, test")
    for name in _TEST_SPLITS if split is None else (split,):
        if name in there:
            return name
    wanted = f"{split}/" if split else "val/ or test/"
    raise ConfigError(
        f"`{data_dir}` has no {wanted}: it holds {found}",
        hint="keep some labelled images out of train/ and put them there, one folder a class",
    )
