"""The teacher, asked again: does it say of a sample of views what the cache holds?

First the pixels are compared with the witness, stage by stage, for a teacher that is shown another
picture says something else. What is left differs by the last bits of sums that are taken in another
order: other batches, another number of threads, another kernel.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kdcache.extract import Job, hear, job_again, maker_of
from kdcache.images import ImageSet, Unreadable, decode, image_id
from kdcache.precision import Precision, without_tf32
from kdcache.progress import Bar, Progress
from kdcache.shapes import Float, Int64
from kdcache.store import Cache, RowIndex
from kdcache.teachers import Teacher
from kdcache.verify.finding import Finding, Verdict, in_rows
from kdcache.verify.images import Matched, image_findings, match_images, rows_of
from kdcache.views import (
    ViewMaker,
    is_tolerated,
    measure_witnesses,
    other_releases,
    witnesses_from_arrays,
)

TOLERANCE: dict[Precision, float] = {"fp32": 0.99999, "bf16": 0.95, "fp16": 0.999}
"""The lowest cosine between what the teacher said and says, by the precision it ran at.

Measured on features of real images in `moco_v2` views (2026-11-21, AMD EPYC, 2 threads, torch 2.15;
batches of 1, 7 and 64), as 1 - lowest cosine: tf_efficientnet_lite0 at 128 px (128 images), then a
ResNet-18 at 64 px (64 images; 6 for fp16).

* fp32, other batch size: 1.6e-12, 1.4e-13. Kept as float16: 2.8e-8, 2.9e-8 more.
* bf16 and fp16, other batch size on one machine: the same bits.
* bf16 against fp32: 2.2e-2 (in the mean 2.2e-3), 3.4e-5. fp16 against fp32: not measured, 1.8e-7.

Another machine may round at other places than this one, so two runs in a short type may lie about
as far apart as each does from fp32: the bound is twice the worst of these, rounded.
"""

PAIRS = 64
"""Pairs of (row, view) that the teacher is shown again, spread over the shards; and as many of the
witness."""


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Some views of a cache."""

    rows: Int64[np.ndarray, " P"]
    views: Int64[np.ndarray, " P"]


def check_images(
    verdict: Verdict, cache: Cache, images: ImageSet, *, thorough: bool, bar: Bar
) -> Matched:
    """Add to the verdict which images are missing, changed, renamed or added."""
    index = index_of(cache)
    with bar("match", total=len(images), unit="images") as progress:
        matched = match_images(index, cache.readable, images, thorough=thorough, progress=progress)
    findings, notes = image_findings(index, images, matched)
    verdict.problems += findings
    verdict.notes += notes
    return matched


def check_teacher(
    verdict: Verdict,
    cache: Cache,
    images: ImageSet,
    matched: Matched,
    teacher: Teacher,
    *,
    pairs: int = PAIRS,
    seed: int = 0,
    device: torch.device,
    bar: Bar,
) -> None:
    """Add to the verdict where pixels differ from the witness, or answers from the cache.

    Raises:
        CacheMismatch, ConfigError: views of this cache cannot be drawn by this code.
    """
    rows, ids = rows_of(index_of(cache), cache.readable, images, matched)
    maker = maker_of(cache.recipe, rows, ids, cache.path)
    here = _readable_here(verdict, cache, maker, matched, pairs, seed)
    if releases := other_releases(cache.manifest.versions):
        verdict.notes.append(f"views are rendered by other releases: {'; '.join(releases)}")
    sees_the_same = _check_pixels(verdict, cache, maker, here, pairs)
    if not len(here.rows):
        verdict.notes.append("the teacher was not asked: not one of the sampled images is here")
        return
    job = job_again(cache.recipe, maker, teacher, cache.num_views)
    with bar("teacher", total=len(here.rows), unit="views") as progress:
        said = _ask(job, here, device, progress)
    for name in cache.arrays.keys() & said.keys():
        _compare(verdict, cache, name, here, said[name], blame=sees_the_same)


def index_of(cache: Cache) -> RowIndex:
    """What the rows of a cache are."""
    return RowIndex(cache.image_ids, cache.labels, cache.classes, cache.paths)


def _readable_here(
    verdict: Verdict, cache: Cache, maker: ViewMaker, matched: Matched, count: int, seed: int
) -> _Pairs:
    """The sample: of rows that have targets, and whose images are here and what they were."""
    kept = _witness_pairs(cache, count)
    spread = _spread_pairs(cache, count, np.random.default_rng(seed))
    both = np.unique(np.concatenate([kept, spread]), axis=0)
    both = both[cache.readable[both[:, 0]] & (matched.places[both[:, 0]] >= 0)]
    others = []
    for row in np.unique(both[:, 0]).tolist():
        if (finding := _other_image(maker, row)) is not None:
            verdict.problems.append(finding)
            others.append(row)
    both = both[~np.isin(both[:, 0], others)]
    return _Pairs(both[:, 0], both[:, 1])


def _other_image(maker: ViewMaker, row: int) -> Finding | None:
    """What is wrong with the image of a row, or None."""
    data, path = maker.images.read(row), maker.images.paths[row]
    if image_id(data) != maker.ids[row].tobytes():
        found, expected = "has changed", "the image that the cache was made from"
        return Finding(path, "image changed", found, expected, **in_rows([row]))
    try:
        decode(data)
    except Unreadable as error:
        expected = "pixels, as when the cache was made"
        return Finding(path, "decode", f"cannot be decoded: {error}", expected, **in_rows([row]))
    return None


