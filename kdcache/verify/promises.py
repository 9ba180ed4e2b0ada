"""What a cache promises, read with the suspicion of one who does not know whether it is whole.

Nothing here is trusted before its digest has been compared, except the manifest, which nobody
promises: it is held against the recipe, the receipts and the arrays instead.
"""

import errno
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdcache.errors import CacheCorrupt
from kdcache.files import canonical_json
from kdcache.store import COPY, ArraySpec, FileDigest, Grid, Manifest, load_copy
from kdcache.store.group import GROUP, array_names, format_of
from kdcache.store.manifest import MANIFEST, MANIFESTS, RECIPE
from kdcache.store.publish import WORK, digest_of
from kdcache.verify.finding import Finding

_DAMAGED = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ESTALE, errno.ENODATA)
_NOT_PROMISED = {MANIFEST, GROUP, COPY, f"{MANIFESTS}/.lock", "README.md"}


def files_to_check(root: Path, manifest: Manifest) -> dict[str, FileDigest]:
    """The files that must lie in this copy of the cache, by their path in it.

    Raises:
        CacheCorrupt: which part of the cache is here is not known.
    """
    inside = {name: file for name, file in manifest.files.items() if _is_inside(name)}
    copy = load_copy(root)
    if copy is None:
        return inside
    rows = {name: grid.shard_rows for name, grid in read_grids(root, manifest).items()}
    if lost := sorted(set(copy.selection.arrays) - set(rows)):
        raise CacheCorrupt(
            f"`{root / lost[0] / 'zarr.json'}` is broken, so it is not known which shards of this"
            " copy of a part are to be here",
            hint=f"pull it again: kdcache pull {copy.source} {root} {copy.selection.options()}",
        )
    return {name: file for name, file in inside.items() if copy.selection.has(name, rows)}


def strangers(root: Path, manifest: Manifest) -> list[str]:
    """Files that lie in the folder and that nobody promises; sorted."""
    there = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in there
        if path.parts[0] != WORK
        and path.as_posix() not in manifest.files
        and path.as_posix() not in _NOT_PROMISED
    )


def load_manifest(data: bytes) -> tuple[Manifest | None, list[Finding]]:
    """The manifest, if these bytes are one, and what is wrong with it in itself.

    Raises:
        CacheError: its format is newer than this code.
    """
    try:
        manifest = Manifest.from_bytes(data)
    except CacheCorrupt as error:
        return None, [_wrong(str(error), "a manifest")]
    if (complaint := _complaint(manifest)) is not None:
        return None, [_wrong(complaint, "a manifest")]
    findings = [
        _wrong(f"it promises `{name}`, which lies outside of the cache", "paths inside")
        for name in manifest.files
        if not _is_inside(name)
    ]
    said = json.loads(data)
    if canonical_json(said) != data:
        findings.append(_wrong("its bytes are not in the one form", "canonical JSON"))
    if said["format"] != (made := format_of(manifest.files)):
        findings.append(_wrong(f"it says format {said['format']}", f"{made}, as its files have it"))
    return manifest, findings


def file_finding(name: str, promised: FileDigest, error: OSError) -> Finding:
    """What is wrong with a file that cannot be read.

    Raises:
        OSError: it is not the file that is wrong, but the rights to it, or something else.
    """
    if isinstance(error, FileNotFoundError):
        return Finding(name, "missing", "is missing", f"{promised.num_bytes} bytes")
    if error.errno not in _DAMAGED:
        raise error
    what = (error.strerror or str(error)).lower()
    return Finding(name, "disk", f"cannot be read: {what}", f"{promised.num_bytes} bytes")


def read_whole(root: Path, manifest: Manifest, name: str) -> bytes | None:
    """The bytes of a promised file; None where it is not what was promised."""
    promised = manifest.files.get(name)
    if promised is None:
        return None
    try:
        data = (root / name).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        file_finding(name, promised, error)  # which raises what is not of the file
        return None
    return data if digest_of(data) == promised else None


def read_recipe(root: Path, manifest: Manifest) -> dict[str, Any]:
    """The recipe, empty where it is not whole."""
    data = read_whole(root, manifest, RECIPE)
    recipe: dict[str, Any] = {} if data is None else json.loads(data)
    return recipe


def read_grids(root: Path, manifest: Manifest) -> dict[str, Grid]:
    """How each array on disk is cut; without those of which neither file nor recipe tells it.

    Where the `zarr.json` is broken, it follows from the recipe, if the digest agrees.
    """
    recipe, copy = read_recipe(root, manifest), load_copy(root)
    grids: dict[str, Grid] = {}
    for name in array_names(manifest.files):
        if copy is not None and name not in copy.selection.arrays:
            continue
        data = read_whole(root, manifest, f"{name}/zarr.json")
        metadata = _expected_metadata(name, recipe, manifest) if data is None else json.loads(data)
        if metadata is not None and (grid := Grid.from_metadata(name, metadata)) is not None:
            grids |= {part.spec.name: part for part in grid.parts()}
    return grids


def _expected_metadata(
    name: str, recipe: Mapping[str, Any], manifest: Manifest
) -> dict[str, Any] | None:
    about = recipe.get("arrays", {}).get(name)
    if about is None:
        return None
    spec = ArraySpec(name, about["dim"], about["dtype"])
    metadata = Grid.of(spec, manifest.num_rows, manifest.num_views).metadata()
    promised = manifest.files[f"{name}/zarr.json"]
    return metadata if digest_of(canonical_json(metadata)) == promised else None


def _complaint(manifest: Manifest) -> str | None:
    """Why these are no values for a manifest, or None."""
    counts = (manifest.num_rows, manifest.num_views)
    if not all(type(count) is int and count > 0 for count in counts):
        return f"it holds `{counts[0]!r}` rows and `{counts[1]!r}` views"
    if type(manifest.num_readable) is not int or not 0 < manifest.num_readable <= counts[0]:
        return f"`{manifest.num_readable!r}` of {counts[0]} rows are readable"
    names = (manifest.recipe, *([] if manifest.parent is None else [manifest.parent]))
    digests = [*names, *(file.sha256 for file in manifest.files.values())]
    if not all(map(_is_digest, digests)):
        wrong = next(digest for digest in digests if not _is_digest(digest))
        return f"`{wrong!r}` is no SHA-256"
    sizes = [file.num_bytes for file in manifest.files.values()]
    if not all(type(size) is int and size >= 0 for size in sizes):
        return "a size is no number of bytes"
    if not all(isinstance(value, str) for value in manifest.versions.values()):
        return "a version is no text"
    return None


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return name != "" and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _wrong(found: str, expected: str) -> Finding:
    return Finding(MANIFEST, "manifest", found, expected)
