"""The size of a cache before it is made: files and bytes, by the arithmetic that the writer uses.

Exact but for two things that only an extraction can tell: which images cannot be read, and the
digits of the figures in `fidelity` (some bytes, of uint8 only).

Format: FORMAT.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.files import canonical_json
from kdcache.shapes import Int64
from kdcache.store import layout, plain
from kdcache.store.fidelity import FIDELITY, measure
from kdcache.store.group import GROUP, group_of
from kdcache.store.head import head_files
from kdcache.store.layout import ArraySpec, Grid
from kdcache.store.manifest import MANIFEST, RECIPE, Manifest
from kdcache.store.publish import FileDigest
from kdcache.store.writer import make_receipt

_DIGEST = "0" * 64
_SAMPLED = 2048
"""Rows that `fidelity` looks at, at most."""

Shape = tuple[tuple[int, ...], np.dtype[Any]]
"""Shape and number type of a small array."""


@dataclass(frozen=True)
class Part:
    """Some files of a cache."""

    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class CacheSize:
    """What a cache will take up."""

    parts: Mapping[str, Part]
    """By the first part of the files' names: `feature`, `index`, `receipts`, `manifest.json` ..."""
    under_way: Part
    """What lies beside it while it is made, at most: pieces of blocks that are not whole, and a
    note for each piece (whose bytes are not counted: some hundred each)."""

    @property
    def whole(self) -> Part:
        """All files of the finished cache."""
        return Part(
            sum(part.num_files for part in self.parts.values()),
            sum(part.num_bytes for part in self.parts.values()),
        )


def cache_size(
    *,
    recipe: Mapping[str, Any],
    arrays: Sequence[ArraySpec],
    num_rows: int,
    num_views: int,
    classes: Sequence[str],
    path_bytes: int,
    head: tuple[list[dict[str, Any]], Mapping[str, np.ndarray]] | None,
    witness: Mapping[str, Shape],
    made_with: Mapping[str, str],
) -> CacheSize:
    """The size of the cache that `create_cache` would begin with these, when it is sealed.

    Args:
        path_bytes: of all paths together.
        witness: the arrays that the pieces' witnesses will join to.
    """
    targets = [Grid.of(spec, num_rows, num_views) for spec in arrays]
    grids = [part for grid in targets for part in grid.parts()]
    small: dict[str, int] = {RECIPE: len(canonical_json(dict(recipe)))}
    members = {f"{grid.spec.name}/zarr.json": canonical_json(grid.metadata()) for grid in grids}
    members |= _groups(targets, classes, num_rows)
    for name, (shape, dtype) in _small_arrays(targets, num_rows, path_bytes, witness).items():
        members[f"{name}/zarr.json"] = canonical_json(plain.array_metadata(shape, dtype))
        if num_bytes := math.prod(shape) * dtype.itemsize:
            small["/".join([name, "c", *("0" for _ in shape)])] = num_bytes
    for name, data in (head_files(*head) if head is not None else {}).items():
        if name.endswith("/zarr.json"):
            members[name] = data
        else:
            small[name] = len(data)
    small["index/unreadable.json"] = len(canonical_json([]))
    small |= {name: len(data) for name, data in members.items()}
    sharded = [_Sharded(grid, made_with) for grid in grids]
    manifest = Manifest(
        recipe=_DIGEST,
        num_rows=num_rows,
        num_views=num_views,
        num_readable=num_rows,
        files={name: FileDigest(num_bytes, _DIGEST) for name, num_bytes in small.items()},
        versions=made_with,
    )
    small[GROUP] = len(group_of(members))
    small[MANIFEST] = len(manifest.to_bytes()) + sum(one.entry_bytes for one in sharded)
    return CacheSize(_by_top(small, sharded), _under_way(grids))


def _groups(targets: Sequence[Grid], classes: Sequence[str], num_rows: int) -> dict[str, bytes]:
    """The `zarr.json` of every group that `make` of each cache writes, but the root's."""
    groups = {
        "index/zarr.json": plain.group_file({"classes": list(classes)}),
        "statistics/zarr.json": plain.group_file({}),
        "witness/zarr.json": plain.group_file({}),
        **{f"statistics/{grid.spec.name}/zarr.json": plain.group_file({}) for grid in targets},
    }
    sampled = min(num_rows, _SAMPLED)
    # Of some rows, for the digits; then with the number of images that it will be of.
    some = measure(np.random.default_rng(0).standard_normal((64, 64), np.float32))
    figures = {
        grid.spec.name: {**some, "images": sampled}
        for grid in targets
        if grid.spec.is_quantised and sampled > 1
    }
    if figures:
        groups[f"{FIDELITY}/zarr.json"] = plain.group_file(figures)
    return groups


