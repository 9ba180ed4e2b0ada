"""kNN: how often the labelled images that a network finds most alike name the right class.

Nothing is trained and nothing is tuned, so it is the first figure to look at.

*Source:* plain vote: Navaneet et al., "SimReg", BMVC 2021, arXiv:2201.05131, and Koohpayegani et
al., "CompRess", NeurIPS 2020, arXiv:2010.14713, `eval_knn.py`. Weighted vote: Caron et al.,
"Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv:2104.14294,
`eval_knn.py`. Fang et al., "SEED", ICLR 2021, arXiv:2101.04731. They must not be compared.

Shapes: G gallery, Q queries, K neighbours, F feature.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from kdcache.errors import ConfigError
from kdcache.evals.exam import Exam
from kdcache.evals.features import Features, check_comparable, unit_rows
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.result import Score, top_k_percent
from kdcache.nearest import search
from kdcache.settings import Settings
from kdcache.shapes import Float, Int

Vote = Literal["plain", "weighted"]
Ties = Literal["similar", "share"]

_QUERIES_AT_ONCE = 4096


class Config(Settings):
    """How neighbours vote."""

    k: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 10, 20], min_length=1)
    """Numbers of neighbours; one figure each."""
    vote: Vote = "plain"
    """One vote a neighbour, or exp(cosine / temperature) votes."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the weighted vote."""
    ties: Ties = "similar"
    """Equal votes go to the class whose voters are more similar in sum, then to the first by name;
    or count as the share that drawing lots would win in the mean, as SimReg and CompRess draw."""


def knn_accuracy(
    gallery: Features,
    queries: Features,
    ks: Sequence[int] = (1, 10, 20),
    vote: Vote = "plain",
    temperature: float = 0.07,
    ties: Ties = "similar",
) -> dict[int, float]:
    """Percent of the queries whose class their k nearest gallery images, by cosine, elect.

    The arguments are those of `Config`.

    Raises:
        ConfigError: a k is below 1 or above the size of the gallery.
        DataError: images without a class, or a class of the queries is not in the gallery.
    """
    _check_ks(ks, len(gallery))
    wanted = check_comparable(gallery, queries)
    base = unit_rows(gallery.values)
    num_right = dict.fromkeys(ks, 0.0)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        similarity, neighbours = search(unit_rows(queries.values[part]), base, max(ks))
        labels = gallery.labels[neighbours]
        for k in num_right:
            cosine = similarity[:, :k].astype(np.float64)
            weights = _weights(cosine, vote, temperature)
            votes = _sum_by_class(weights, labels[:, :k], len(gallery.classes))
            alike = _sum_by_class(cosine, labels[:, :k], len(gallery.classes))
            num_right[k] += _right(votes, alike, wanted[part], ties)
    return {k: top_k_percent(right, len(queries)) for k, right in num_right.items()}


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    config = asked.config
    assert isinstance(config, Config)
    gallery = exam.features(exam.splits.gallery, asked.view)
    queries = exam.features(exam.splits.queries, asked.view)
    how: dict[str, str | int | float] = {"vote": config.vote, "view": queries.view}
    if config.vote == "weighted":
        how["temperature"] = config.temperature
    found = knn_accuracy(gallery, queries, config.k, config.vote, config.temperature, config.ties)
    return [
        Score(
            protocol="knn",
            setting={**asked.setting(), "k": k, **how},
            metric="top1",
            value=value,
            num_queries=len(queries),
            num_classes=len(gallery.classes),
        )
        for k, value in found.items()
    ]


def _check(exam: Exam, asked: Sequence[Asked]) -> None:
    for one in asked:
        assert isinstance(one.config, Config)
        _check_ks(one.config.k, len(exam.splits.train), one.name)


def _check_ks(ks: Sequence[int], num_gallery: int, name: str = "knn") -> None:
    for k in ks:
        if not 1 <= k <= num_gallery:
            raise ConfigError(
                f"k is `{k}`, and the gallery has {num_gallery} images",
                hint=f"--k takes numbers between 1 and {num_gallery}, by commas"
                if ":" not in name
                else f"put more images into train/, or leave `{name}` out; --set knn.k=[10] asks "
                "fewer neighbours, and is the preset no more",
            )


def _weights(
    cosine: Float[np.ndarray, "Q K"], vote: Vote, temperature: float
) -> Float[np.ndarray, "Q K"]:
    """The votes of each neighbour."""
    if vote == "plain":
        return np.ones_like(cosine)
    # Dividing all weights by exp(1 / temperature) changes no election and cannot overflow.
    return np.exp((cosine - 1.0) / temperature)


def _right(
    votes: Float[np.ndarray, "Q C"],
    alike: Float[np.ndarray, "Q C"],
    wanted: Int[np.ndarray, " Q"],
    ties: Ties,
) -> float:
    """How many queries elect the class that is wanted."""
    leads = votes == votes.max(axis=1, keepdims=True)
    if ties == "share":
        return float((leads[np.arange(len(wanted)), wanted] / leads.sum(axis=1)).sum())
    return float((np.where(leads, alike, -np.inf).argmax(axis=1) == wanted).sum())


def _sum_by_class(
    amounts: Float[np.ndarray, "Q K"], labels: Int[np.ndarray, "Q K"], num_classes: int
) -> Float[np.ndarray, "Q C"]:
    num_queries = len(labels)
    cells = np.arange(num_queries)[:, None] * num_classes + labels
    flat = np.bincount(cells.ravel(), amounts.ravel(), minlength=num_queries * num_classes)
    return flat.reshape(num_queries, num_classes)


PROTOCOL = Protocol(
    presets={
        "": Preset(Config(), "a plain vote; nobody's in particular", paper=False),
        "weighted": Preset(
            Config(vote="weighted"), "DINO's vote at our numbers of neighbours", paper=False
        ),
        "simreg": Preset(
            Config(k=[1, 20], ties="share"), "SimReg, arXiv:2201.05131, official evaluation code"
        ),
        "compress": Preset(Config(k=[1], ties="share"), "CompRess, arXiv:2010.14713, eval_knn.py"),
        "dino": Preset(
            Config(k=[10, 20, 100, 200], vote="weighted"), "DINO, arXiv:2104.14294, eval_knn.py"
        ),
        "seed": Preset(
            Config(k=[10]),
            "SEED, arXiv:2101.04731; UNVERIFIED: its repository has no kNN script, so k = 10 and "
            "the plain vote are from memory",
        ),
    },
    run=_run,
    check=_check,
    of_features=True,
)
