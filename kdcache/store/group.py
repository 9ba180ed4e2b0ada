"""The group's own `zarr.json`: a copy of what its members say, for readers that cannot list.

Everything in it follows from the manifest and the members, so a growing cache makes it anew.

Format: FORMAT.md.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcache.files import canonical_json
from kdcache.store import plain
from kdcache.store.layout import ARRAYS, FORMAT

GROUP = "zarr.json"


def array_names(files: Iterable[str]) -> list[str]:
    """The arrays of targets among the files of a cache, sorted."""
    promised = set(files)
    return sorted(name for name in ARRAYS if f"{name}/zarr.json" in promised)


def make_group(root: Path, files: Iterable[str]) -> bytes:
    """What the `zarr.json` of a cache with these files must be."""
    promised = sorted(files)
    about = {"format": FORMAT, "arrays": array_names(promised)}
    group: dict[str, Any] = json.loads(plain.group_file({"kdcache": about}))
    group["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {
            name.removesuffix("/zarr.json"): json.loads((root / name).read_bytes())
            for name in promised
            if name.endswith("/zarr.json")
        },
    }
    return canonical_json(group)


def group_is_right(root: Path, files: Iterable[str]) -> bool:
    """Whether the `zarr.json` of a cache is there and is what its members make it."""
    path = root / GROUP
    return path.is_file() and path.read_bytes() == make_group(root, files)
