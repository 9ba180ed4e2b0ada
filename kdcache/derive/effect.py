"""What a projection head makes of a teacher: kNN, and the target that SEED would have of it.

Shapes: R images, F feature, D embedding, K neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kdcache.derive.diagnosis import Diagnosis, diagnose
from kdcache.derive.rows import readable_rows, sample, unit_mean, unit_view
from kdcache.heads import ProjectionHead
from kdcache.nearest import search
from kdcache.shapes import Float, Int, Int64
from kdcache.store import Cache

NEIGHBOURS = 10

_IMAGES = 50_000
_KNN_QUERIES = 5000
_TARGET_QUERIES = 500
_SEED = 0  # of the samples: the same images before and after
_TIE = 1e-6  # a vote weighs one and so much of its cosine: equal votes go to the more similar


@dataclass(frozen=True)
class Effect:
    """How good the targets of one array are, before any student has seen them."""

    knn: float | None
    """Percent of view 0 whose label its 10 nearest other images (means of their views) elect by
    plain vote; None where nothing is labelled."""
    same_image: float
    """Mean cosine of two views of one image, or 1 where the cache has one view."""
    target: Diagnosis
    """SEED's target at its own temperatures; the queue holds another view of other images."""

    def cells(self) -> list[str]:
        """One row of a table."""
        return [
            "-" if self.knn is None else f"{self.knn:.1f}",
            f"{self.target.self_mass:.4f}",
            f"{self.target.perplexity:.2f}",
            f"{self.target.mean_cosine:.3f}",
            f"{self.same_image:.3f}",
        ]


HEADINGS = [
    f"kNN (k={NEIGHBOURS})", "self mass", "perplexity", "mean cosine", "same image",
]  # fmt: skip
"""Of the cells of an `Effect`."""


def measure(cache: Cache, array: str, head: ProjectionHead | None = None) -> Effect:
    """The figures of an array, over at most 50,000 images; of those, 5,000 are kNN queries.

    Args:
        head: makes the embedding that is measured; None takes what the cache has.
    """
    rows = sample(readable_rows(cache), _IMAGES, _SEED)
    one = unit_view(cache, array, 0, rows, head)
    two = one if cache.num_views == 1 else unit_view(cache, array, 1, rows, head)
    asked = torch.from_numpy(sample(np.arange(len(rows)), _TARGET_QUERIES, _SEED))
    target = diagnose(
        one[asked], two, teacher_temperature=0.01, student_temperature=0.2, own=asked[:, None]
    )
    labels = cache.labels[rows]
    knn = None
    if (labels >= 0).any():
        queries = sample(np.flatnonzero(labels >= 0), _KNN_QUERIES, _SEED)
        keys = unit_mean(cache, array, rows, head)
        knn = _leave_one_out(one[queries].numpy(), keys.numpy(), labels, queries)
    return Effect(knn, float((one * two).sum(dim=1).mean()), target)


def how_measured(cache: Cache) -> str:
    """What `measure` does to this cache, in words for whoever reads its figures."""
    images = min(cache.manifest.num_readable, _IMAGES)
    labelled = int((cache.labels[cache.readable] >= 0).sum())
    queries = f"{min(labelled, _KNN_QUERIES):,}" if labelled else "no"
    return (
        f"Over {images:,} of {cache.manifest.num_readable:,} readable images, drawn at random with"
        f" seed {_SEED}. kNN: the share in % of {queries} labelled images, each by its view 0,"
        f" whose label the {NEIGHBOURS} nearest other images elect by plain vote (ties go to the"
        " more similar); an image is compared by the L2-normalised mean over its views of its"
        " L2-normalised rows, by cosine, and is never its own neighbour. Self mass, perplexity and"
        f" mean cosine: SEED's target of {min(images, _TARGET_QUERIES):,} of these images (view 0)"
        " over another view of all the others, at teacher temperature 0.01: mean share of the"
        " image's own target, median of exp(entropy), mean cosine between different images. Same"
        " image: mean cosine of two views of one image."
    )


def _leave_one_out(
    queries: Float[np.ndarray, "Q D"],
    keys: Float[np.ndarray, "R D"],
    labels: Int[np.ndarray, " R"],
    own: Int64[np.ndarray, " Q"],
) -> float:
    """Percent of the queries whose label the nearest labelled keys but their own elect."""
    cosines, found = search(queries, keys, min(NEIGHBOURS + 1, len(keys)))
    other = found != own[:, None]
    other[other.all(axis=1), -1] = False
    voter = other & (labels[found] >= 0)
    votes = np.zeros((len(queries), int(labels.max()) + 1))
    query, place = np.nonzero(voter)
    np.add.at(votes, (query, labels[found[query, place]]), 1.0 + _TIE * cosines[query, place])
    return 100.0 * float((votes.argmax(axis=1) == labels[own]).mean())
