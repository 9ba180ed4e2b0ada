"""The group's own `zarr.json`: a copy of what its members say, for readers that cannot list.

Everything in it follows from the manifest and the members, so a growing cache makes it anew.

Format: FORMAT.md.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcache.files import canonical_json
from kdcache.store import plain
from kdcache.store.layout import ARRAYS, SIDES

GROUP = "zarr.json"


def array_names(files: Iterable[str]) -> list[str]:
    """The arrays of targets among the files of a cache, sorted."""
    promised = set(files)
    return sorted(name for name in ARRAYS if f"{name}/zarr.json" in promised)


def format_of(files: Iterable[str]) -> int:
    """The version of FORMAT.md that a cache with these files has.

    A reader of version 1 would take what is quantised for values; all other caches are of
    version 1 still, byte for byte.
    """
    sides = {f"{name}_{side}/zarr.json" for name in ARRAYS for side in SIDES}
    return 1 if sides.isdisjoint(files) else 2


def make_group(root: Path, files: Iterable[str]) -> bytes:
    """What the `zarr.json` of a cache with these files must be."""
    members = (name for name in files if name.endswith("/zarr.json"))
    return group_of({name: (root / name).read_bytes() for name in members})


def group_of(members: Mapping[str, bytes]) -> bytes:
    """The `zarr.json` of a cache whose members' ones are these, by their file names."""
    about = {"format": format_of(members), "arrays": array_names(members)}
    group: dict[str, Any] = json.loads(plain.group_file({"kdcache": about}))
    group["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {
            name.removesuffix("/zarr.json"): json.loads(members[name]) for name in sorted(members)
        },
    }
    return canonical_json(group)


def group_is_right(root: Path, files: Iterable[str]) -> bool:
    """Whether the `zarr.json` of a cache is there and is what its members make it."""
    path = root / GROUP
    return path.is_file() and path.read_bytes() == make_group(root, files)
