"""A small cache with the recipe of a real extraction, made up in a second."""

from pathlib import Path

import numpy as np
from store import making

from kdcache.store import Cache, Neighbours, grow_cache, neighbour_files, open_cache
from kdcache.views import get_policy

WEIGHTS = "5a" * 32
RECIPE = {
    "teacher": {
        "name": "r50",
        "architecture": "resnet50",
        "weights": {"source": "file", "sha256": WEIGHTS, "bytes": 94_000_000},
        "image_size": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "feature_dim": 64,
        "embedding_dim": 8,
        "head": None,
        "licence": "MIT",
    },
    "precision": "fp32",
    "batch_size": 16,
    "images": {"fingerprint": "0f" * 32, "num_images": 200, "num_classes": 2},
    "views": {
        "policy": get_policy("moco_v2").to_dict(),
        "seed": 0,
        "renderer": {"id": "r1", "version": 1},
        "decoder": "simplejpeg",
    },
    "arrays": {},
}
NUM_ROWS = 200
UNREADABLE = {5: "truncated JPEG"}


def values_of(dim: int, num_views: int) -> np.ndarray:
    """What the teacher says, [N, V, dim]; view by view, so that more views change no other."""
    random = np.random.default_rng(dim)
    return np.stack([random.normal(size=(NUM_ROWS, dim)) for _ in range(num_views)], axis=1)


def make_cache(path: Path, *, num_views: int = 2, recipe=RECIPE) -> Cache:
    """200 rows (one unreadable, a third unlabelled) of `r50`, feature and embedding."""
    writer = making.begin(path, recipe=recipe, num_rows=NUM_ROWS, num_views=num_views)
    (piece,) = writer.missing()
    values = {spec.name: values_of(spec.dim, num_views).astype("f4") for spec in making.SPECS}
    witness = {"row": np.arange(4), "thumbnail": np.zeros((4, 32, 32, 3), np.uint8)}
    writer.put_piece(piece, values, UNREADABLE, witness)
    writer.seal()
    return open_cache(path)


def grow(cache: Cache) -> Cache:
    """The cache with a kNN graph, of which it says little."""
    index = np.zeros((NUM_ROWS, 2), np.int32)
    about = {"k": 2, "array": "feature", "index": "exact", "parameters": {}, "views": 2}
    graph = Neighbours(index, np.ones((NUM_ROWS, 2), np.float32), about)
    return grow_cache(cache, neighbour_files(graph))
