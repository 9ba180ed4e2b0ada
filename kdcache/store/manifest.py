"""The manifest: the last file of a cache, which promises every other file with size and digest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import CacheCorrupt, CacheError
from kdcache.files import canonical_json, sha256_of
from kdcache.progress import Progress, silent
from kdcache.store.group import GROUP, format_of, group_is_right
from kdcache.store.layout import FORMAT
from kdcache.store.publish import FileDigest
from kdcache.store.selection import files_here

MANIFEST = "manifest.json"
MANIFESTS = "manifests"
"""The folder of the manifests that a cache had before it grew."""
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Manifest:
    """What a finished cache holds. Nothing in it tells when, where or in what order it was made."""

    recipe: str
    """SHA-256 of `recipe.json`."""
    num_rows: int
    num_views: int
    num_readable: int
    files: Mapping[str, FileDigest]
    """Every file but the manifest and the group's `zarr.json`, by its path in the cache."""
    versions: Mapping[str, str]
    parent: str | None = None
    """The identity of the cache that this one has grown from."""

    def to_bytes(self) -> bytes:
        return canonical_json(
            {
                "format": format_of(self.files),
                "recipe": self.recipe,
                "rows": self.num_rows,
                "views": self.num_views,
                "readable_rows": self.num_readable,
                "files": {
                    name: {"bytes": file.num_bytes, "sha256": file.sha256}
                    for name, file in self.files.items()
                },
                "versions": dict(self.versions),
                "parent": self.parent,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read a manifest.

        Raises:
            CacheError: a newer version of the format.
            CacheCorrupt: these bytes are no manifest.
        """
        try:
            return cls._parse(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheCorrupt(
                f"`{MANIFEST}` is no manifest: {type(error).__name__}: {error}",
                hint="fetch it from another copy: kdcache verify CACHE --repair --from COPY",
            ) from error

    @classmethod
    def _parse(cls, data: bytes) -> "Manifest":
        value = json.loads(data)
        check_format(value["format"])
        return cls(
            recipe=value["recipe"],
            num_rows=value["rows"],
            num_views=value["views"],
            num_readable=value["readable_rows"],
            files={
                name: FileDigest(file["bytes"], file["sha256"])
                for name, file in value["files"].items()
            },
            versions=value["versions"],
            parent=value["parent"],
        )


def kept_manifest(identity: str) -> str:
    """Where a cache that has grown keeps the manifest of what it was."""
    return f"{MANIFESTS}/{identity}.json"


def check_format(version: int) -> None:
    """Refuse a format that this code does not know."""
    if version < 1:
        raise ValueError(f"format {version}")
    if version > FORMAT:
        raise CacheError(
            f"the cache has format `{version}`: it was made by a newer kdcache;"
            f" this one knows formats up to {FORMAT}",
            hint="pip install --upgrade kdcache",
        )


@dataclass(frozen=True)
class Problem:
    """A file that is not what the manifest promises."""

    file: str
    found: str


def size_problems(root: Path, files: Mapping[str, FileDigest]) -> list[Problem]:
    """Files that are missing or have another size than promised; opens none of them."""
    problems = []
    for name, promised in files.items():
        path = root / name
        if not path.is_file():
            problems.append(Problem(name, "is missing"))
        elif (found := path.stat().st_size) != promised.num_bytes:
            problems.append(Problem(name, f"has {found} bytes instead of {promised.num_bytes}"))
    return problems


def check_digests(path: str | Path, progress: Progress = silent) -> list[Problem]:
    """Read every file of a finished cache and return those that differ from the manifest.

    Of a copy of a part, those that are to be here.

    Args:
        progress: counts files.
    """
    root = Path(path)
    manifest = Manifest.from_bytes((root / MANIFEST).read_bytes())
    files = files_here(root, manifest.files)
    problems = size_problems(root, files)
    broken = {problem.file for problem in problems}
    for name, promised in files.items():
        if name not in broken and (found := sha256_of(root / name)) != promised.sha256:
            problems.append(Problem(name, f"has SHA-256 {found} instead of {promised.sha256}"))
        progress(1)
    problems += _group_problems(root, files, broken={problem.file for problem in problems})
    return sorted(problems, key=lambda problem: problem.file)


def _group_problems(root: Path, files: Mapping[str, FileDigest], broken: set[str]) -> list[Problem]:
    """What is wrong with the group's `zarr.json`, which nobody promises, but its members make."""
    if GROUP in files:  # promised, by a cache made before caches could grow
        return []
    if any(name.endswith("/zarr.json") for name in broken):
        return []  # what it should be is not known
    if not (root / GROUP).is_file():
        return [Problem(GROUP, "is missing")]
    if not group_is_right(root, files):
        return [Problem(GROUP, "is not what the `zarr.json` of the members make it")]
    return []


def require_sizes(root: Path, files: Mapping[str, FileDigest]) -> None:
    """Refuse a cache in which a file is missing or has another size than promised."""
    if problems := size_problems(root, files):
        first = problems[0]
        others = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise CacheCorrupt(
            f"`{root / first.file}` {first.found}{others}",
            hint=f"see all of it with `kdcache verify {root}`, or fetch the cache again",
        )


def require_digest(root: Path, manifest: Manifest, name: str) -> None:
    """Refuse a file whose bytes are not those that the manifest promises."""
    if (found := sha256_of(root / name)) != manifest.files[name].sha256:
        raise CacheCorrupt(
            f"`{root / name}` has the SHA-256 `{found}`, and the manifest promises "
            f"`{manifest.files[name].sha256}`",
            hint=f"see all of it with `kdcache verify {root}`, or fetch the cache again",
        )
