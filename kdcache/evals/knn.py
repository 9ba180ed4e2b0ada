"""kNN: how often the labelled images that a network finds most alike name the right class.

Nothing is trained and nothing is tuned, so it is the first figure to look at.

*Source:* plain vote: Navaneet et al., "SimReg", BMVC 2021, arXiv:2201.05131 (k = 1 and 20; equal
votes are settled by chance there, by similarity here). Weighted vote: Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv:2104.14294 (a vote weighs
exp(cos / 0.07)). The two give different figures and must not be compared.

Shapes: G gallery, Q queries, K neighbours, F feature.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kdcache.errors import ConfigError
from kdcache.evals.features import Features, check_comparable
from kdcache.evals.result import Score, top_k_percent
from kdcache.nearest import search
from kdcache.shapes import Float, Int

Vote = Literal["plain", "weighted"]

_QUERIES_AT_ONCE = 4096


def knn_accuracy(
    gallery: Features,
    queries: Features,
    ks: Sequence[int] = (1, 10, 20),
    vote: Vote = "plain",
    temperature: float = 0.07,
) -> dict[int, float]:
    """Percent of the queries whose class their k nearest gallery images, by cosine, elect.

    Every neighbour has one vote (`plain`) or exp(cosine / temperature) votes (`weighted`). Equal
    votes go to the class whose voters are more similar in sum, then to the first class by name.

    Raises:
        ConfigError: a k is below 1 or above the size of the gallery.
        DataError: images without a class, or a class of the queries is not in the gallery.
    """
    most = _largest(ks, len(gallery))
    wanted = check_comparable(gallery, queries)
    base = _unit(gallery.values)
    num_right = dict.fromkeys(ks, 0)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        similarity, neighbours = search(_unit(queries.values[part]), base, most)
        labels = gallery.labels[neighbours]
        for k in num_right:
            chosen = _elect(
                labels[:, :k], similarity[:, :k], len(gallery.classes), vote, temperature
            )
            num_right[k] += int((chosen == wanted[part]).sum())
    return {k: top_k_percent(right, len(queries)) for k, right in num_right.items()}


def knn_scores(
    gallery: Features,
    queries: Features,
    ks: Sequence[int] = (1, 10, 20),
    vote: Vote = "plain",
    temperature: float = 0.07,
) -> list[Score]:
    """`knn_accuracy` as rows of a table, one for each k."""
    how: dict[str, str | int | float] = {"vote": vote, "view": queries.view}
    if vote == "weighted":
        how["temperature"] = temperature
    return [
        Score(
            protocol="knn",
            setting={"k": k, **how},
            metric="top1",
            value=value,
            num_queries=len(queries),
            num_classes=len(gallery.classes),
        )
        for k, value in knn_accuracy(gallery, queries, ks, vote, temperature).items()
    ]


def _largest(ks: Sequence[int], num_gallery: int) -> int:
    for k in ks:
        if not 1 <= k <= num_gallery:
            raise ConfigError(
                f"k is `{k}`, and the gallery has {num_gallery} images",
                hint=f"--k takes numbers between 1 and {num_gallery}, by commas",
            )
    return max(ks)


def _unit(values: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N F"]:
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(values / np.maximum(norms, 1e-12), dtype=np.float32)


def _elect(
    labels: Int[np.ndarray, "Q K"],
    similarity: Float[np.ndarray, "Q K"],
    num_classes: int,
    vote: Vote,
    temperature: float,
) -> Int[np.ndarray, " Q"]:
    """The class that the neighbours of each query elect."""
    cosine = similarity.astype(np.float64)
    # Dividing all weights by exp(1 / temperature) changes no election and cannot overflow.
    weights = np.ones_like(cosine) if vote == "plain" else np.exp((cosine - 1.0) / temperature)
    votes = _sum_by_class(weights, labels, num_classes)
    leads = votes == votes.max(axis=1, keepdims=True)
    alike = np.where(leads, _sum_by_class(cosine, labels, num_classes), -np.inf)
    chosen: Int[np.ndarray, " Q"] = alike.argmax(axis=1)
    return chosen


def _sum_by_class(
    amounts: Float[np.ndarray, "Q K"], labels: Int[np.ndarray, "Q K"], num_classes: int
) -> Float[np.ndarray, "Q C"]:
    num_queries = len(labels)
    cells = np.arange(num_queries)[:, None] * num_classes + labels
    flat = np.bincount(cells.ravel(), amounts.ravel(), minlength=num_queries * num_classes)
    return flat.reshape(num_queries, num_classes)
