"""Growth: a finished cache takes new members up, and keeps the name of what it was.

Nothing that a manifest has promised is ever touched. New files come first, then the present
manifest under `manifests/`, then the new manifest in its place, then the group's `zarr.json`. A
process that is killed between two of these leaves the old cache or the new one, and the same call
completes it.

Format: FORMAT.md, "A cache grows".
"""

from collections.abc import Mapping
from dataclasses import replace

from kdcache.errors import CacheMismatch
from kdcache.files import exclusive
from kdcache.store.group import GROUP, array_names, group_is_right, make_group
from kdcache.store.manifest import MANIFEST, MANIFESTS, kept_manifest
from kdcache.store.publish import WORK, digest_of, overwrite, publish, tidy
from kdcache.store.reader import Cache, open_cache
from kdcache.store.selection import Selection


def grow_cache(cache: Cache, files: Mapping[str, bytes]) -> Cache:
    """The cache with these files added; one that has them all is left as it is.

    Args:
        files: by path in the cache, whole groups at a time. With none, a growth that was killed
            before its last step is completed.

    Raises:
        CacheMismatch: the cache promises other bytes under one of these names, is another one by
            now, or is a copy of a part; nothing was changed.
        ConfigError: another process is growing it.
    """
    root = cache.path
    require_whole(cache)
    if _has(cache, files) and _is_settled(cache):
        return cache
    (root / MANIFESTS).mkdir(exist_ok=True)
    with exclusive(root / MANIFESTS):
        present = open_cache(root)  # it may have grown since `cache` was opened
        present.require_descent_from(cache.identity)
        if not _has(present, files):
            _refuse_changes(present, files)
            _remove_leftovers(present, files)
            present = _add(present, files)
        overwrite(root, GROUP, make_group(root, present.manifest.files))
        tidy(root)
    return present


def require_whole(cache: Cache) -> None:
    """Refuse to add to a copy of a part: what is added speaks of the whole cache.

    Raises:
        CacheMismatch: it is such a copy.
    """
    if cache.copy is not None:
        has = array_names(cache.manifest.files)
        everything = Selection(tuple(has), cache.manifest.num_views, ((0, cache.num_rows),))
        raise CacheMismatch(
            f"`{cache.path}` is a copy of a part of its cache, and only a whole one can grow",
            hint=cache.pull_hint(everything),
        )


def hint_at_ancestor(cache: Cache, member: str) -> str:
    """How to get at the cache as it was before it had `member`, a group that was grown."""
    before = next(
        identity
        for identity, manifest in cache.history.items()
        if f"{member}/zarr.json" not in manifest.files
    )
    # Plain `cp` would write through the hard link, and so change the manifest of both.
    return (
        f"a copy from before, sharing the files: cp -al {cache.path} OTHER && cp"
        f" --remove-destination {cache.path / kept_manifest(before)} OTHER/{MANIFEST}"
    )


def _has(cache: Cache, files: Mapping[str, bytes]) -> bool:
    wanted = {name: digest_of(data) for name, data in files.items()}
    return wanted.items() <= cache.manifest.files.items()


def _is_settled(cache: Cache) -> bool:
    """Whether the growth that made this cache came to its end."""
    return not (cache.path / WORK).exists() and group_is_right(cache.path, cache.manifest.files)


def _refuse_changes(cache: Cache, files: Mapping[str, bytes]) -> None:
    promised = cache.manifest.files
    for name in sorted(files.keys() & promised.keys()):
        if (made := digest_of(files[name]).sha256) != promised[name].sha256:
            raise CacheMismatch(
                f"`{cache.path / name}` is promised with the SHA-256 `{promised[name].sha256}`, and"
                f" what was made now has `{made}`: a finished cache grows, but does not change",
                hint=f"make another cache: cp -al {cache.path} OTHER copies it, sharing the files",
            )


def _remove_leftovers(cache: Cache, files: Mapping[str, bytes]) -> None:
    """Clear the groups to come of what a growth that was killed has left: nobody promised it."""
    for group in sorted({name.partition("/")[0] for name in files}):
        for path in sorted((cache.path / group).rglob("*")):
            name = path.relative_to(cache.path).as_posix()
            if path.is_file() and name not in cache.manifest.files:
                path.unlink()


def _add(cache: Cache, files: Mapping[str, bytes]) -> Cache:
    root, old = cache.path, cache.manifest
    additions = {kept_manifest(cache.identity): (root / MANIFEST).read_bytes(), **files}
    hint = f"see what is there: kdcache verify {root}"
    promised = {
        **old.files,
        **{name: publish(root, name, data, hint=hint) for name, data in additions.items()},
    }
    promised.pop(GROUP, None)  # caches that were made before caches could grow list it
    grown = replace(old, files=dict(sorted(promised.items())), parent=cache.identity)
    overwrite(root, MANIFEST, grown.to_bytes())
    return open_cache(root)
