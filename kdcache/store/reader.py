"""Reading a cache: opened through its manifest only, then gathered at the speed of memory.

Format: FORMAT.md.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound, CacheUnfinished, DataError
from kdcache.shapes import Bool, Float, Int, Int32, UInt8
from kdcache.store import plain
from kdcache.store.fidelity import FIDELITY
from kdcache.store.group import array_names
from kdcache.store.index import load_paths
from kdcache.store.layout import SIDES, ArraySpec
from kdcache.store.manifest import MANIFEST, RECIPE, Manifest, kept_manifest, require_sizes
from kdcache.store.neighbours import NEIGHBOURS, Neighbours
from kdcache.store.pieces import BEGUN, Pieces
from kdcache.store.publish import digest_of
from kdcache.store.quantise import Quantised, Stored, dequantise
from kdcache.store.shards import ArrayReader


class Cache:
    """A finished cache, to read; made by `open_cache`.

    It can be pickled and forked: the copy opens the same path, and refuses another cache there
    unless that has grown from this one.
    """

    def __init__(self, root: Path, manifest: Manifest, identity: str) -> None:
        self.path = root
        self.manifest = manifest
        self.identity = identity
        """SHA-256 of the manifest, in hexadecimal: the name of exactly these bytes."""
        self._arrays = {name: ArrayReader(root, name) for name in array_names(manifest.files)}
        self._sides = {
            name: [ArrayReader(root, f"{name}_{side}") for side in SIDES]
            for name, array in self._arrays.items()
            if array.spec.is_quantised
        }
        self.recipe: dict[str, Any] = json.loads(_recipe(root, manifest))

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def num_views(self) -> int:
        return self.manifest.num_views

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays `[N, V, D]` by name."""
        return {name: array.spec for name, array in self._arrays.items()}

    @property
    def lineage(self) -> list[str]:
        """Its identity, that of the cache it has grown from, and so on: the youngest first."""
        return list(self.history)

    @cached_property
    def history(self) -> dict[str, Manifest]:
        """The manifests it has had, by identity: the youngest first."""
        history = {self.identity: self.manifest}
        parent = self.manifest.parent
        while parent is not None:
            data = (self.path / kept_manifest(parent)).read_bytes()
            if digest_of(data).sha256 != parent:
                raise CacheCorrupt(
                    f"`{self.path / kept_manifest(parent)}` is not the manifest that it is named"
                    " after",
                    hint="fetch the cache again",
                )
            history[parent] = Manifest.from_bytes(data)
            parent = history[parent].parent
        return history

    def require_descent_from(self, identity: str) -> None:
        """Refuse to go on where another cache has taken the place of the one that was used.

        Raises:
            CacheMismatch: this cache neither is that one nor has grown from it.
        """
        if identity not in self.lineage:
            raise CacheMismatch(
                f"`{self.path}` holds the cache `{self.identity}` now, and held `{identity}`",
                hint="a finished cache must not be replaced while it is used: start again",
            )

    @cached_property
    def readable(self) -> Bool[np.ndarray, " N"]:
        """Which images could be read; the rows of the others hold zeros."""
        return plain.load_array(self.path, "index/readable")

    @cached_property
    def image_ids(self) -> UInt8[np.ndarray, "N 16"]:
        return plain.load_array(self.path, "index/image_id")

    @cached_property
    def labels(self) -> Int32[np.ndarray, " N"]:
        return plain.load_array(self.path, "index/label")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(plain.load_attributes(self.path, "index")["classes"])

    @cached_property
    def paths(self) -> list[str]:
        return load_paths(self.path)

    def slab(
        self, array: str, view: int, out: Float[np.ndarray, "N D"] | None = None
    ) -> Float[np.ndarray, "N D"]:
        """All rows of one view, read front to back; unreadable rows are zeros, see `readable`.

        Args:
            out: where to put them; C-contiguous, of the array's number type, float32 for uint8.
        """
        if array not in self._sides:
            return self._arrays[array].slab(view, out)
        return dequantise(self.stored_slab(array, view), out)

    def stored_slab(self, array: str, view: int) -> Stored:
        """As `slab`, but an array of uint8 as it lies on disk."""
        values = self._arrays[array].slab(view)
        if array not in self._sides:
            return values
        return Quantised(values, *(side.slab(view) for side in self._sides[array]))

    def rows(
        self, array: str, rows: Int[np.ndarray, " B"], views: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B D"]:
        """A copy of the given rows, each of its view, in the order asked for.

        Raises:
            DataError: the image of a row could not be read, so there is no target.
        """
        return dequantise(self.stored(array, rows, views))

    def stored(
        self, array: str, rows: Int[np.ndarray, " B"], views: Int[np.ndarray, " B"]
    ) -> Stored:
        """As `rows`, but an array of uint8 as it lies on disk.

        Raises:
            DataError: as for `rows`.
        """
        if not self.readable[rows].all():
            row = int(rows[~self.readable[rows]][0])
            raise DataError(
                f"row {row} (`{self.paths[row]}`) has no targets: its image could not be read",
                hint="leave out the rows where `cache.readable` is False",
            )
        values = self._arrays[array].rows(rows, views)
        if array not in self._sides:
            return values
        return Quantised(values, *(side.rows(rows, views) for side in self._sides[array]))

    def head(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]] | None:
        """The projection head, as `ProjectionHead.from_arrays` takes it; see `head_origin`."""
        if not self._holds("head"):
            return None
        return plain.load_attributes(self.path, "head")["layers"], self._load_group("head")

    def head_origin(self) -> dict[str, Any] | None:
        """Where the head is from: `kind` is `teacher`, or `fitted` beside how it was made."""
        if not self._holds("head"):
            return None
        origin: dict[str, Any] = plain.load_attributes(self.path, "head").get(
            "origin", {"kind": "teacher"}
        )
        return origin

    def neighbours(self) -> Neighbours | None:
        """The kNN graph, if `kdcache neighbours` has added one."""
        if not self._holds(NEIGHBOURS):
            return None
        return Neighbours(
            **self._load_group(NEIGHBOURS),
            attributes=plain.load_attributes(self.path, NEIGHBOURS),
        )

    def statistics(self, array: str) -> dict[str, Float[np.ndarray, " D"]]:
        """`mean` and `variance` of each dimension, over readable rows and all views."""
        return self._load_group(f"statistics/{array}")

    def fidelity(self) -> dict[str, dict[str, Any]]:
        """What quantisation keeps, by array, as `describe_fidelity` words it; nothing of floats."""
        return plain.load_attributes(self.path, FIDELITY) if self._holds(FIDELITY) else {}

    def witness(self) -> dict[str, np.ndarray]:
        """What extraction kept so that views can be compared with those the teacher saw."""
        return self._load_group("witness")

    def _holds(self, group: str) -> bool:
        return f"{group}/zarr.json" in self.manifest.files

    def _load_group(self, group: str) -> dict[str, np.ndarray]:
        """Every array of a group, by name."""
        folders = [
            name.rpartition("/")[0] for name in self.manifest.files if name.endswith("/zarr.json")
        ]
        return {
            folder.rpartition("/")[2]: plain.load_array(self.path, folder)
            for folder in sorted(folders)
            if folder.rpartition("/")[0] == group
        }

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self.path.absolute(), self.identity))


