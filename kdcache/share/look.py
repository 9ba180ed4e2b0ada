"""A look at a cache at a place: what made it and what it holds, without its data."""

from pathlib import Path

from kdcache.errors import CacheCorrupt
from kdcache.files import write_atomic
from kdcache.share.history import Published, find_published, load_remote_copy, superseded
from kdcache.share.place import Place
from kdcache.store import Cache, Manifest, digest_of
from kdcache.store.layout import ARRAYS, SIDES

_DESCRIPTIONS = (
    "recipe.json",
    "index/zarr.json",
    "head/zarr.json",
    "neighbours/zarr.json",
    "fidelity/zarr.json",
    *(f"{array}{side}/zarr.json" for array in ARRAYS for side in ("", *(f"_{s}" for s in SIDES))),
)


def look_at(place: Place, identity: str | None, folder: Path) -> Cache:
    """A cache of which only descriptions are here, fetched into `folder` by a few small requests.

    Raises:
        CacheNotFound, CacheUnfinished, CacheCorrupt, PlaceError: as for a pull.
    """
    found = find_published(place, identity)
    parents = [name for name in found.manifest.files if name.startswith("manifests/")]
    for name in (*_DESCRIPTIONS, *parents):
        if name in found.manifest.files:
            write_atomic(folder / name, _read(place, name, found))
    return Cache(folder, found.manifest, found.identity, load_remote_copy(place))


def _read(place: Place, name: str, found: Published) -> bytes:
    """A small file that the manifest promises, wherever it is kept by now."""
    promised = found.manifest.files[name]
    for place_name in (name, superseded(promised)):
        data = place.read(place_name)
        if data is not None and digest_of(data) == promised:
            return data
    raise CacheCorrupt(
        f"`{place.url}/{name}` is not the file that the manifest promises",
        hint="who has the cache should `kdcache verify` it and push it again",
    )


def history_lines(caches: dict[str, Manifest]) -> list[str]:
    """A line for each cache: what it is called, its size, what it has grown from."""
    return [
        f"{identity}  {manifest.num_views} views of {manifest.num_rows:,} images, "
        f"{sum(file.num_bytes for file in manifest.files.values()) / 1e6:,.1f} MB"
        + (f", grown from {manifest.parent[:12]}" if manifest.parent else "")
        for identity, manifest in caches.items()
    ]
