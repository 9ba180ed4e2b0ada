"""Fidelity: how much of its teacher a student has become, whatever either is worth.

With `--teacher NAME` the teacher looks at centred views: a linear map from student to teacher
features is fitted on training images, and everything is measured on test images. With `--cache
CACHE` nothing is asked of a teacher: the student is shown view 0 of cached training images, exactly
as the teacher was; some of them fit the map, others are measured on.

*Source:* linear CKA: Kornblith et al., "Similarity of Neural Network Representations Revisited",
ICML 2019, arXiv:1905.00414, section 3. The cosine is what SimReg trains (arXiv:2201.05131), by a
ridge regression instead of its head, which no student keeps. kNN overlap and rank correlation
(Spearman's) are of cosines between images, which is what SEED, CompRess and DisCo hand down.

Shapes: N images, S student feature, T teacher feature.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from pydantic import Field

from kdcache.errors import CacheMismatch, DataError
from kdcache.evals.batches import build_maker
from kdcache.evals.dataset import LabelledSet
from kdcache.evals.exam import Exam
from kdcache.evals.features import see, unit_rows
from kdcache.evals.protocols._base import Asked, Preset, Protocol
from kdcache.evals.result import Score
from kdcache.evals.subject import Subject
from kdcache.nearest import search
from kdcache.settings import Settings
from kdcache.shapes import Float, Int64
from kdcache.store import Cache
from kdcache.targets import permutation
from kdcache.views import ViewMaker, check_witnesses, get_policy, witnesses_from_arrays


class Config(Settings):
    """How much is looked at."""

    num_images: int = Field(default=2000, ge=3)
    """Images that are measured on, at most."""
    num_fit: int = Field(default=10_000, ge=2)
    """Images that the linear map is fitted to, at most."""
    neighbours: int = Field(default=10, ge=1)
    """Of the kNN overlap."""
    ridge: float = Field(default=1e-3, gt=0)
    """Penalty of the map, as a share of the mean variance of a student feature."""


class Pairs(NamedTuple):
    """Features of both networks, row by row of the same images."""

    student: Float[np.ndarray, "N S"]
    teacher: Float[np.ndarray, "N T"]

    def take(self, rows: slice) -> "Pairs":
        """These rows of both."""
        return Pairs(self.student[rows], self.teacher[rows])


def linear_cka(x: Float[np.ndarray, "N S"], y: Float[np.ndarray, "N T"]) -> float:
    """Linear centred kernel alignment, 0 to 1."""
    a, b = (side.astype(np.float64) - side.mean(axis=0, dtype=np.float64) for side in (x, y))
    own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.square(np.linalg.norm(a.T @ b)) / own) if own > 0 else 0.0


def mapped_cosine(fit: Pairs, asked: Pairs, ridge: float) -> tuple[float, float]:
    """Mean cosine between mapped student features and teacher features: as they are, and less the
    mean teacher feature of the images that the map was fitted to.
    """
    x, y = (side.astype(np.float64) for side in fit)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram) + 1e-12
    weights = np.linalg.solve(gram, x.T @ y)
    mapped = (asked.student - x_mean) @ weights
    wanted = asked.teacher - y_mean
    return _mean_cosine(mapped + y_mean, wanted + y_mean), _mean_cosine(mapped, wanted)


def neighbour_overlap(
    x: Float[np.ndarray, "N S"], y: Float[np.ndarray, "N T"], count: int
) -> float:
    """Mean share of an image's `count` nearest others that both networks name, 0 to 1."""
    ours, theirs = _neighbours(x, count), _neighbours(y, count)
    same = [len(np.intersect1d(a, b)) for a, b in zip(ours, theirs, strict=True)]
    return float(np.mean(same)) / count


def rank_correlation(x: Float[np.ndarray, "N S"], y: Float[np.ndarray, "N T"]) -> float:
    """Spearman's correlation of an image's cosines to all others, mean over the images."""
    a, b = (_ranks(_cosines_to_others(side)) for side in (x, y))
    a, b = (side - side.mean(axis=1, keepdims=True) for side in (a, b))
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return float(((a * b).sum(axis=1) / scale).mean())


def _run(exam: Exam, asked: Sequence[Asked]) -> list[Score]:
    return [score for one in asked for score in _scores(exam, one)]


def _scores(exam: Exam, asked: Asked) -> list[Score]:
    config, teacher = asked.config, exam.beside.teacher
    assert isinstance(config, Config)
    assert teacher is not None
    if isinstance(teacher, Cache):
        fit, measured = _from_cache(exam, teacher, config)
        where = {"teacher": teacher.recipe["teacher"]["name"], "views": "cached, view 0"}
    else:
        fit, measured = _from_teacher(exam, teacher, config, asked.view)
        where = {"teacher": teacher.name, "views": asked.view}
    num_images = len(measured.student)
    if num_images <= config.neighbours + 1:
        raise DataError(
            f"there are {num_images} images to measure on, too few for "
            f"{config.neighbours} neighbours of each",
            hint="--set fidelity.neighbours=1, or a data set with more images",
        )
    cosine, centred = mapped_cosine(fit, measured, config.ridge)
    figures = {
        "cosine": cosine,
        "cosine_centred": centred,
        "cka": linear_cka(*measured),
        f"overlap@{config.neighbours}": neighbour_overlap(*measured, config.neighbours),
        "rank_correlation": rank_correlation(*measured),
    }
    setting = {**asked.setting(), **where, "fitted": len(fit.student)}
    return [
        Score(
            protocol=asked.family,
            setting=setting,
            metric=metric,
            value=value,
            num_queries=num_images,
            num_classes=0,
            unit="one",
        )
        for metric, value in figures.items()
    ]