def open_cache(path: str | Path) -> Cache:
    """Open a finished cache.

    Raises:
        CacheNotFound: nothing is there.
        CacheUnfinished: its extraction has not ended.
        CacheError: a newer kdcache made it.
        CacheCorrupt: a file is missing or has another size than promised.
    """
    root = Path(path)
    manifest, identity = read_manifest(root)
    require_sizes(root, manifest)
    return Cache(root, manifest, identity)


def read_manifest(path: str | Path) -> tuple[Manifest, str]:
    """The manifest of a finished cache, and the identity that is its digest.

    Raises:
        CacheNotFound, CacheUnfinished, CacheError: as for `open_cache`.
    """
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise _why_not_open(root)
    data = (root / MANIFEST).read_bytes()
    return Manifest.from_bytes(data), digest_of(data).sha256


def _reopen(path: Path, identity: str) -> Cache:
    cache = open_cache(path)
    cache.require_descent_from(identity)
    return cache


def _why_not_open(root: Path) -> CacheNotFound | CacheUnfinished:
    if not (root / BEGUN).is_file():
        return CacheNotFound(
            f"there is no cache at `{root}`", hint=f"make one: kdcache extract ... --out {root}"
        )
    begun = json.loads((root / BEGUN).read_bytes())
    num_pieces = -(-begun["rows"] // begun["piece_rows"])
    return CacheUnfinished(
        f"`{root}` is unfinished: {len(Pieces(root).finished())} of {num_pieces} pieces are there",
        hint="run the same extract command: it resumes",
    )


def _recipe(root: Path, manifest: Manifest) -> bytes:
    data = (root / RECIPE).read_bytes()
    if digest_of(data).sha256 != manifest.recipe:
        raise CacheCorrupt(
            f"`{root / RECIPE}` is not the recipe that the manifest names",
            hint="fetch the cache again",
        )
    return data
