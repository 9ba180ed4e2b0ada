"""Nearest rows by inner product: the one place that talks to FAISS.

Everything that asks "which rows are most like these?" asks here: the kNN graph of a cache, the kNN
score of a network, the hard negatives of a queue. On unit rows the inner product is the cosine.

Source: what FAISS does and what it must not be asked, `queue.md` section 1.

Shapes: Q queries, K keys, D dimensions, N nearest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import isqrt
from typing import Any, Literal

import faiss
import numpy as np
import torch
from jaxtyping import Float32

from kdcache.errors import DataError
from kdcache.shapes import Int64

_GPU_MAX_NEAREST = 2048  # faiss::gpu::GPU_MAX_SELECTION_K
_GPU_TILE_BYTES = 1 << 30  # keys and queries on the GPU at a time; they may be larger than it
_GPU_SCRATCH_BYTES = 64 << 20  # FAISS takes 1.5 GiB unless told, beside what torch holds

_MIN_PER_LIST = 39  # faiss::ClusteringParameters::min_points_per_centroid: below it FAISS warns


def search(
    queries: Float32[np.ndarray, "Q D"],
    keys: Float32[np.ndarray, "K D"],
    k: int,
    *,
    device: Literal["cpu", "cuda"] | None = None,
) -> tuple[Float32[np.ndarray, "Q N"], Int64[np.ndarray, "Q N"]]:
    """Inner products with the k nearest keys, and their rows; exact, the nearest first.

    Nothing is built and nothing is kept, so `keys` may change between calls.

    Args:
        device: where to look; None is the GPU where FAISS sees one and k is in its reach.

    Raises:
        DataError: a row is not finite (FAISS would pass over it without a word).
    """
    assert 1 <= k <= len(keys), f"{k} nearest of {len(keys)} keys"
    queries, keys = _finite(queries, "queries"), _finite(keys, "keys")
    if device is None:
        device = "cuda" if k <= _GPU_MAX_NEAREST and gpu_is_there() else "cpu"
    if device == "cuda":
        # knn_gpu without a GPU aborts the process instead of raising.
        assert gpu_is_there()
        assert k <= _GPU_MAX_NEAREST
        similarity, rows = faiss.knn_gpu(
            _gpu_resources(),
            queries,
            keys,
            k,
            metric=faiss.METRIC_INNER_PRODUCT,
            vectorsMemoryLimit=_GPU_TILE_BYTES,
            queriesMemoryLimit=_GPU_TILE_BYTES,
        )
    else:
        with _always_blas():
            similarity, rows = faiss.knn(queries, keys, k, metric=faiss.METRIC_INNER_PRODUCT)
    return similarity, rows


class IvfIndex:
    """Keys sorted into lists by k-means, of which a search opens a few: not exact, much faster.

    A key keeps its slot for good: `replace` overwrites rows of a ring in place. The centroids stay
    where they were, which is right for keys that come from one distribution.
    """

    def __init__(
        self, keys: Float32[np.ndarray, "K D"], *, nlist: int | None = None, seed: int = 0
    ) -> None:
        """Run the k-means and sort all keys in; runs on the CPU.

        Args:
            nlist: number of lists; None is 4 sqrt(K), or less where keys are few.
            seed: of the k-means.

        Raises:
            DataError: a key is not finite.
        """
        keys = _finite(keys, "keys")
        num_keys, dim = keys.shape
        self.nlist = nlist or _default_nlist(num_keys)
        self._coarse = faiss.IndexFlatIP(dim)  # the index points to it without owning it
        self._index: Any = faiss.IndexIVFFlat(
            self._coarse, dim, self.nlist, faiss.METRIC_INNER_PRODUCT
        )
        self._index.cp.seed = seed
        with _always_blas():
            self._index.train(keys)
            self._index.add(keys)
        # An array from slot to place in a list: the map that allows overwriting.
        self._index.set_direct_map_type(faiss.DirectMap.Array)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        """The number of keys."""
        return int(self._index.ntotal)

    def search(
        self, queries: Float32[np.ndarray, "Q D"], k: int, nprobe: int
    ) -> tuple[Float32[np.ndarray, "Q N"], Int64[np.ndarray, "Q N"]]:
        """Inner products and slots of the k nearest keys in the `nprobe` most alike lists.

        Where these hold fewer than k keys, the row ends in slots -1 of similarity -inf.

        Raises:
            DataError: a query is not finite.
        """
        assert 1 <= k <= len(self), f"{k} nearest of {len(self)} keys"
        queries = _finite(queries, "queries")
        how: Any = faiss.SearchParametersIVF()
        how.nprobe = min(nprobe, self.nlist)
        with _always_blas():
            similarity, slots = self._index.search(queries, k, params=how)
        similarity[slots < 0] = -np.inf
        return similarity, slots

    def replace(self, slots: Int64[np.ndarray, " B"], rows: Float32[np.ndarray, "B D"]) -> None:
        """Overwrite the keys in these slots, each named once.

        Raises:
            DataError: a row is not finite.
        """
        assert len(slots) == len(rows) == len(np.unique(slots))
        assert len(slots) == 0 or (slots.min() >= 0 and slots.max() < len(self))
        with _always_blas():
            self._index.update_vectors(np.ascontiguousarray(slots), _finite(rows, "rows"))


def kmeans(
    rows: Float32[np.ndarray, "Q D"], num_clusters: int, *, iterations: int, seed: int
) -> Float32[np.ndarray, "K D"]:
    """Centroids by Lloyd's algorithm with Euclidean distances over all rows; on the CPU.

    Raises:
        DataError: a row is not finite.
    """
    assert 1 <= num_clusters <= len(rows), f"{num_clusters} clusters of {len(rows)} rows"
    rows = _finite(rows, "rows")
    found = faiss.Kmeans(
        rows.shape[1],
        num_clusters,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    with _always_blas():
        found.train(rows)
    assert found.centroids is not None
    return found.centroids


def gpu_is_there() -> bool:
    """Whether both FAISS and torch see a GPU."""
    return faiss.get_num_gpus() > 0 and torch.cuda.is_available()


@cache
def _gpu_resources() -> Any:
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_SCRATCH_BYTES)
    return resources


def _default_nlist(num_keys: int) -> int:
    return max(1, min(4 * isqrt(num_keys), num_keys // _MIN_PER_LIST))


def _finite(rows: Float32[np.ndarray, "Q D"], what: str) -> Float32[np.ndarray, "Q D"]:
    """The rows, laid out as FAISS reads them."""
    # A product with ones reads the rows once; only where it is not finite are they looked at again.
    with np.errstate(all="ignore"):
        sums = rows @ np.ones(rows.shape[1], dtype=np.float32)
    if not np.isfinite(sums).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(rows)} {what} are not finite, the first is row `{bad[0]}`: a"
                " search expects numbers",
                hint="find where they come from: a student that diverged, or a broken cache"
                " (`kdcache verify CACHE`)",
            )
    return np.ascontiguousarray(rows)


@contextmanager
def _always_blas() -> Iterator[None]:
    # By default FAISS 1.15 scans without BLAS when queries * D < 128,000, which is 7 times slower
    # (measured: 65,536 x 128, 256 queries, 2-core EPYC). The setting is global: give it back.
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
