"""Writing a cache: pieces come in any order, from any number of processes, and become shards.

A cache under way can be killed at any moment. The same call of `create_cache` continues it, and
its final bytes equal those of a cache that was never interrupted.

Format: FORMAT.md.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kdcache.errors import CacheCorrupt, CacheMismatch, CacheUnfinished, DataError
from kdcache.files import canonical_json, leaves
from kdcache.progress import Progress, silent
from kdcache.shapes import Float
from kdcache.store import layout, plain
from kdcache.store.fidelity import fidelity_files, sample_rows
from kdcache.store.group import GROUP, format_of, make_group
from kdcache.store.head import head_files
from kdcache.store.index import RowIndex, index_files, load_unreadable, readable_files
from kdcache.store.layout import ArraySpec, Grid
from kdcache.store.manifest import MANIFEST, RECIPE, Manifest
from kdcache.store.moments import statistics_files
from kdcache.store.pieces import ALARM, BEGUN, Note, Pieces
from kdcache.store.publish import WORK, FileDigest, adopt, digest_of, publish, tidy
from kdcache.store.quantise import Quantised, Taken, quantise

_SEAL_BYTES = 256 << 20  # how much of a block is gathered at once; pieces are opened once for each
_SEAL_TRIES = 10  # each is lost to another process that let go of a piece meanwhile
OTHER_OUT = "choose another --out, or go back to the settings that the cache was begun with"


class CacheWriter:
    """A cache under way; made by `create_cache`."""

    def __init__(
        self,
        root: Path,
        targets: Mapping[str, Grid],
        index: RowIndex,
        first_files: Mapping[str, FileDigest],
        made_with: Mapping[str, str],
    ) -> None:
        self.path = root
        self._made_with = made_with
        self._targets = targets
        self._grids = _parts(targets)
        self._index = index
        self._first_files = first_files
        self._pieces = Pieces(root)
        self._adopted: set[tuple[str, int, int]] = set()
        any_grid = next(iter(targets.values()))
        self.num_rows = any_grid.num_rows
        self.num_views = any_grid.num_views
        self.num_pieces = -(-self.num_rows // layout.PIECE_ROWS)
        self.num_shards = sum(grid.num_blocks * grid.num_views for grid in self._grids.values())
        quantised = any(grid.spec.is_quantised for grid in targets.values())
        self._sample = sample_rows(index.image_ids) if quantised else np.empty(0, np.int64)

    @property
    def done(self) -> bool:
        """Whether the cache is finished, so that there is nothing to write."""
        return (self.path / MANIFEST).exists()

    def missing(self) -> list[int]:
        """The pieces that are still to be computed, ascending."""
        if self.done:
            return []
        finished = self._pieces.finished()
        return [piece for piece in range(self.num_pieces) if piece not in finished]

    def has(self, piece: int) -> bool:
        """Whether a piece need not be computed any more."""
        return self._pieces.has(piece) or self.done

    def piece_rows(self, piece: int) -> range:
        start = piece * layout.PIECE_ROWS
        return range(start, min(start + layout.PIECE_ROWS, self.num_rows))

    def put_piece(
        self,
        piece: int,
        values: Mapping[str, Float[np.ndarray, "P V _"]],
        unreadable: Mapping[int, str],
        witness: Mapping[str, np.ndarray],
        taken: Mapping[str, Taken] = MappingProxyType({}),
    ) -> None:
        """Keep a piece for good, and seal the shards that it completes.

        A piece that is there with the same values is left as it is, and so is a finished cache,
        which another process may have made of a piece that both of them computed.

        Args:
            values: for each array the rows of `piece_rows(piece)`; what the rows of unreadable
                images hold is ignored, and zeros are stored; so is what adopted views hold.
            unreadable: why rows could not be read, by row number in the cache.
            witness: arrays of which the seal joins all pieces along the first axis; every piece
                gives the same names, or none.
            taken: of arrays of uint8, what stands in the place of some values: to quantise what
                these rows mean could give other bytes.

        Raises:
            DataError: a value is not finite, or does not fit into the array's type.
            CacheMismatch: the piece is there with other values.
        """
        if self.done:
            return
        rows = self.piece_rows(piece)
        assert values.keys() == self._targets.keys()
        assert all(row in rows for row in unreadable)
        sampled = [row - rows.start for row in self._sampled(rows) if row not in unreadable]
        stored: dict[str, np.ndarray] = {}
        originals: dict[str, np.ndarray] = {}
        for name, grid in self._targets.items():
            kept = self._storable(grid.spec, values[name], rows, unreadable)
            if not grid.spec.is_quantised:
                stored[name] = kept
                continue
            originals[name] = kept[sampled, 0]
            quantised = quantise(kept)
            if name in taken:
                taken[name].put(quantised)
            stored |= _by_part(grid, quantised)
        adopted = {
            (name, view)
            for name in self._grids
            for view in {*range(self.num_views)} - {*self.wanted_views(name, piece)}
        }
        note = Note(unreadable, witness, originals)
        self._pieces.put(piece, stored, note, without=adopted)
        self.seal_shards_around(rows)

    @property
    def grids(self) -> Mapping[str, Grid]:
        """How each array on disk is cut, by name."""
        return self._grids

    def wanted_views(self, name: str, piece: int) -> list[int]:
        """The views of an array whose values `put_piece` keeps: those that are not adopted."""
        grid = self._grids[name]
        return self._kept_views(grid, self.piece_rows(piece).start // grid.shard_rows)

    def adopt(self, name: str, block: int, view: int, source: Path, promised: FileDigest) -> None:
        """Take a shard of another cache for one of this: see `adopt`.

        It comes before the first piece; whoever goes on with this cache must do the same.

        Args:
            promised: size and digest of `source`, which the caller has checked.
        """
        grid = self._grids[name]
        self._adopted.add((name, block, view))
        if self.done or self._has_receipt(grid, block, view):
            return
        assert promised.num_bytes == grid.shard_bytes(block)
        adopt(self.path, grid.shard_file(block, view), source, promised, hint=ALARM)
        receipt = make_receipt(grid, block, view, promised, self._made_with)
        publish(self.path, grid.receipt_file(block, view), receipt, hint=ALARM)

    def missing_bytes(self) -> int:
        """What is still to be written, as it will lie on the disk.

        Until a block is whole in every array, its pieces lie beside the shards.
        """
        if self.done:
            return 0
        rows = min(self.num_rows, max(grid.shard_rows for grid in self._grids.values()))
        return sum(
            rows
            * grid.row_bytes
            * max(len(self._kept_views(grid, block)) for block in range(grid.num_blocks))
            for grid in self._grids.values()
        ) + sum(
            grid.shard_bytes(block)
            for grid in self._grids.values()
            for block in range(grid.num_blocks)
            for view in range(self.num_views)
            if not self._has_receipt(grid, block, view)
        )

    def unreadable(self) -> dict[int, str]:
        """Rows whose images could not be read, so far, and why."""
        if self.done:
            return load_unreadable(self.path)
        notes = (self._pieces.note(piece) for piece in sorted(self._pieces.finished()))
        return {row: reason for note in notes for row, reason in note.unreadable.items()}

    def seal(self, progress: Progress = silent) -> Manifest:
        """Finish the cache: index, statistics, witness, fidelity and, last, the manifest.

        Args:
            progress: counts shards, `num_shards` in all.

        Raises:
            CacheUnfinished: pieces are missing.
            DataError: not one image could be read.
        """
        try:
            manifest = self._finished() or self._seal(progress)
        except FileNotFoundError:
            # Another process may have finished the cache under our hands, and tidied up.
            if (finished := self._finished()) is None:
                raise
            manifest = finished
        tidy(self.path)
        return manifest

    def _finished(self) -> Manifest | None:
        path = self.path / MANIFEST
        return Manifest.from_bytes(path.read_bytes()) if path.exists() else None

    def _seal(self, progress: Progress) -> Manifest:
        missing = self.missing()
        if missing and not self.done:
            raise CacheUnfinished(
                f"{len(missing)} of {self.num_pieces} pieces of `{self.path}` are missing",
                hint="run the same extract command: it resumes",
            )
        self.seal_shards_around(range(self.num_rows))
        notes = [self._pieces.note(piece) for piece in range(self.num_pieces)]
        unreadable = {row: why for note in notes for row, why in note.unreadable.items()}
        readable = np.ones(self.num_rows, np.bool_)
        readable[list(unreadable)] = False
        if not readable.any():
            raise DataError(
                f"not one of {self.num_rows} images could be read; the first: {unreadable[0]}",
                hint="check that --data names a folder of images",
            )
        small = readable_files(self._index, readable, unreadable) | _witness_files(notes)
        small |= fidelity_files(_joined_originals(notes))
        for grid in self._targets.values():
            small |= statistics_files(self.path, grid, readable, progress)
        files = {**self._first_files, **self._shard_digests(), **self._publish(small)}
        self._publish({GROUP: make_group(self.path, files)})
        manifest = Manifest(
            recipe=files[RECIPE].sha256,
            num_rows=self.num_rows,
            num_views=self.num_views,
            num_readable=int(readable.sum()),
            files=dict(sorted(files.items())),
            versions=self._made_with,
        )
        self._publish({MANIFEST: manifest.to_bytes()})
        return manifest

    def _publish(self, files: Mapping[str, bytes]) -> dict[str, FileDigest]:
        return {name: publish(self.path, name, data, hint=ALARM) for name, data in files.items()}

    def _storable(
        self,
        spec: ArraySpec,
        values: Float[np.ndarray, "P V D"],
        rows: range,
        unreadable: Mapping[int, str],
    ) -> Float[np.ndarray, "P V D"]:
        """The values as a reader will get them, but for quantisation, or the error that says which
        one cannot be stored."""
        empty = [row - rows.start for row in unreadable]
        assert values.shape == (len(rows), self.num_views, spec.dim)
        with np.errstate(over="ignore"):
            stored = values.astype(spec.value_dtype)
        stored[empty] = 0
        if -spec.largest <= stored.min() and stored.max() <= spec.largest:  # never, with a NaN
            return stored
        row, view, dim = np.argwhere(~(np.abs(stored) <= spec.largest))[0].tolist()
        value = float(values[row, view, dim])
        path = self._index.paths[rows.start + row]
        where = f"`{spec.name}` of row {rows.start + row} (`{path}`), view {view}"
        if math.isfinite(value):
            raise DataError(
                f"{where} holds `{value:g}`; {spec.dtype} ends at {spec.largest:g}",
                hint="--dtype float32",
            )
        raise DataError(
            f"the teacher gave `{value}` in {where}; only finite numbers can be targets",
            hint="check the teacher's weights, or run it in float32",
        )

    def seal_shards_around(self, rows: range) -> None:
        """Seal each block that touches `rows` and is whole, and let go of pieces in such blocks."""
        for _ in range(_SEAL_TRIES):
            try:
                self._seal_whole_blocks(rows)
                return
            except FileNotFoundError as error:
                # Another process seals the same block and is ahead of us: it has let go of a
                # piece that we were about to read. What it sealed, we find sealed now.
                gone = error
        raise CacheCorrupt(
            f"`{gone.filename}` is needed to seal `{self.path}` and is gone, without a shard that "
            "holds what was in it",
            hint=f"delete `{self.path}` and extract anew",
        ) from gone

    def _seal_whole_blocks(self, rows: range) -> None:
        blocks = [
            (grid, block)
            for grid in self._grids.values()
            for block in self._blocks_of(grid, rows)
            if self._is_whole(grid, block)
        ]
        for grid, block in blocks:
            self._seal_block(grid, block)
        for piece in sorted({piece for grid, block in blocks for piece in self._in(grid, block)}):
            self._let_go(piece)

    def _seal_block(self, grid: Grid, block: int) -> None:
        views = [view for view in range(self.num_views) if not self._has_receipt(grid, block, view)]
        group = max(1, _SEAL_BYTES // (grid.stored_rows(block) * grid.row_bytes))
        for start in range(0, len(views), group):
            self._seal_views(grid, block, views[start : start + group])

    def _seal_views(self, grid: Grid, block: int, views: list[int]) -> None:
        shape = (len(views), grid.stored_rows(block), *grid.row_shape)
        values = np.zeros(shape, grid.spec.numpy_dtype)
        first = grid.block_rows(block).start
        for piece in self._in(grid, block):
            rows = self.piece_rows(piece)
            place = slice(rows.start - first, rows.stop - first)
            gathered = self._pieces.gather(piece, grid.spec.name, views)
            for target, part in zip(values, gathered, strict=True):
                target[place] = part
        for view, shard in zip(views, values, strict=True):
            name = grid.shard_file(block, view)
            digest = publish(self.path, name, shard.data, grid.tail(block), hint=ALARM)
            receipt = make_receipt(grid, block, view, digest, self._made_with)
            publish(self.path, grid.receipt_file(block, view), receipt, hint=ALARM)

    def _kept_views(self, grid: Grid, block: int) -> list[int]:
        """The views of a block that are made of pieces."""
        return [
            view
            for view in range(self.num_views)
            if (grid.spec.name, block, view) not in self._adopted
        ]

    def _let_go(self, piece: int) -> None:
        rows = self.piece_rows(piece)
        if all(
            self._has_receipt(grid, block, view)
            for grid in self._grids.values()
            for block in self._blocks_of(grid, rows)
            for view in range(self.num_views)
        ):
            self._pieces.shrink(piece)

    def _has_receipt(self, grid: Grid, block: int, view: int) -> bool:
        return (self.path / grid.receipt_file(block, view)).exists()

    def _is_whole(self, grid: Grid, block: int) -> bool:
        return all(self._pieces.has(piece) for piece in self._in(grid, block))

    def _in(self, grid: Grid, block: int) -> range:
        return self._pieces_of(grid.block_rows(block))

    def _pieces_of(self, rows: range) -> range:
        return range(rows.start // layout.PIECE_ROWS, -(-rows.stop // layout.PIECE_ROWS))

    def _blocks_of(self, grid: Grid, rows: range) -> range:
        return range(rows.start // grid.shard_rows, -(-rows.stop // grid.shard_rows))

    def _sampled(self, rows: range) -> list[int]:
        """Those of the rows whose originals tell what quantisation keeps, ascending."""
        first, last = np.searchsorted(self._sample, [rows.start, rows.stop])
        sampled: list[int] = self._sample[first:last].tolist()
        return sampled

    def _shard_digests(self) -> dict[str, FileDigest]:
        """Shards, as their receipts say, and the receipts."""
        digests = {}
        for grid in self._grids.values():
            for block in range(grid.num_blocks):
                for view in range(grid.num_views):
                    name = grid.receipt_file(block, view)
                    data = (self.path / name).read_bytes()
                    receipt = json.loads(data)
                    digests[name] = digest_of(data)
                    digests[grid.shard_file(block, view)] = FileDigest(
                        receipt["bytes"], receipt["sha256"]
                    )
        return digests


def create_cache(
    path: str | Path,
    *,
    recipe: Mapping[str, Any],
    arrays: Sequence[ArraySpec],
    num_views: int,
    index: RowIndex,
    head: tuple[list[dict[str, Any]], Mapping[str, np.ndarray]] | None = None,
    made_with: Mapping[str, str],
) -> CacheWriter:
    """Begin a cache, or continue the one that was begun with the same recipe.

    Args:
        recipe: all that decides the values, as JSON; written verbatim, and compared on resuming.
        head: the teacher's projection head, as `ProjectionHead.layers` and `.to_arrays()`.
        made_with: versions, and the kind of device: what may decide last bits. Recorded in the
            manifest, and the same from the first piece to the last.

    Raises:
        CacheMismatch: the folder holds a cache of another recipe, or one that was begun with
            other versions, or what is no cache.
    """
    root = Path(path)
    num_rows = len(index.paths)
    assert num_rows > 0
    assert num_views > 0
    assert len(index.image_ids) == len(index.labels) == num_rows
    targets = {spec.name: Grid.of(spec, num_rows, num_views) for spec in arrays}
    assert len(targets) == len(arrays) > 0
    assert targets.keys() <= set(layout.ARRAYS)
    metadata = {
        f"{name}/zarr.json": canonical_json(grid.metadata())
        for name, grid in _parts(targets).items()
    }
    # The recipe comes first: by it, a folder is known to be a cache that was begun.
    files = {
        RECIPE: canonical_json(dict(recipe)),
        BEGUN: _begun(format_of(metadata), num_rows, num_views, made_with),
    }
    if _is_finished(root, files[RECIPE]):
        tidy(root)
        return CacheWriter(root, targets, index, {}, made_with)
    _check_begun(root, files[BEGUN])
    (root / WORK).mkdir(parents=True, exist_ok=True)
    files |= metadata | index_files(index) | (head_files(*head) if head is not None else {})
    digests = {name: publish(root, name, data, hint=OTHER_OUT) for name, data in files.items()}
    del digests[BEGUN]
    return CacheWriter(root, targets, index, digests, made_with)


def _is_finished(root: Path, recipe: bytes) -> bool:
    """Whether the folder holds the finished cache of a recipe; anything foreign is refused."""
    names = set(os.listdir(root)) if root.exists() else set()
    if not names <= {WORK} and not (RECIPE in names and names & {WORK, MANIFEST}):
        raise CacheMismatch(
            f"`{root}` is neither empty nor a cache: it holds `{min(names)}`",
            hint="choose another --out",
        )
    if MANIFEST in names:
        Manifest.from_bytes((root / MANIFEST).read_bytes())
    if RECIPE in names and (found := (root / RECIPE).read_bytes()) != recipe:
        changes = differences(json.loads(found), json.loads(recipe))
        raise CacheMismatch(
            f"`{root}` holds a cache with another recipe: {'; '.join(changes)}", hint=OTHER_OUT
        )
    return MANIFEST in names


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two recipes, as lines `key: old -> new` with dotted keys."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        f"{key}: `{before.get(key, 'not set')}` -> `{after.get(key, 'not set')}`"
        for key in sorted(before.keys() | after.keys())
        if key not in before or key not in after or before[key] != after[key]
    ]


def _begun(version: int, num_rows: int, num_views: int, made_with: Mapping[str, str]) -> bytes:
    """What must stay the same from the first piece to the last, besides the recipe."""
    return canonical_json(
        {
            "format": version,
            "rows": num_rows,
            "views": num_views,
            "piece_rows": layout.PIECE_ROWS,
            "versions": dict(made_with),
        }
    )


def _check_begun(root: Path, begun: bytes) -> None:
    """Refuse to go on with other libraries: half of the views would be drawn by each."""
    if not (root / BEGUN).exists() or (found := (root / BEGUN).read_bytes()) == begun:
        return
    changes = differences(json.loads(found), json.loads(begun))
    raise CacheMismatch(
        f"`{root}` was begun otherwise: {'; '.join(changes)}",
        hint="go on with the versions and settings it was begun with, or choose another --out",
    )


def _parts(targets: Mapping[str, Grid]) -> dict[str, Grid]:
    """The arrays on disk, by name."""
    return {part.spec.name: part for grid in targets.values() for part in grid.parts()}


def _by_part(grid: Grid, stored: Quantised) -> dict[str, np.ndarray]:
    """What goes into each array on disk, by name."""
    names = (part.spec.name for part in grid.parts())
    return dict(zip(names, stored.parts(), strict=True))


def _joined_originals(notes: Sequence[Note]) -> dict[str, Float[np.ndarray, "R D"]]:
    """The originals of all pieces that have any, by array, in the order of rows."""
    parts: dict[str, list[np.ndarray]] = {}
    for note in notes:
        for name, rows in note.originals.items():
            parts.setdefault(name, []).append(rows)
    return {name: np.concatenate(rows) for name, rows in sorted(parts.items())}


def _witness_files(notes: Sequence[Note]) -> dict[str, bytes]:
    """The witness of all pieces, joined in the order of rows."""
    parts = [note.witness for note in notes if note.witness]
    assert all(part.keys() == parts[0].keys() for part in parts)
    files = {"witness/zarr.json": plain.group_file({})}
    for name in sorted(parts[0]) if parts else ():
        joined = np.concatenate([part[name] for part in parts])
        files |= plain.array_files(f"witness/{name}", joined)
    return files


def make_receipt(
    grid: Grid, block: int, view: int, shard: FileDigest, made_with: Mapping[str, str]
) -> bytes:
    """The bytes of the receipt of one shard file."""
    rows = grid.block_rows(block)
    return canonical_json(
        {
            "array": grid.spec.name,
            "block": block,
            "view": view,
            "rows": [rows.start, rows.stop],
            "bytes": shard.num_bytes,
            "sha256": shard.sha256,
            "versions": dict(made_with),
        }
    )
