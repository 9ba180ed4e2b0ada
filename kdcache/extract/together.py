"""Several teachers in one pass: an image is read and decoded once for all of them.

Each gets the cache that it would get alone, to the byte. Views are rendered once for each size that
a teacher has. A pass that was interrupted goes on, whichever caches are behind.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from kdcache.errors import ConfigError
from kdcache.extract.begin import open_writer
from kdcache.extract.claims import Claims, join
from kdcache.extract.engine import (
    Draft,
    Part,
    Rendered,
    make_ready,
    parts_of,
    rendered_part,
    timed,
)
from kdcache.extract.job import Job
from kdcache.extract.report import Report
from kdcache.extract.run import Outcome, complete, index_or_refuse
from kdcache.extract.settings import Extraction
from kdcache.images import ImageSet
from kdcache.precision import settle
from kdcache.progress import Bar, Progress
from kdcache.store import CacheWriter
from kdcache.teachers import Teacher
from kdcache.views import witness_mask
from kdcache.workers import render_ahead


def run_extractions(
    images: ImageSet,
    teachers: Sequence[Teacher],
    outs: Sequence[Path],
    settings: Extraction,
    *,
    skip_unreadable: bool = False,
    device: torch.device,
    workers: int,
    bar: Bar,
) -> list[Outcome]:
    """Make the caches `outs`, one for each teacher, or complete them.

    Raises:
        KdcacheError: of the kind that says what to mend; what was computed before is kept.
    """
    if len({out.absolute() for out in outs}) != len(teachers):
        raise ConfigError(
            f"{len(teachers)} teachers make as many caches, and {len(outs)} different --out are "
            "given",
            hint="repeat --out once for each --teacher, in the same order",
        )
    for teacher in teachers:
        settings.check(teacher)
    with ExitStack() as stack:
        claims = _join_all(outs, stack)
        started = time.monotonic()
        index = index_or_refuse(images, skip_unreadable, workers, bar)
        index_s = time.monotonic() - started
        precision = settle(settings.precision, device)
        jobs = [settings.job(images, index, teacher, precision) for teacher in teachers]
        writers = [open_writer(job, out, device) for job, out in zip(jobs, outs, strict=True)]
        lacking = [set(writer.missing()) for writer in writers]
        left = sum(len(writers[0].piece_rows(piece)) for piece in set().union(*lacking))
        with bar("extract", total=len(images), unit="images", done=len(images) - left) as progress:
            reports = _extract(
                jobs, writers, lacking, device=device, workers=workers, progress=progress
            )
        outcomes = []
        for job, out, claim, report in zip(jobs, outs, claims, reports, strict=True):
            outcome = complete(
                job,
                out,
                claim,
                skip_unreadable=skip_unreadable,
                device=device,
                workers=workers,
                bar=bar,
                index_s=index_s,
            )
            report.unreadable = outcome.report.unreadable
            outcomes.append(replace(outcome, report=report))
    return outcomes


def _join_all(outs: Sequence[Path], stack: ExitStack) -> list[Claims]:
    """All caches to oneself: pieces of several are computed at once, and not shared out.

    Raises:
        ConfigError: another process is making one of them.
    """
    # Each process in one order, lest two wait for each other.
    joined = {out: stack.enter_context(join(out)) for out in sorted(outs)}
    for out, claims in joined.items():
        if not claims.is_first:
            raise ConfigError(
                f"another process is making `{out}`",
                hint="wait for it, or give each teacher a command of its own: those share the work",
            )
    return [joined[out] for out in outs]


def _extract(
    jobs: Sequence[Job],
    writers: Sequence[CacheWriter],
    lacking: Sequence[set[int]],
    *,
    device: torch.device,
    workers: int,
    progress: Progress,
) -> list[Report]:
    """Compute every piece that a cache lacks, for all that lack it.

    Args:
        lacking: the pieces of each.
    """
    for job in jobs:
        make_ready(job, device)
    parts = (
        part
        for piece in sorted(set().union(*lacking))
        for part in parts_of(jobs[0], None, writers[0], piece)
    )
    reports = [Report(renderers=workers) for _ in jobs]
    pin = device.type == "cuda"
    drafts: dict[int, Draft] = {}
    items = render_ahead(_PartImages(jobs), parts, workers=workers, pin=pin)
    for rendered in timed(items, reports):
        part = rendered[0].part
        for at, (job, writer, report) in enumerate(zip(jobs, writers, reports, strict=True)):
            if part.piece not in lacking[at]:
                continue
            draft = drafts.get(at) or Draft(job, writer, part.piece, device, report)
            drafts[at] = draft
            draft.add(rendered[at])
            if part.is_last:
                draft.commit(None)
        if part.is_last:
            drafts.clear()
        progress(len(part.rows))
    return reports


class _PartImages:
    """The views of a part for each teacher, each image of it decoded once."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._maker = jobs[0].maker
        self._num_rows, self._num_views = len(jobs[0].images), jobs[0].num_views
        self._sizes = [job.teacher.image_size for job in jobs]

    def __getitem__(self, part: Part) -> list[Rendered]:
        witness = witness_mask(part.rows, part.views, self._num_rows, self._num_views)
        sizes = sorted(set(self._sizes))
        made = self._maker.make_at(sizes, part.rows, part.views, witness)
        of_size = {
            size: rendered_part(part, views) for size, views in zip(sizes, made, strict=True)
        }
        return [of_size[size] for size in self._sizes]
