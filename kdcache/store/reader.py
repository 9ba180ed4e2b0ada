"""Reading a cache: opened through its manifest only, then gathered at the speed of memory.

Format: FORMAT.md.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
from kdcache.store.publish import WORK, digest_of
from kdcache.store.quantise import Quantised, Stored, dequantise
from kdcache.store.selection import Copy, Selection, files_here, load_copy
from kdcache.store.shards import ArrayReader

PULLED = f"{WORK}/pulled.json"
"""The manifest of the cache that is being fetched into a folder, until all of it is there."""


@runtime_checkable
class Source(Protocol):
    """Brings the values of a cache of which the folder holds the small files only."""

    def hold(self, array: str, view: int) -> AbstractContextManager[None]:
        """Within it, the shards of a view are in the folder."""
        ...

    def expect(self, array: str, view: int) -> None:
        """A view will be asked for soon."""
        ...


class Cache:
    """A finished cache, to read; made by `open_cache`.

    It can be pickled and forked: the copy opens the same path, and refuses another cache there
    unless that has grown from this one.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        identity: str,
        copy: Copy | None = None,
        source: Source | None = None,
    ) -> None:
        """Read the cache in a folder.

        Args:
            copy: says which part of it is here; None for all.
            source: brings shards when they are asked for; None where they are here.
        """
        self.path = root
        self.manifest = manifest
        self.identity = identity
        """SHA-256 of the manifest, in hexadecimal: the name of exactly these bytes."""
        self.copy = copy
        self._source = source
        here = copy.selection if copy is not None else None
        self._arrays = {
            name: ArrayReader(root, name, here)
            for name in array_names(manifest.files)
            if here is None or name in here.arrays
        }
        self._sides = {
            name: [ArrayReader(root, f"{name}_{side}", here) for side in SIDES]
            for name, array in self._arrays.items()
            if array.spec.is_quantised
        }
        self.recipe: dict[str, Any] = json.loads(_recipe(root, manifest))

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def num_views(self) -> int:
        """The views that are here: of a copy of a part, the first ones."""
        return self.manifest.num_views if self.copy is None else self.copy.selection.num_views

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """The arrays `[N, V, D]` that are here, by name."""
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
        """Which images could be read, and are here; the rows of the others hold zeros."""
        readable = plain.load_array(self.path, "index/readable")
        if self.copy is not None:
            readable = np.logical_and(readable, self.copy.selection.mask(self.num_rows))
        return readable

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
        if array in self._sides:
            return dequantise(self.stored_slab(array, view), out)
        self._require_here(array, view)
        with self._held(array, np.array([view])):
            return self._arrays[array].slab(view, out)

    def stored_slab(self, array: str, view: int) -> Stored:
        """As `slab`, but an array of uint8 as it lies on disk."""
        self._require_here(array, view)
        with self._held(array, np.array([view])):
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
            CacheMismatch: a row or a view is not in this copy of a part.
        """
        return dequantise(self.stored(array, rows, views))

    def stored(
        self, array: str, rows: Int[np.ndarray, " B"], views: Int[np.ndarray, " B"]
    ) -> Stored:
        """As `rows`, but an array of uint8 as it lies on disk.

        Raises:
            DataError, CacheMismatch: as for `rows`.
        """
        self._require_here(array, int(views.max(initial=0)), rows)
        if not self.readable[rows].all():
            row = int(rows[~self.readable[rows]][0])
            raise DataError(
                f"row {row} (`{self.paths[row]}`) has no targets: its image could not be read",
                hint="leave out the rows where `cache.readable` is False",
            )
        with self._held(array, views):
            values = self._arrays[array].rows(rows, views)
            if array not in self._sides:
                return values
            return Quantised(values, *(side.rows(rows, views) for side in self._sides[array]))

    def expect(self, array: str, view: int) -> None:
        """A view will be asked for soon: where shards are far away, they are fetched meanwhile."""
        if self._source is not None:
            self._source.expect(array, view)

    def pull_hint(self, wanted: Selection) -> str:
        """How to get what this copy of a part lacks."""
        assert self.copy is not None
        options = self.copy.selection.joined(wanted).options()
        return f"fetch more of the cache: kdcache pull {self.copy.source} {self.path} {options}"

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

    def graph_attributes(self) -> dict[str, Any] | None:
        """How the kNN graph was made, if there is one."""
        return plain.load_attributes(self.path, NEIGHBOURS) if self._holds(NEIGHBOURS) else None

    def statistics(self, array: str) -> dict[str, Float[np.ndarray, " D"]]:
        """`mean` and `variance` of each dimension, over readable rows and all views."""
        return self._load_group(f"statistics/{array}")

    def fidelity(self) -> dict[str, dict[str, Any]]:
        """What quantisation keeps, by array, as `describe_fidelity` words it; nothing of floats."""
        return plain.load_attributes(self.path, FIDELITY) if self._holds(FIDELITY) else {}

    def witness(self) -> dict[str, np.ndarray]:
        """What extraction kept so that views can be compared with those the teacher saw."""
        return self._load_group("witness")

    @contextmanager
    def _held(self, array: str, views: Int[np.ndarray, " B"]) -> Iterator[None]:
        with ExitStack() as stack:
            if self._source is not None:
                for view in np.unique(views).tolist():
                    stack.enter_context(self._source.hold(array, view))
            yield

    def _require_here(
        self, array: str, view: int, rows: Int[np.ndarray, " B"] | None = None
    ) -> None:
        """Refuse to give what the cache has, and this copy of a part of it has not."""
        if self.copy is None:
            return
        here = self.copy.selection
        absent = None if rows is None else rows[~here.mask(self.num_rows)[rows]]
        wanted = here.rows
        if absent is not None and len(absent):
            what = f"row {absent[0]}"
            wanted = ((int(absent.min()), int(absent.max()) + 1),)
        elif array not in here.arrays or here.num_views <= view < self.manifest.num_views:
            what = f"view {view} of `{array}`"
        else:
            return
        raise CacheMismatch(
            f"`{self.path}` is a copy of a part of its cache, in which {what} is not",
            hint=self.pull_hint(Selection((array,), view + 1, wanted)),
        )

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
    require_sizes(root, files_here(root, manifest.files))
    return Cache(root, manifest, identity, load_copy(root))


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
    if (root / PULLED).is_file():
        return CacheUnfinished(
            f"`{root}` is unfinished: a `kdcache pull` into it has not come to its end",
            hint="run the same pull command: it resumes",
        )
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