def _witness_pairs(cache: Cache, count: int) -> Int64[np.ndarray, "P 2"]:
    kept = cache.witness()
    if not kept:
        return np.zeros((0, 2), np.int64)
    chosen = np.linspace(0, len(kept["row"]) - 1, min(count, len(kept["row"]))).round().astype(int)
    return np.stack([kept["row"][chosen], kept["view"][chosen]], axis=1)


def _spread_pairs(cache: Cache, count: int, rng: np.random.Generator) -> Int64[np.ndarray, "P 2"]:
    """One of each of `count` equal parts of all (view, row), as they lie in the shards."""
    total = cache.num_rows * cache.num_views
    count = min(count, total)
    starts = np.arange(count) * total // count
    stops = (np.arange(count) + 1) * total // count
    views, rows = np.divmod(rng.integers(starts, stops), cache.num_rows)
    return np.stack([rows, views], axis=1)


def _check_pixels(
    verdict: Verdict, cache: Cache, maker: ViewMaker, here: _Pairs, count: int
) -> bool:
    """Compare pixels with the witness; whether the teacher is shown what it saw."""
    pairs = set(zip(here.rows.tolist(), here.views.tolist(), strict=True))
    kept = [w for w in witnesses_from_arrays(cache.witness()) if (w.row, w.view) in pairs]
    if not kept:
        verdict.notes.append("no view of the witness could be rendered, so pixels are not compared")
        return True
    report = measure_witnesses(kept, maker, count)
    verdict.measured["pixels"] = {
        "views": report.num_checked,
        "differ": len(report.differences),
        "by stage": {
            stage: max(d.mean_levels for d in report.differences if d.stage == stage)
            for stage in sorted({d.stage for d in report.differences})
        },
    }
    verdict.notes.append(f"pixels: {report}")
    others = [found for found in report.differences if not is_tolerated(found)]
    for stage in sorted({found.stage for found in others}):
        mine = [found for found in others if found.stage == stage]
        worst = max(mine, key=lambda found: found.mean_levels)
        found = (
            f"{len(mine)} of {report.num_checked} views differ first in `{stage}`, by up to "
            f"{worst.mean_levels:.2f} levels in the mean"
        )
        place = in_rows([one.row for one in mine])
        verdict.problems.append(
            Finding("witness", stage, found, "the views of the teacher", **place)
        )
    return not others


def _ask(
    job: Job, pairs: _Pairs, device: torch.device, progress: Progress
) -> dict[str, Float[np.ndarray, "P _"]]:
    """What the teacher says of each pair."""
    if job.precision == "fp32":
        without_tf32()
    job.teacher.to(device)
    sides = np.array([job.policy.side(view, job.maker.size) for view in pairs.views.tolist()])
    said: dict[str, np.ndarray] = {}
    for side in np.unique(sides):
        places = np.flatnonzero(sides == side)
        for part in np.split(places, range(job.batch_size, len(places), job.batch_size)):
            pixels = [_render(job, int(pairs.rows[i]), int(pairs.views[i])) for i in part]
            for name, values in hear(job, torch.from_numpy(np.stack(pixels)), device).items():
                all_of_it = said.setdefault(name, np.zeros((len(sides), values.shape[1])))
                all_of_it[part] = values.numpy()
            progress(len(part))
    return said


def _render(job: Job, row: int, view: int) -> np.ndarray:
    made = job.maker.make(np.array([row]), np.array([view]))
    return np.asarray(made.pixels[0][0])


def _compare(
    verdict: Verdict, cache: Cache, name: str, pairs: _Pairs, said: np.ndarray, *, blame: bool
) -> None:
    """Compare what the cache holds with what the teacher says now.

    Args:
        blame: the pixels are what the teacher saw, so a difference is the teacher's.
    """
    kept = cache.rows(name, pairs.rows, pairs.views).astype(np.float64)
    lengths = np.linalg.norm(kept, axis=1), np.linalg.norm(said, axis=1)
    floor = np.finfo(np.float64).tiny
    cosine = (kept * said).sum(axis=1) / np.maximum(lengths[0] * lengths[1], floor)
    ratio = np.maximum(lengths[1], floor) / np.maximum(lengths[0], floor)
    tolerance = TOLERANCE[cache.recipe["precision"]]
    # As far as vectors of this cosine lie apart, their lengths may differ as well.
    failed = ~(cosine >= tolerance) | ~(np.abs(ratio - 1) <= np.sqrt(2 - 2 * tolerance))
    lowest, mean = float(cosine.min()), float(cosine.mean())
    verdict.measured.setdefault("teacher", {})[name] = {
        "views": len(cosine),
        "lowest cosine": lowest,
        "mean cosine": mean,
        "tolerance": tolerance,
        "length": [float(ratio.min()), float(ratio.max())],
    }
    what = f"cosine {lowest:.6f} at the lowest, {mean:.6f} in the mean, of {len(cosine)} views"
    verdict.notes.append(f"teacher: `{name}` has {what}")
    if failed.any() and blame:
        found = f"the teacher says otherwise of {int(failed.sum())} of {len(cosine)} views ({what})"
        expected = f"at least {tolerance} ({cache.recipe['precision']})"
        place = in_rows(pairs.rows[failed])
        verdict.problems.append(Finding(name, "teacher", found, expected, **place))
