"""A labelled data set for an exam: what is learned from, and what is asked."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdcache.errors import ConfigError, DataError
from kdcache.images import ImageSet, index_images, open_images
from kdcache.progress import Bar, silent_bar
from kdcache.shapes import UInt8

_TEST_SPLITS = ("val", "test")


class Splits(NamedTuple):
    """The two sides of an exam."""

    train: ImageSet
    test: ImageSet
    test_name: str
    """`val` or `test`: which folder the queries came from."""
    train_ids: UInt8[np.ndarray, "N 16"]
    test_ids: UInt8[np.ndarray, "Q 16"]


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
    train, test = _open_labelled(data_dir / "train"), _open_labelled(data_dir / name)
    with bar("index", total=len(train) + len(test), unit="images") as progress:
        ids = [index_images(images, progress=progress).ids for images in (train, test)]
    return Splits(train, test, name, *ids)


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


def _open_labelled(folder: Path) -> ImageSet:
    images = open_images(folder)
    unlabelled = int((images.labels < 0).sum())
    if unlabelled:
        raise DataError(
            f"{unlabelled} of {len(images)} images in `{folder}` have no class",
            hint=f"sort them into one folder a class: {folder}/<class>/<image>",
        )
    return images
