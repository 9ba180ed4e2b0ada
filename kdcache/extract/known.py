"""What is known before the teacher looks: what a finished cache says of the views of a job.

Values are known where all that decides them is the same in both recipes. Rows are joined by image
id, so images may have been added, removed, moved and renamed since.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kdcache.extract.job import Job, describe
from kdcache.progress import Progress, silent
from kdcache.shapes import Bool, Int8, Int64, Shaped, UInt8
from kdcache.store import (
    ArraySpec,
    Cache,
    CacheWriter,
    Quantised,
    Taken,
    common_blocks,
    differences,
    grid_of,
    load_unreadable,
    map_shard,
    require_digest,
    sample_rows,
)
from kdcache.views import Witness, witness_mask, witnesses_from_arrays

NOTHING, RENDER, SHOW = 0, 1, 2
"""What is to be done with a view: nothing, render it for its witness, show it to the teacher."""

_AND = " and "

_NO_BEARING = ("images.", "teacher.licence:")
"""Changes of a recipe that leave the values of an image alone."""


def changes(job: Job, cache: Cache) -> list[str]:
    """What decides values and is not as it was for the cache, as lines `key: old -> new`.

    The arrays are among them where not one of them is of use.
    """
    serves = any(_is_source(cache.arrays.get(spec.name), spec) for spec in job.array_specs())
    return [
        line
        for line in differences(cache.recipe, describe(job))
        if not line.startswith(_NO_BEARING) and not (serves and line.startswith("arrays."))
    ]


def known_of(job: Job, cache: Cache) -> "Known":
    """What a cache knows of a job from which no `changes` part it."""
    specs = job.array_specs()
    measured = np.zeros(len(job.images), np.bool_)
    if any(spec.is_quantised and _is_quantised(cache, spec.name) for spec in specs):
        measured[sample_rows(job.index.ids)] = True
    return Known(
        cache=cache,
        rows=_join(job.index.ids, cache.image_ids),
        num_views=job.num_views,
        has_values=all(_is_source(cache.arrays.get(spec.name), spec) for spec in specs),
        measured=measured,
    )


def _is_quantised(cache: Cache, name: str) -> bool:
    return name in cache.arrays and cache.arrays[name].is_quantised


def _is_source(there: ArraySpec | None, wanted: ArraySpec) -> bool:
    """Whether the values there are stored as the teacher's own would be.

    Extraction rounds what the teacher says, in float32, once; to round again could round otherwise.
    """
    return there is not None and there.dtype in ("float32", wanted.dtype)


def _join(
    ids: UInt8[np.ndarray, "N 16"], there: UInt8[np.ndarray, "M 16"]
) -> Int64[np.ndarray, " N"]:
    """The row there of each id, -1 for none; of equal ones the same row, else the first."""
    first = {one.tobytes(): row for row, one in reversed(list(enumerate(there)))}
    rows = np.array([first.get(one.tobytes(), -1) for one in ids], np.int64)
    both = min(len(ids), len(there))
    same = np.flatnonzero((ids[:both] == there[:both]).all(axis=1))
    rows[same] = same
    return rows


@dataclass(frozen=True, eq=False)
class Known:
    """What a cache says of a job's images."""

    cache: Cache
    rows: Int64[np.ndarray, " N"]
    """The cache's row of each row of the job, -1 for none."""
    num_views: int
    """Of the job."""
    has_values: bool
    """Whether the cache holds every array of the job, and precisely enough."""
    measured: Bool[np.ndarray, " N"]
    """Rows of which the teacher must say view 0 again: uint8 is measured by its floats."""

    @property
    def num_common_views(self) -> int:
        """Views that both have, the first ones."""
        return min(self.num_views, self.cache.num_views)

    @property
    def num_values(self) -> int:
        """Views of images that the teacher need not see."""
        there = self.rows >= 0
        num_again = int((there & self.measured).sum())
        return int(there.sum()) * self.num_common_views - num_again if self.has_values else 0

    def versions_with(self, now: Mapping[str, str]) -> dict[str, str]:
        """The versions of what the values were and are made with: both, where they differ."""
        then = self.cache.manifest.versions if (self.rows >= 0).any() else {}
        return {
            name: _AND.join(
                dict.fromkeys(
                    one for some in (then, now) if name in some for one in some[name].split(_AND)
                )
            )
            for name in sorted({*then, *now})
        }

    def tasks(self, rows: Int64[np.ndarray, " R"]) -> Int8[np.ndarray, "R V"]:
        """What is to be done with each view of these rows of the job."""
        known = self.mask(rows)
        lacking = witness_mask(rows, np.arange(self.num_views), len(self.rows), self.num_views)
        lacking &= known
        for i, witness in self._witnesses(rows):
            lacking[i, witness.view] = False
        unreadable = np.isin(self.rows[rows], list(self._why_unreadable))
        lacking[unreadable] = False
        if self.has_values:
            known[unreadable, : self.num_common_views] = True  # nothing to measure
        return np.where(known, np.where(lacking, RENDER, NOTHING), SHOW).astype(np.int8)

    def witnesses(self, rows: Int64[np.ndarray, " R"]) -> list[Witness]:
        """Those of known views that the cache keeps and the job is to keep, by the job's rows."""
        known = self.mask(rows)
        wanted = witness_mask(rows, np.arange(self.num_views), len(self.rows), self.num_views)
        wanted &= known
        return [
            replace(witness, row=int(rows[i]))
            for i, witness in self._witnesses(rows)
            if wanted[i, witness.view]
        ]

    def witnesses_in_common(self) -> list[Witness]:
        """All witnesses that the cache keeps of the job's views, by the job's rows."""
        found = self._witnesses(np.arange(len(self.rows)))
        return [replace(witness, row=row) for row, witness in found]

    def unreadable(self, rows: Int64[np.ndarray, " R"]) -> dict[int, str]:
        """Rows of the job whose images could not be read, and why."""
        if not self.has_values:
            return {}
        return {
            int(row): self._why_unreadable[there]
            for row, there in zip(rows, self.rows[rows].tolist(), strict=True)
            if there in self._why_unreadable
        }

    def fill(
        self, values: Shaped[np.ndarray, "P V ..."], name: str, rows: range, views: list[int]
    ) -> None:
        """Put what is known of these rows and views of an array on disk in its place in `values`.

        What quantised numbers mean is no value of the teacher's: see `taken`.
        """
        there = self.rows[rows.start : rows.stop]
        grid = grid_of(self.cache, name)
        if not self.has_values or grid is None:
            return
        for block in np.unique(there[there >= 0] // grid.shard_rows).tolist():
            first = grid.block_rows(block).start
            at = np.flatnonzero(there // grid.shard_rows == block)
            for view in views:
                if view < self.num_common_views:
                    values[at, view] = map_shard(self.cache, grid, block, view)[there[at] - first]

    def taken(self, name: str, rows: range, views: list[int]) -> Taken | None:
        """What is known of these rows and views of an array of uint8; None where it is another."""
        grid = grid_of(self.cache, name)
        if not self.has_values or grid is None or not grid.spec.is_quantised:
            return None
        members = [
            np.zeros((len(rows), self.num_views, *part.row_shape), part.spec.numpy_dtype)
            for part in grid.parts()
        ]
        for part, member in zip(grid.parts(), members, strict=True):
            self.fill(member, part.spec.name, rows, views)
        return Taken(self.mask(np.array(rows)), Quantised(*members))

    def take(self, writer: CacheWriter, progress: Progress = silent) -> None:
        """Check the shards that values are taken from, and adopt those that are equal as a whole.

        Args:
            progress: counts shards, `num_shards` in all.

        Raises:
            CacheCorrupt: a shard is not what the manifest promises.
        """
        for name, block, view, adopted in self._shards(writer):
            there = grid_of(self.cache, name)
            assert there is not None
            file = there.shard_file(block, view)
            require_digest(self.cache.path, self.cache.manifest, file)
            if adopted:
                source, promised = self.cache.path / file, self.cache.manifest.files[file]
                writer.adopt(name, block, view, source, promised)
            progress(1)

    def num_shards(self, writer: CacheWriter) -> int:
        """How many shards `take` looks at."""
        return sum(1 for _ in self._shards(writer))

    def _shards(self, writer: CacheWriter) -> Iterator[tuple[str, int, int, bool]]:
        """The cache's shards that are of use, by array, block and view; whether as a whole."""
        for name, grid in writer.grids.items():
            there = grid_of(self.cache, name)
            if there is None:
                continue
            common = common_blocks(grid, there, self.rows)
            left = self.rows.copy()
            for block in common:
                left[grid.block_rows(block).start : grid.block_rows(block).stop] = -1
            used = np.unique(left[left >= 0] // there.shard_rows) if self.has_values else ()
            for view in range(self.num_common_views):
                yield from ((name, block, view, True) for block in common)
                yield from ((name, int(b), view, False) for b in used if b not in common)

    def mask(self, rows: Int64[np.ndarray, " R"]) -> Bool[np.ndarray, "R V"]:
        """Which values are known and need not be computed."""
        known = np.zeros((len(rows), self.num_views), np.bool_)
        if self.has_values:
            known[:, : self.num_common_views] = (self.rows[rows] >= 0)[:, None]
            known[self.measured[rows], 0] = False
        return known

    def _witnesses(self, rows: Int64[np.ndarray, " R"]) -> Iterator[tuple[int, Witness]]:
        """The cache's witnesses of these rows' views, each with its place in `rows`."""
        there = self.rows[rows]
        for i in np.flatnonzero(np.isin(there, list(self._witnesses_by_row))).tolist():
            for witness in self._witnesses_by_row[int(there[i])]:
                if witness.view < self.num_common_views:
                    yield i, witness

    @cached_property
    def _witnesses_by_row(self) -> dict[int, list[Witness]]:
        found: dict[int, list[Witness]] = {}
        for witness in witnesses_from_arrays(self.cache.witness()):
            found.setdefault(witness.row, []).append(witness)
        return found

    @cached_property
    def _why_unreadable(self) -> dict[int, str]:
        return load_unreadable(self.cache.path)
