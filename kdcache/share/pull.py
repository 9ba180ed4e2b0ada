"""Pull: a cache, or a part of it, comes from a place into a folder, and is a cache there.

Each file is checked while it arrives and appears when it is right. The manifest comes last, so that
a folder is a cache or a pull that can go on. A part has the manifest of the whole, and thereby its
identity, and `copy.json` beside it; a wider pull fetches what is missing.

Format: FORMAT.md, "A copy of a part".
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdcache.errors import (
    CacheMismatch,
    CacheUnfinished,
    ConfigError,
    DataError,
)
from kdcache.files import exclusive
from kdcache.progress import Bar, Progress, silent
from kdcache.share.arrival import remove_parts
from kdcache.share.history import (
    Published,
    current,
    fetch_promised,
    find_published,
    load_remote_copy,
    split_identity,
)
from kdcache.share.parallel import each
from kdcache.share.place import Place, open_place
from kdcache.store import (
    COPY,
    GROUP,
    MANIFEST,
    PULLED,
    WORK,
    Copy,
    FileDigest,
    Manifest,
    Selection,
    array_names,
    kept_manifest,
    load_copy,
    load_shard_rows,
    make_group,
    overwrite,
    shard_of,
    tidy,
)


@dataclass(frozen=True)
class Pulled:
    """What a pull did."""

    identity: str
    copy: Copy | None
    """What is here now; None for the whole cache."""
    num_files: int
    """Files that were fetched."""
    num_bytes: int


def pull_cache(
    url: str,
    out: Path,
    *,
    arrays: tuple[str, ...] | None = None,
    num_views: int | None = None,
    rows: tuple[tuple[int, int], ...] | None = None,
    bar: Bar,
) -> Pulled:
    """Fetch what is asked for and is not in `out` yet; all that the place holds, unless told less.

    Args:
        url: of the place; `URL@IDENTITY` for a cache that it held before.
        rows: first row and the one after the last, ascending.

    Raises:
        CacheNotFound, CacheUnfinished: there is no cache at the place, or not yet.
        CacheMismatch: it has not what is asked for, or `out` holds another cache.
        CacheCorrupt: the place has other bytes than the manifest promises.
        PlaceError: the place cannot be asked, or broke off; the same pull goes on.
    """
    address, identity = split_identity(url)
    place = open_place(address)
    wanted = find_published(place, identity)
    chosen = _choose(place, wanted.manifest, arrays, num_views, rows)
    # Pinned, so that more of this very cache can be fetched when the place has moved on.
    source = f"{address}@{wanted.identity}"
    return pull_selection(place, wanted, chosen, out, source=source, bar=bar)


def pull_selection(
    place: Place, wanted: Published, chosen: Selection, out: Path, *, source: str, bar: Bar
) -> Pulled:
    """Fetch a selection, beside what is in `out` already.

    Args:
        source: where to say that the copy is from.
    """
    _check_folder(out, wanted)
    (out / kept_manifest(wanted.identity)).parent.mkdir(parents=True, exist_ok=True)
    with exclusive((out / kept_manifest(wanted.identity)).parent):
        here = _check_folder(out, wanted)
        if (out / MANIFEST).is_file():
            chosen = chosen.joined(_what_is_here(out, wanted.manifest))
        else:
            _begin(out, here, wanted)
        trusted = {**here, **(wanted.manifest.files if (out / PULLED).is_file() else {})}
        now = (current(place) or wanted).manifest
        fetched = _fetch(place, wanted.manifest, now, chosen, out, trusted, bar)
        whole = chosen == everything(wanted.manifest)
        copy = None if whole else Copy(chosen, source)
        _finish(out, wanted, chosen, copy)
    return Pulled(wanted.identity, copy, len(fetched), sum(f.num_bytes for f in fetched.values()))


def everything(manifest: Manifest) -> Selection:
    """The selection that is the whole cache."""
    rows = ((0, manifest.num_rows),)
    return Selection(tuple(array_names(manifest.files)), manifest.num_views, rows)


def _choose(
    place: Place,
    manifest: Manifest,
    arrays: tuple[str, ...] | None,
    num_views: int | None,
    rows: tuple[tuple[int, int], ...] | None,
) -> Selection:
    copy = load_remote_copy(place)
    there = everything(manifest) if copy is None else copy.selection
    chosen = Selection(
        there.arrays if arrays is None else tuple(sorted({*arrays})),
        there.num_views if num_views is None else num_views,
        there.rows if rows is None else Selection((), 0, ()).joined(Selection((), 0, rows)).rows,
    )
    for start, stop in chosen.rows:
        if not 0 <= start < stop <= manifest.num_rows:
            raise ConfigError(
                f"`--rows {start}:{stop}` are no rows of a cache of {manifest.num_rows}",
                hint=f"--rows 0:{manifest.num_rows}",
            )
    if there.joined(chosen) != there:
        hint = there.options() if copy is None else f"pull from where it is from: {copy.source}"
        raise CacheMismatch(
            f"`{place.url}` holds {describe(there, manifest)}; asked for are"
            f" {describe(chosen, manifest)}",
            hint=f"ask for what is there: {hint}" if copy is None else hint,
        )
    return chosen


def describe(selection: Selection, manifest: Manifest) -> str:
    """A selection in words."""
    rows = ", ".join(f"{start}:{stop}" for start, stop in selection.rows)
    return (
        f"{' and '.join(selection.arrays) or 'no array'}, {selection.num_views} of"
        f" {manifest.num_views} views, rows {rows or 'none'} of {manifest.num_rows}"
    )


def _check_folder(out: Path, wanted: Published) -> Mapping[str, FileDigest]:
    """What the manifest in `out`, of a cache or of a pull under way, promises; nothing if new."""
    if (out / MANIFEST).is_file():
        here = Manifest.from_bytes((out / MANIFEST).read_bytes()).files
        kept = {name: file for name, file in here.items() if name != GROUP}
        if not kept.items() <= wanted.manifest.files.items():
            raise CacheMismatch(
                f"`{out}` holds another cache than `{wanted.identity}`, which is to be pulled",
                hint="pull into another folder",
            )
        return kept
    if (out / PULLED).is_file():
        return Manifest.from_bytes((out / PULLED).read_bytes()).files
    if (out / WORK).exists() and not (out / "manifests").exists():
        raise CacheUnfinished(
            f"`{out}` is an extraction under way", hint="pull into another folder"
        )
    # A pull that was killed before it could say what was coming leaves these two.
    if out.exists() and any(path.name not in ("manifests", WORK) for path in out.iterdir()):
        raise ConfigError(f"`{out}` is not empty and no cache", hint="pull into another folder")
    return {}


def _what_is_here(out: Path, manifest: Manifest) -> Selection:
    copy = load_copy(out)
    return everything(manifest) if copy is None else copy.selection


def _begin(out: Path, here: Mapping[str, FileDigest], wanted: Published) -> None:
    """Say what is coming; what is left of a pull of another cache goes first."""
    for name, digest in here.items():
        if wanted.manifest.files.get(name) != digest:
            (out / name).unlink(missing_ok=True)
    overwrite(out, PULLED, wanted.data)


def _fetch(
    place: Place,
    manifest: Manifest,
    now: Manifest,
    chosen: Selection,
    out: Path,
    trusted: Mapping[str, FileDigest],
    bar: Bar,
) -> dict[str, FileDigest]:
    """Bring the files of a selection that are not here; returns them."""
    bring = partial(_bring, place, manifest, now, out)
    maps = [f"{array}/zarr.json" for array in chosen.arrays]
    each([name for name in maps if not _is_here(out, name, manifest, trusted)], bring, silent)
    shard_rows = load_shard_rows(out, chosen.arrays)
    missing = {
        name: digest
        for name, digest in manifest.files.items()
        if chosen.has(name, shard_rows) and not _is_here(out, name, manifest, trusted)
    }
    total = sum(file.num_bytes for file in missing.values())
    _check_room(out, total)
    if missing:
        with bar("pull", total=total, unit="B") as progress:
            # Small ones first; of each kind in the order of the manifest.
            each(sorted(missing, key=lambda name: shard_of(name) is not None), bring, progress)
    return missing


def _bring(
    place: Place, manifest: Manifest, now: Manifest, out: Path, name: str, progress: Progress
) -> None:
    fetch_promised(place, name, out / name, manifest.files[name], now, progress)


def _is_here(out: Path, name: str, manifest: Manifest, trusted: Mapping[str, FileDigest]) -> bool:
    """Whether a file that came when its manifest was known is there; then it was checked."""
    digest = manifest.files[name]
    path = out / name
    return (
        trusted.get(name) == digest and path.is_file() and path.stat().st_size == digest.num_bytes
    )


def _check_room(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"`{out}` needs {needed / 1e6:,.1f} MB more, its disk has {free / 1e6:,.1f} MB free",
            hint="free some space, or pull less: --views, --arrays, --rows; what has come is kept",
        )


def _finish(out: Path, wanted: Published, chosen: Selection, copy: Copy | None) -> None:
    """Make a cache of the folder, now that all files are there."""
    if GROUP not in wanted.manifest.files:
        shard_rows = load_shard_rows(out, chosen.arrays)
        here = [name for name in wanted.manifest.files if chosen.has(name, shard_rows)]
        overwrite(out, GROUP, make_group(out, here))
    if copy is not None:
        overwrite(out, COPY, copy.to_bytes())
    else:
        (out / COPY).unlink(missing_ok=True)
    if not (out / MANIFEST).is_file() or (out / MANIFEST).read_bytes() != wanted.data:
        overwrite(out, MANIFEST, wanted.data)
    remove_parts(out)
    tidy(out)
