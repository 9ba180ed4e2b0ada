"""A copy of a part: some arrays, the first views and some rows of a cache, under its own manifest.

What lies outside is promised by the manifest like everything else, but is not here; `copy.json`,
which no manifest promises, says what is.

Format: FORMAT.md, "A copy of a part".
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcache.errors import CacheCorrupt
from kdcache.files import canonical_json
from kdcache.shapes import Bool
from kdcache.store.layout import ARRAYS
from kdcache.store.publish import FileDigest

COPY = "copy.json"

# The shard of an array or of what lies beside it (`<array>_<side>`), and its receipt.
_SHARD = re.compile(r"(receipts/)?([a-z]+)(?:_[a-z]+)?/(?:c/)?(\d+)[/.](\d+)(?:/0|\.json)?")


@dataclass(frozen=True)
class Shard:
    """What a file says of one block of rows in one view."""

    array: str
    block: int
    view: int
    is_receipt: bool


def shard_of(name: str) -> Shard | None:
    """Which shard, or receipt of a shard, the file `name` of a cache is; None for other files."""
    match = _SHARD.fullmatch(name)
    if match is None or match[2] not in ARRAYS:
        return None
    return Shard(match[2], int(match[3]), int(match[4]), match[1] is not None)


@dataclass(frozen=True)
class Selection:
    """Which part of a cache is meant."""

    arrays: tuple[str, ...]
    num_views: int
    """The first views."""
    rows: tuple[tuple[int, int], ...]
    """First row and the one after the last, ascending, not touching."""

    def mask(self, num_rows: int) -> Bool[np.ndarray, " N"]:
        """Which rows are selected."""
        mask = np.zeros(num_rows, np.bool_)
        for start, stop in self.rows:
            mask[start:stop] = True
        return mask

    def has_block(self, rows: range) -> bool:
        """Whether any of these rows is selected."""
        return any(start < rows.stop and rows.start < stop for start, stop in self.rows)

    def has(self, name: str, shard_rows: Mapping[str, int]) -> bool:
        """Whether a file belongs to it.

        Args:
            shard_rows: rows in a shard, by array.
        """
        shard = shard_of(name)
        if shard is None:
            left_out = set(ARRAYS) - set(self.arrays)
            return not any(_is_about(name, array) for array in left_out)
        if shard.array not in self.arrays or shard.view >= self.num_views:
            return False
        size = shard_rows[shard.array]
        return self.has_block(range(shard.block * size, (shard.block + 1) * size))

    def joined(self, other: "Selection") -> "Selection":
        """The smallest selection that holds both."""
        rows: list[tuple[int, int]] = []
        for start, stop in sorted({*self.rows, *other.rows}):
            if rows and start <= rows[-1][1]:
                start, stop = rows[-1][0], max(rows.pop()[1], stop)
            rows.append((start, stop))
        return Selection(
            tuple(sorted({*self.arrays, *other.arrays})),
            max(self.num_views, other.num_views),
            tuple(rows),
        )

    def options(self) -> str:
        """How `kdcache pull` is asked for it."""
        rows = " ".join(f"--rows {start}:{stop}" for start, stop in self.rows)
        return f"--views {self.num_views} --arrays {','.join(self.arrays)} {rows}"


@dataclass(frozen=True)
class Copy:
    """What `copy.json` says."""

    selection: Selection
    source: str
    """Where the copy is from: what `kdcache pull` was given."""

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "arrays": list(self.selection.arrays),
                "views": self.selection.num_views,
                "rows": [list(rows) for rows in self.selection.rows],
                "from": self.source,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Copy":
        value = json.loads(data)
        rows = tuple((start, stop) for start, stop in value["rows"])
        return cls(Selection(tuple(value["arrays"]), value["views"], rows), value["from"])


def load_copy(root: Path) -> Copy | None:
    """What a folder says of being a copy of a part; None where it is to be whole."""
    path = root / COPY
    if not path.is_file():
        return None
    try:
        return Copy.from_bytes(path.read_bytes())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheCorrupt(
            f"`{path}` does not say which part of its cache is here",
            hint=f"delete {path} and run the same pull again: it fetches what is lacking",
        ) from error


def files_here(root: Path, files: Mapping[str, FileDigest]) -> dict[str, FileDigest]:
    """Those of the promised files that are to be in this folder."""
    copy = load_copy(root)
    if copy is None:
        return dict(files)
    shard_rows = load_shard_rows(root, copy.selection.arrays)
    return {name: file for name, file in files.items() if copy.selection.has(name, shard_rows)}


def load_shard_rows(root: Path, arrays: tuple[str, ...]) -> dict[str, int]:
    """Rows in a shard, by array."""
    return {
        name: json.loads((root / name / "zarr.json").read_bytes())["chunk_grid"]["configuration"][
            "chunk_shape"
        ][0]
        for name in arrays
    }


def _is_about(name: str, array: str) -> bool:
    first, _, rest = name.partition("/")
    if first in ("statistics", "receipts"):
        first = rest.partition("/")[0]
    return first == array or first.startswith(f"{array}_")
