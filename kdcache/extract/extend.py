"""Extension: a new cache by the recipe of an old one, of which every value that holds is taken.

The old cache is a source of values and no ancestor: what comes out is, to the byte, what
extraction gives with the same settings and libraries.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdcache.errors import CacheMismatch, ConfigError, DataError
from kdcache.extract.begin import made_with
from kdcache.extract.claims import join
from kdcache.extract.job import Job
from kdcache.extract.known import NOTHING, Known, changes, known_of
from kdcache.extract.run import Outcome, complete, index_or_refuse
from kdcache.extract.settings import Extraction
from kdcache.images import ImageIndex, ImageSet
from kdcache.precision import Wanted, settle
from kdcache.progress import Bar
from kdcache.store import Cache, Dtype, differences, open_cache, shard_of
from kdcache.teachers import Teacher
from kdcache.views import check_witnesses, renderer_of

Tell = Callable[[str], None]

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Extension:
    """A finished cache, and what of it is another one's."""

    outcome: Outcome
    source: Cache
    num_shared: int
    """Shards that are files of the other cache."""
    shared_bytes: int

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        lines = self.outcome.lines()
        if self.num_shared:
            lines.append(
                f"{self.num_shared:,} shards, {self.shared_bytes / 1e6:,.1f} MB, are files of "
                f"`{self.source.path}` under a second name and take no room of their own"
            )
        return lines + [
            f"{what} of `{self.source.path}` depends on the views and was left out: {command}"
            for what, command in _grown(self.source, self.outcome.path)
        ]


def run_extension(
    cache: Cache,
    images: ImageSet | None,
    teacher: Teacher,
    out: Path,
    *,
    is_same_teacher: bool,
    num_views: int | None = None,
    arrays: tuple[str, ...] | None = None,
    dtype: Dtype | None = None,
    precision: Wanted | None = None,
    skip_unreadable: bool,
    device: torch.device,
    workers: int,
    bar: Bar,
    tell: Tell,
) -> Extension:
    """Make the cache `out`, or complete it; `cache` is only read. None leaves a setting as it is.

    Args:
        images: those of the new cache; None for those of the old one, if none must be rendered.
        is_same_teacher: whether `teacher` is meant to be the one that made `cache`.
        tell: told, before the long step, what can be taken over.

    Raises:
        KdcacheError: of the kind that says what to mend; what was computed before is kept.
    """
    _refuse_same_folder(cache, out)
    recipe = cache.recipe
    renderer_of(recipe, cache.path)  # the new views are to be like the old ones
    settings = Extraction(
        num_views=cache.num_views if num_views is None else num_views,
        policy=recipe["views"]["policy"]["name"],
        seed=recipe["views"]["seed"],
        arrays=tuple(cache.arrays) if arrays is None else arrays,
        dtype=dtype or next(iter(cache.arrays.values())).dtype,
        precision=precision or recipe["precision"],
        batch_size=recipe["batch_size"],
    )
    settings.check(teacher)
    started = time.monotonic()
    if images is None:
        images = _Recorded(str(cache.path), cache.paths, cache.labels, cache.classes)
        index = ImageIndex(cache.image_ids, np.zeros(cache.num_rows, np.int64), suspects={})
    else:
        index = index_or_refuse(images, skip_unreadable, workers, bar)
    index_s = time.monotonic() - started
    job = settings.job(images, index, teacher, settle(settings.precision, device))
    others = changes(job, cache)
    _refuse_other_recipe(job, cache, others, is_same_teacher=is_same_teacher)
    known = None if others else known_of(job, cache)
    _check(job, known, skip_unreadable=skip_unreadable)
    if known is None:
        tell(f"nothing of `{cache.path}` can be taken over: {'; '.join(others)}")
    else:
        _tell_plan(job, known, made_with(device), tell)
    with join(out) as claims:
        outcome = complete(
            job,
            out,
            claims,
            known=known,
            skip_unreadable=skip_unreadable,
            device=device,
            workers=workers,
            bar=bar,
            index_s=index_s,
        )
    open_cache(cache.path).require_descent_from(cache.identity)
    return Extension(outcome, cache, *_shared(cache, open_cache(out)))


class _Recorded(ImageSet):
    """The images of a cache, of which it holds all but the images."""

    def read(self, row: int) -> bytes:
        """Never: what is rendered is asked for before."""
        raise _no_images(self.source)


def _no_images(where: str) -> DataError:
    return DataError(
        f"images have to be rendered, and `{where}` holds none",
        hint="give them: --data DIR",
    )


