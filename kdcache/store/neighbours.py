"""The kNN graph of a cache: for each image those that the teacher finds most alike.

Format: FORMAT.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.shapes import Float, Int32
from kdcache.store import plain

NEIGHBOURS = "neighbours"


@dataclass(frozen=True)
class Neighbours:
    """The graph, and how it was made."""

    index: Int32[np.ndarray, "N K"]
    """Rows of the cache, the most alike first, never the image itself; -1 in the rows of images
    that could not be read, which are nobody's neighbours either."""
    similarity: Float[np.ndarray, "N K"]
    """Their inner products; 0 where there is no neighbour."""
    attributes: Mapping[str, Any]
    """`array`, `k`, `index` (`exact` or `ivf`), `recall`, `views`, `parameters`, `versions`."""


def neighbour_files(neighbours: Neighbours) -> dict[str, bytes]:
    """The files of the group, for `grow_cache`."""
    return {
        f"{NEIGHBOURS}/zarr.json": plain.group_file(neighbours.attributes),
        **plain.array_files(f"{NEIGHBOURS}/index", neighbours.index),
        **plain.array_files(f"{NEIGHBOURS}/similarity", neighbours.similarity),
    }


def describe_graph(attributes: Mapping[str, Any]) -> str:
    """A graph in a few words."""
    how = ", ".join(
        [attributes["index"], *(f"{k} {v}" for k, v in attributes["parameters"].items())]
    )
    return (
        f"{attributes['k']} neighbours by `{attributes['array']}` of {attributes['views']} views,"
        f" {how}"
    )
