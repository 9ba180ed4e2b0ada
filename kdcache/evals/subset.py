"""Subsets of labelled images: those of a published list, or a share of every class by a seed.

*Source:* Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, arXiv:2002.05709:
1 % and 10 % of ImageNet's labels, balanced; its repository lists them as `1percent.txt` and
`10percent.txt`, a file name a line.
"""

import hashlib
from pathlib import Path, PurePosixPath

import numpy as np

from kdcache.errors import ConfigError, DataError
from kdcache.evals.dataset import LabelledSet
from kdcache.shapes import Int64

_NUM_NAMED = 3


def seeded_rows(part: LabelledSet, percent: float, seed: int) -> Int64[np.ndarray, " R"]:
    """Rows of `percent` of each class, and one at least.

    Images come in the order of a hash of (seed, image), so a larger share holds the smaller one,
    and images that are added elsewhere change nothing.
    """
    chosen = []
    for label in np.unique(part.images.labels):
        rows = np.flatnonzero(part.images.labels == label)
        keys = [_key(seed, part.ids[row].tobytes()) for row in rows]
        count = max(1, round(len(rows) * percent / 100))
        chosen.append(rows[np.array(np.argsort(keys, kind="stable"))][:count])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def listed_rows(part: LabelledSet, path: Path) -> Int64[np.ndarray, " R"]:
    """Rows of the images that a list names: by path below train/, or by file name.

    Raises:
        ConfigError: there is no such list, or it is empty.
        DataError: it names an image that is not there, or a file name that several have.
    """
    if not path.is_file():
        raise ConfigError(f"no list at `{path}`", hint="--labelled-list 1percent.txt")
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    if not names:
        raise ConfigError(f"`{path}` names no image", hint="give a file name a line")
    rows_of: dict[str, list[int]] = {}
    for row, image in enumerate(part.images.paths):
        for name in {image, PurePosixPath(image).name}:
            rows_of.setdefault(name, []).append(row)
    missing = [name for name in names if name not in rows_of]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images of `{path}` are not in "
            f"`{part.images.source}`: {_some(missing)}",
            hint="give the list that belongs to this data set",
        )
    unclear = [name for name in names if len(rows_of[name]) > 1]
    if unclear:
        raise DataError(
            f"{len(unclear)} names of `{path}` are those of several images: {_some(unclear)}",
            hint="write them with their class: <class>/<image>",
        )
    return np.unique([rows_of[name][0] for name in names]).astype(np.int64)


def _key(seed: int, image: bytes) -> str:
    return hashlib.sha256(seed.to_bytes(8, "little") + image).hexdigest()


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _NUM_NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NUM_NAMED]) + more