def _from_teacher(exam: Exam, teacher: Subject, config: Config, view: str) -> tuple[Pairs, Pairs]:
    """The map from training images, and what is measured from test images."""
    fit, measured = (
        _pairs(exam, teacher, _some(part, count, exam.seed), view)
        for part, count in (
            (exam.splits.gallery, config.num_fit),
            (exam.splits.queries, config.num_images),
        )
    )
    return fit, measured


def _pairs(exam: Exam, teacher: Subject, part: LabelledSet, view: str) -> Pairs:
    # Whether an image can be read does not depend on who looks, so the rows are the same.
    return Pairs(exam.features(part, view).values, exam.features(part, view, teacher).values)


def _some(part: LabelledSet, count: int, seed: int) -> LabelledSet:
    if len(part.images) <= count:
        return part
    return part.take(np.sort(permutation(len(part.images), seed=seed, epoch=0)[:count]))


def _from_cache(exam: Exam, cache: Cache, config: Config) -> tuple[Pairs, Pairs]:
    """Cached images that `train/` has: the student sees the views that the teacher saw."""
    part = exam.splits.gallery
    row_of = {cache.image_ids[row].tobytes(): int(row) for row in np.flatnonzero(cache.readable)}
    rows = np.array([row_of.get(i.tobytes(), -1) for i in part.ids])
    here = np.flatnonzero(rows >= 0)
    if not len(here):
        raise CacheMismatch(
            f"`{cache.path}` holds none of the images of `{part.images.source}`",
            hint="give the cache of these images, or --teacher NAME, which looks at any images",
        )
    here = here[permutation(len(here), seed=exam.seed, epoch=0)]
    # A third is measured on where there are few, for a map needs more than its test does.
    num_measured = min(config.num_images, len(here) // 3)
    chosen = here[: num_measured + config.num_fit]
    views = cache.recipe["views"]
    policy = get_policy(views["policy"]["name"])
    maker = build_maker(
        part.images, policy, exam.subject.image_size, ids=part.ids, seed=views["seed"]
    )
    _check_views(cache, replace(maker, size=cache.recipe["teacher"]["image_size"]))
    with exam.bar("cached views", total=len(chosen), unit="images") as progress:
        seen = list(
            see(
                exam.subject.network,
                maker,
                chosen,
                device=exam.device,
                workers=exam.workers,
                progress=progress,
            )
        )
    kept = np.concatenate([one.rows for one in seen])
    student = np.concatenate([one.values for one in seen if len(one.rows)])
    array = "feature" if "feature" in cache.arrays else "embedding"
    teacher = cache.rows(array, rows[kept], np.zeros(len(kept), np.int64)).astype(np.float32)
    both = Pairs(student, teacher)
    return both.take(slice(num_measured, None)), both.take(slice(0, num_measured))


def _check_views(cache: Cache, maker: ViewMaker) -> None:
    """Render some of the cache's witnesses, as a training run does before its first step."""
    place = {image.tobytes(): row for row, image in enumerate(maker.ids)}
    kept = [
        replace(witness, row=place[image])
        for witness in witnesses_from_arrays(cache.witness())
        if (image := cache.image_ids[witness.row].tobytes()) in place
    ]
    if kept:
        check_witnesses(kept, maker)


def _mean_cosine(a: Float[np.ndarray, "N T"], b: Float[np.ndarray, "N T"]) -> float:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def _neighbours(values: Float[np.ndarray, "N S"], count: int) -> list[Int64[np.ndarray, " K"]]:
    """For each image the nearest others."""
    unit = unit_rows(values)
    _, found = search(unit, unit, count + 1)
    return [row[row != own][:count] for own, row in enumerate(found)]


def _cosines_to_others(values: Float[np.ndarray, "N S"]) -> Float[np.ndarray, "N M"]:
    unit = unit_rows(values).astype(np.float64)
    num = len(unit)
    return (unit @ unit.T)[~np.eye(num, dtype=bool)].reshape(num, num - 1)


def _ranks(values: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N M"]:
    """Places in the order of each row; equal values keep the order that they stand in."""
    return values.argsort(axis=1, kind="stable").argsort(axis=1).astype(np.float64)


PROTOCOL = Protocol(
    presets={
        "": Preset(Config(), "cosine, linear CKA, kNN overlap, rank correlation", paper=False)
    },
    run=_run,
    requires=frozenset({"teacher"}),
)
