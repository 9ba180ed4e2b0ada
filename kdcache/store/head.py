"""A projection head as it lies in a cache: a description, arrays, and where it is from.

Format: FORMAT.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcache.store import plain


def head_files(
    layers: Sequence[Mapping[str, Any]],
    arrays: Mapping[str, np.ndarray],
    origin: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The files of the group, of what `ProjectionHead.layers` and `.to_arrays()` give.

    Args:
        origin: how the head was fitted; None for the teacher's own.
    """
    about: dict[str, Any] = {"layers": list(layers)}
    if origin is not None:
        about["origin"] = dict(origin)
    files = {"head/zarr.json": plain.group_file(about)}
    for name, values in arrays.items():
        files |= plain.array_files(f"head/{name}", values)
    return files


def describe_head(origin: Mapping[str, Any]) -> str:
    """Where a head is from, in a few words."""
    if origin["kind"] == "teacher":
        return "the teacher's own head"
    dim = origin["settings"]["dim"]
    return f"a head of {dim} numbers fitted by `{origin['method']}`, seed {origin['seed']}"
