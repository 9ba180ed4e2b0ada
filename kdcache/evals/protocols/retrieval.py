"""Retrieval: whether the images of a class are what a network finds first.

Every test image asks all training images, by cosine; those of its class are what it wants.

*Source:* mean average precision over the whole ranking: Philbin et al., "Object Retrieval with
Large Vocabularies", CVPR 2007, with precision at each wanted image (no interpolation). Recall@k:
Jegou et al., "Product Quantization", TPAMI 2011, as metric learning uses it: whether one of the k
nearest is wanted.

Shapes: G gallery, Q queries.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from kdcache.errors import ConfigError
from kdcache.evals.exam import Exam
from kdcache.evals.features import Features, check_comparable, unit_rows
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.result import Score
from kdcache.settings import Settings
from kdcache.shapes import Float

_QUERIES_AT_ONCE = 128


class Config(Settings):
    """What is reported."""

    k: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 5, 10], min_length=1)
    """Depths of the recall."""


def retrieval(
    gallery: Features, queries: Features, ks: Sequence[int], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """mAP and recall@k in percent.

    Raises:
        DataError: images without a class, or a class of the queries is not in the gallery.
    """
    wanted = torch.from_numpy(check_comparable(gallery, queries)).to(device)
    labels = torch.from_numpy(gallery.labels).to(device)
    base = torch.from_numpy(unit_rows(gallery.values)).to(device)
    precisions, hits = [], []
    places = torch.arange(1, len(gallery) + 1, device=device, dtype=torch.float64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        asked = torch.from_numpy(unit_rows(queries.values[part])).to(device)
        order = (asked @ base.T).argsort(dim=1, descending=True, stable=True)
        found = labels[order] == wanted[part, None]
        precision = found.cumsum(dim=1) / places
        precisions.append((precision * found).sum(dim=1) / found.sum(dim=1))
        hits.append(torch.stack([found[:, :k].any(dim=1) for k in ks]))
    recall: Float[np.ndarray, " K"] = torch.cat(hits, dim=1).double().mean(dim=1).cpu().numpy()
    figures = {f"recall@{k}": 100 * float(r) for k, r in zip(ks, recall, strict=True)}
    return {"mAP": 100 * float(torch.cat(precisions).mean()), **figures}


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    config = asked.config
    assert isinstance(config, Config)
    gallery = exam.features(exam.splits.gallery, asked.view)
    queries = exam.features(exam.splits.queries, asked.view)
    return [
        Score(
            protocol=asked.family,
            setting={"view": queries.view},
            metric=metric,
            value=value,
            num_queries=len(queries),
            num_classes=len(gallery.classes),
        )
        for metric, value in retrieval(gallery, queries, config.k, exam.device).items()
    ]


def _check(exam: Exam, asked: Sequence[Asked]) -> None:
    for one in asked:
        assert isinstance(one.config, Config)
        if max(one.config.k) > len(exam.splits.train):
            raise ConfigError(
                f"recall@{max(one.config.k)} is asked of {len(exam.splits.train)} images",
                hint="--set retrieval.k=[1]",
            )


PROTOCOL = Protocol(
    presets={"": Preset(Config(), "mAP over the whole training set, and recall@k", paper=False)},
    run=_run,
    check=_check,
    of_features=True,
)