def _small_arrays(
    targets: Sequence[Grid], num_rows: int, path_bytes: int, witness: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Shape and type of the plain arrays, by name."""
    moments = ("mean", "variance")
    return {
        "index/image_id": ((num_rows, 16), np.dtype(np.uint8)),
        "index/label": ((num_rows,), np.dtype(np.int32)),
        "index/path_bytes": ((path_bytes,), np.dtype(np.uint8)),
        "index/path_offsets": ((num_rows + 1,), np.dtype(np.int64)),
        "index/readable": ((num_rows,), np.dtype(np.bool_)),
        **{
            f"statistics/{grid.spec.name}/{moment}": ((grid.spec.dim,), np.dtype(np.float64))
            for grid in targets
            for moment in moments
        },
        **{f"witness/{name}": shape for name, shape in witness.items()},
    }


class _Sharded:
    """The shards of one array, their receipts, and their entries in the manifest."""

    def __init__(self, grid: Grid, made_with: Mapping[str, str]) -> None:
        blocks, views = np.arange(grid.num_blocks), np.arange(grid.num_views)
        in_shard = np.full(grid.num_blocks, grid.shard_bytes(0))
        in_shard[-1] = grid.shard_bytes(grid.num_blocks - 1)
        starts = blocks * grid.shard_rows
        stops = np.minimum(starts + grid.shard_rows, grid.num_rows)
        block_digits, view_digits = _digits(blocks), _digits(views)
        # The length of a receipt is that of the first one and the digits of what changes.
        first = FileDigest(int(in_shard[0]), _DIGEST)
        of_block = block_digits + _digits(starts) + _digits(stops) + _digits(in_shard)
        receipt = len(make_receipt(grid, 0, 0, first, made_with)) - int(of_block[0]) - 1
        name_bytes = len(grid.shard_file(0, 0)) + len(grid.receipt_file(0, 0)) - 4
        self.name = grid.spec.name
        self.num_shards = grid.num_blocks * grid.num_views
        self.shard_bytes = int(in_shard.sum()) * grid.num_views
        self.receipt_bytes = self.entry_bytes = 0
        for digits in view_digits.tolist():
            receipts = receipt + of_block + digits
            self.receipt_bytes += int(receipts.sum())
            numbers = _digits(in_shard) + _digits(receipts) + 2 * (block_digits + digits)
            self.entry_bytes += int((numbers + name_bytes + 2 * _ENTRY_BYTES).sum())


def _by_top(small: Mapping[str, int], sharded: Sequence[_Sharded]) -> dict[str, Part]:
    files: dict[str, list[int]] = {}
    for name, num_bytes in small.items():
        files.setdefault(name.partition("/")[0], []).append(num_bytes)
    parts = {top: Part(len(sizes), sum(sizes)) for top, sizes in files.items()}
    for one in sharded:
        parts[one.name] = _plus(parts[one.name], one.num_shards, one.shard_bytes)
        receipts = parts.get("receipts", Part(0, 0))
        parts["receipts"] = _plus(receipts, one.num_shards, one.receipt_bytes)
    return parts


def _under_way(grids: Sequence[Grid]) -> Part:
    """As `CacheWriter.missing_bytes` counts it."""
    rows = min(grids[0].num_rows, max(grid.shard_rows for grid in grids))
    row_bytes = sum(grid.row_bytes * grid.num_views for grid in grids)
    return Part(-(-grids[0].num_rows // layout.PIECE_ROWS), rows * row_bytes)


def _plus(part: Part, num_files: int, num_bytes: int) -> Part:
    return Part(part.num_files + num_files, part.num_bytes + num_bytes)


def _digits(numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many decimal digits each number has."""
    digits = np.ones_like(numbers)
    for power in range(1, len(str(numbers.max()))):
        digits += numbers >= 10**power
    return digits


_ENTRY_BYTES = len('    "": {\n      "bytes": ,\n      "sha256": ""\n    },\n') + len(_DIGEST)
