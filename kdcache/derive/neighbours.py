"""The kNN graph of a cache by FAISS: for each image those that the teacher finds most alike.

BINGO bags an image with its neighbours; CompRess and CoSS choose temperatures by them.

Source: Xu et al., "Bag of Instances Aggregation Boosts Self-supervised Distillation", ICLR 2022,
arXiv:2107.01691: k = 5 nearest by the teacher's feature of one centre crop. Here an image is the
mean of all its cached views, which needs no view of its own and is less noisy; vectors are compared
by cosine, as unit vectors at an L2 distance are in BINGO's code.

Shapes: N rows of the cache, R readable rows, K neighbours, D the array's width.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import faiss
import numpy as np

from kdcache.derive.rows import check_array, readable_rows, sample, unit_mean
from kdcache.errors import CacheMismatch, ConfigError
from kdcache.nearest import IvfIndex, search
from kdcache.progress import Bar, Progress
from kdcache.shapes import Float, Int64
from kdcache.store import (
    Cache,
    Neighbours,
    describe_graph,
    grow_cache,
    hint_at_ancestor,
    neighbour_files,
)
from kdcache.versions import library_versions

Index = Literal["exact", "ivf"]

_QUERIES_AT_ONCE = 2048
_RECALL_QUERIES = 1000
_SEED = 0  # of the k-means and of the sample; a graph is not drawn, so nobody needs another

_Search = Callable[
    [Float[np.ndarray, "Q D"], int], tuple[Float[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]
]


@dataclass(frozen=True)
class GraphReport:
    """A cache with its graph."""

    cache: Cache
    graph: Neighbours
    is_new: bool
    total_s: float

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        about = self.graph.attributes
        what = f"{self.cache.path}: {describe_graph(about)}, recall {about['recall']:.4f}"
        if not self.is_new:
            return [f"{what}; it was there, nothing has changed"]
        lines = [f"{what}, of {int(self.cache.readable.sum()):,} images in {self.total_s:.1f} s"]
        if (share := same_label(self.cache, self.graph)) is not None:
            lines.append(f"{share[0]:.1%} of neighbours share the label, {share[1]:.1%} by chance")
        return lines


def run_neighbours(
    cache: Cache, *, k: int, array: str | None, index: Index, nprobe: int, bar: Bar
) -> GraphReport:
    """Add the kNN graph to a cache; where it has this very graph, nothing is done.

    Args:
        array: `feature` or `embedding`; None is the feature where the cache holds it.
        nprobe: lists that `ivf` opens for a query; `exact` has none.

    Raises:
        CacheMismatch: the cache has another graph, or has no such array.
        ConfigError: there are not so many neighbours.
    """
    array = array or ("feature" if "feature" in cache.arrays else "embedding")
    check_array(cache, array)
    num_images = int(cache.readable.sum())
    if not 1 <= k < num_images:
        raise ConfigError(
            f"k is `{k}`, and each of {num_images:,} images has {num_images - 1:,} others",
            hint=f"--k takes a number between 1 and {num_images - 1}",
        )
    asked = {"array": array, "k": k, "index": index, "views": cache.num_views}
    asked["parameters"] = {"nprobe": nprobe, "seed": _SEED} if index == "ivf" else {}
    if (there := cache.neighbours()) is not None:
        _refuse_another(cache, there.attributes, asked)
        return GraphReport(grow_cache(cache, {}), there, is_new=False, total_s=0.0)
    started = time.monotonic()
    graph = build_neighbours(cache, asked, bar)
    grown = grow_cache(cache, neighbour_files(graph))
    return GraphReport(grown, graph, is_new=True, total_s=time.monotonic() - started)


def build_neighbours(cache: Cache, asked: Mapping[str, Any], bar: Bar) -> Neighbours:
    """The graph that was asked for, with its recall over a sample of the images."""
    rows, k = readable_rows(cache), asked["k"]
    with bar("read", total=cache.num_views, unit="views") as progress:
        images = unit_mean(cache, asked["array"], rows, progress=progress).numpy()

    def exact(queries: Float[np.ndarray, "Q D"], count: int) -> Any:
        return search(queries, images, count)

    find: _Search = exact
    recall = 1.0
    if asked["index"] == "ivf":
        find = _ivf(images, asked["parameters"], exact)
    with bar("search", total=len(images), unit="images") as progress:
        similarity, nearest = _others(images, np.arange(len(images)), k, find, progress)
    if asked["index"] == "ivf":
        some = sample(np.arange(len(images)), _RECALL_QUERIES, _SEED)
        with bar("recall", total=len(some), unit="images") as progress:
            _, right = _others(images, some, k, exact, progress)
        found = [np.isin(a, b).mean() for a, b in zip(right, nearest[some], strict=True)]
        recall = float(np.mean(found))
    graph = np.full((cache.num_rows, k), -1, np.int32)
    graph[rows] = rows[nearest]
    cosines = np.zeros((cache.num_rows, k), np.float32)
    cosines[rows] = similarity
    versions = {**library_versions(), "faiss": faiss.__version__}
    return Neighbours(graph, cosines, {**asked, "recall": recall, "versions": versions})


def same_label(cache: Cache, graph: Neighbours) -> tuple[float, float] | None:
    """Share of neighbours that have the image's label, and what chance gives; None unlabelled."""
    labelled = cache.readable & (cache.labels >= 0)
    if not labelled.any():
        return None
    near = cache.labels[graph.index[labelled]]
    counts = np.bincount(cache.labels[labelled])
    same = (near == cache.labels[labelled][:, None])[near >= 0]
    chance = (counts * (counts - 1)).sum() / max(1, counts.sum() * (counts.sum() - 1))
    return float(same.mean()) if same.size else 0.0, float(chance)


def _ivf(images: Float[np.ndarray, "R D"], parameters: dict[str, int], exact: _Search) -> _Search:
    lists = IvfIndex(images, seed=parameters["seed"])

    def find(queries: Float[np.ndarray, "Q D"], count: int) -> Any:
        similarity, nearest = lists.search(queries, count, parameters["nprobe"])
        short = (nearest < 0).any(axis=1)  # the lists that were opened hold too few images
        if short.any():
            similarity[short], nearest[short] = exact(queries[short], count)
        return similarity, nearest

    return find


def _others(
    images: Float[np.ndarray, "R D"],
    rows: Int64[np.ndarray, " Q"],
    k: int,
    find: _Search,
    progress: Progress,
) -> tuple[Float[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
    """The nearest of `rows` among the images, without the image itself."""
    similarity = np.empty((len(rows), k), np.float32)
    nearest = np.empty((len(rows), k), np.int64)
    for start in range(0, len(rows), _QUERIES_AT_ONCE):
        part = rows[start : start + _QUERIES_AT_ONCE]
        cosines, found = find(images[part], k + 1)
        other = found != part[:, None]
        other[other.all(axis=1), -1] = False  # its copies came first; then drop the farthest
        similarity[start : start + len(part)] = cosines[other].reshape(-1, k)
        nearest[start : start + len(part)] = found[other].reshape(-1, k)
        progress(len(part))
    return similarity, nearest


def _refuse_another(cache: Cache, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if any(there[key] != value for key, value in asked.items()):
        raise CacheMismatch(
            f"`{cache.path}` has a graph already: {describe_graph(there)}; asked for:"
            f" {describe_graph(asked)}",
            hint=f"use the one that is there, or take {hint_at_ancestor(cache, 'neighbours')}",
        )