def _refuse_same_folder(cache: Cache, out: Path) -> None:
    if out.resolve().is_relative_to(cache.path.resolve()):
        raise ConfigError(
            f"`{out}` lies in `{cache.path}`, which is only read: a finished cache does not change",
            hint="choose another --out",
        )


def _refuse_other_recipe(
    job: Job, cache: Cache, others: list[str], *, is_same_teacher: bool
) -> None:
    """Refuse what differs from the old recipe without having been asked for."""
    if views := [line for line in others if line.startswith("views.")]:
        raise CacheMismatch(
            f"what is installed does not draw the views of `{cache.path}`: {'; '.join(views)}",
            hint="install the versions that made it (`kdcache info --json` names them), or make "
            "another cache: kdcache extract",
        )
    teacher = [line for line in others if line.startswith("teacher.")]
    if teacher and is_same_teacher:
        raise CacheMismatch(
            f"`{job.teacher.name}`, as it was loaded now, is not the teacher of `{cache.path}`: "
            f"{'; '.join(teacher)}",
            hint="give the weights that it had: --weights FILE; or, for a cache of another "
            f"teacher: --teacher {job.teacher.name}",
        )


def _check(job: Job, known: Known | None, *, skip_unreadable: bool) -> None:
    """Refuse now what would be refused later, and values of other views than are drawn here."""
    unreadable = {} if known is None else known.unreadable(np.arange(len(job.images)))
    if unreadable and not skip_unreadable:
        row = min(unreadable)
        raise DataError(
            f"{len(unreadable):,} of {len(job.images):,} images could not be read before, the "
            f"first is `{job.images.paths[row]}`: {unreadable[row]}",
            hint="record them as unreadable again: --skip-unreadable",
        )
    if not _renders(job, known):
        return
    if isinstance(job.images, _Recorded):
        raise _no_images(job.images.source)
    if known is not None and (kept := known.witnesses_in_common()):
        check_witnesses(kept, job.maker)


def _renders(job: Job, known: Known | None) -> bool:
    """Whether any image has to be looked at."""
    starts = range(0, len(job.images), _ROWS_AT_ONCE)
    parts = (np.arange(start, min(start + _ROWS_AT_ONCE, len(job.images))) for start in starts)
    return known is None or any((known.tasks(rows) != NOTHING).any() for rows in parts)


def _tell_plan(job: Job, known: Known, now: Mapping[str, str], tell: Tell) -> None:
    """Say what is taken over and what is computed."""
    source, total = known.cache, len(job.images) * job.num_views
    num_new = int((known.rows < 0).sum())
    num_gone = source.num_rows - len(np.unique(known.rows[known.rows >= 0]))
    tell(
        f"{known.num_values:,} of {total:,} views are known from `{source.path}`, the teacher sees "
        f"{total - known.num_values:,}; {num_new:,} images are new, {num_gone:,} are gone"
    )
    if not known.has_values:
        wanted = ", ".join(f"{spec.name} as {spec.dtype}" for spec in job.array_specs())
        tell(f"`{source.path}` does not hold {wanted}, so the teacher sees every view again")
    differing = differences(source.manifest.versions, now)
    if differing and num_gone < source.num_rows:
        tell(
            f"what is taken over was made otherwise: {'; '.join(differing)}; both are recorded, "
            "and the last bits need not be those of one extraction"
        )


def _shared(old: Cache, new: Cache) -> tuple[int, int]:
    """Number and bytes of the shards that are the same files in both."""
    sizes = [
        file.num_bytes
        for name, file in new.manifest.files.items()
        if (shard := shard_of(name)) is not None
        and not shard.is_receipt
        and name in old.manifest.files
        and os.path.samefile(old.path / name, new.path / name)
    ]
    return len(sizes), sum(sizes)


def _grown(cache: Cache, out: Path) -> list[tuple[str, str]]:
    """What a cache has grown, and how to have it again."""
    grown = []
    origin, graph = cache.head_origin(), cache.neighbours()
    if origin is not None and origin["kind"] == "fitted":
        asked = {name: origin["settings"].get(name) for name in ("dim", "steps")}
        options = [f"--{name} {value}" for name, value in asked.items() if value is not None]
        command = " ".join([
            f"kdcache head {out} --method {origin['method']} --seed {origin['seed']}", *options
        ])  # fmt: skip
        grown.append(("the fitted head", command))
    if graph is not None:
        about = graph.attributes
        command = f"kdcache neighbours {out} --k {about['k']} --index {about['index']}"
        grown.append(("the kNN graph", f"{command} --array {about['array']}"))
    return grown
