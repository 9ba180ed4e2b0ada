"""An extraction from end to end: check what is given, compute what is missing, seal."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcache.errors import CacheMismatch, DataError
from kdcache.extract.begin import index_of, open_writer
from kdcache.extract.claims import Claims, Compute, join
from kdcache.extract.cluster import Cluster
from kdcache.extract.engine import extract, renderers
from kdcache.extract.job import Job
from kdcache.extract.known import Known
from kdcache.extract.report import Report
from kdcache.extract.settings import Extraction
from kdcache.images import ImageIndex, ImageSet, index_images, refuse_suspects
from kdcache.precision import settle
from kdcache.progress import Bar, Progress
from kdcache.store import CacheWriter, open_cache
from kdcache.teachers import Teacher


@dataclass(frozen=True)
class Outcome:
    """A finished cache, and what it took."""

    path: Path
    num_images: int
    num_classes: int
    identity: str
    """The cache's name: the SHA-256 of its manifest."""
    num_bytes: int
    report: Report
    index_s: float
    seal_s: float

    def lines(self) -> list[str]:
        """What a person wants to know, a line each."""
        report = self.report
        labels = f"in {self.num_classes} classes" if self.num_classes else "without labels"
        lines = [
            f"{self.path}: {self.num_images:,} images {labels}, {self.num_bytes / 1e6:,.1f} MB, "
            f"sealed as {self.identity[:12]}"
        ]
        lines += report.lines()
        lines.append(f"indexing {self.index_s:.1f} s, sealing {self.seal_s:.1f} s")
        if report.unreadable:
            num = len(report.unreadable)
            lines.append(f"{num:,} images could not be read: see index/unreadable.json")
        return lines


def run_extraction(
    images: ImageSet,
    teacher: Teacher,
    out: Path,
    settings: Extraction,
    *,
    skip_unreadable: bool = False,
    device: torch.device,
    workers: int,
    bar: Bar,
    cluster: Cluster | None = None,
) -> Outcome:
    """Make the cache `out`, or complete it, beside other processes that do the same.

    Args:
        cluster: asks teachers of its own elsewhere; `device` is the kind that they run on.

    Raises:
        KdcacheError: of the kind that says what to mend; what was computed before is kept.
    """
    settings.check(teacher)
    with join(out) as claims:
        started = time.monotonic()
        if claims.is_first:
            index = index_or_refuse(images, skip_unreadable, workers, bar)
        else:
            index = index_of(images, out)
        index_s = time.monotonic() - started
        wanted = settings.precision
        precision = settle(wanted, device) if cluster is None else cluster.settle(wanted)
        job = settings.job(images, index, teacher, precision)
        return complete(
            job,
            out,
            claims,
            cluster=cluster,
            skip_unreadable=skip_unreadable,
            device=device,
            workers=workers,
            bar=bar,
            index_s=index_s,
        )


def complete(
    job: Job,
    out: Path,
    claims: Claims,
    *,
    known: Known | None = None,
    cluster: Cluster | None = None,
    skip_unreadable: bool,
    device: torch.device,
    workers: int,
    bar: Bar,
    index_s: float,
) -> Outcome:
    """Make the cache of a job, or complete it.

    Args:
        known: what another cache says already.
    """
    writer = open_writer(job, out, device, known)
    claims.begun()
    if writer.done:
        _check_views(job, out)
    elif known is not None:
        with bar("check", total=known.num_shards(writer), unit="shards") as progress:
            known.take(writer, progress)
    _check_room(writer, out)
    left = sum(len(writer.piece_rows(piece)) for piece in writer.missing())
    done = len(job.images) - left
    compute = (
        _compute_here(job, writer, known, device, workers)
        if cluster is None
        else cluster.compute_for(job, writer)
    )
    with bar("extract", total=len(job.images), unit="images", done=done) as progress:
        report = claims.work_through(writer, compute, progress)
    started = time.monotonic()
    with claims.alone():
        report.unreadable = writer.unreadable()
        if not writer.done:
            _refuse_unreadable(job, report.unreadable, skip=skip_unreadable)
        with bar("seal", total=writer.num_shards, unit="shards") as progress:
            writer.seal(progress)
    cache = open_cache(out)
    size = sum(file.num_bytes for file in cache.manifest.files.values())
    seal_s = time.monotonic() - started
    num_images, num_classes = len(job.images), len(job.images.classes)
    return Outcome(out, num_images, num_classes, cache.identity, size, report, index_s, seal_s)


def _compute_here(
    job: Job, writer: CacheWriter, known: Known | None, device: torch.device, workers: int
) -> Compute:
    """The one teacher of this process, and the processes that render for it."""
    rendering = renderers(job, device=device, workers=workers)

    def compute(pieces: Iterable[int], progress: Progress) -> Report:
        return extract(
            job, writer, pieces, rendering, known=known, device=device, progress=progress
        )

    return compute


def index_or_refuse(images: ImageSet, skip_unreadable: bool, workers: int, bar: Bar) -> ImageIndex:
    """The index of the images; files that are plainly no images are refused, unless skipped."""
    with bar("index", total=len(images), unit="images") as progress:
        index = index_images(images, threads=max(1, workers), progress=progress)
    if not skip_unreadable or len(index.suspects) == len(images):
        refuse_suspects(
            images,
            index,
            hint="take them out of the folder, or record them as unreadable: --skip-unreadable",
        )
    return index


def _check_views(job: Job, out: Path) -> None:
    """The number of views is no part of the recipe, so a finished cache may have another one."""
    there = open_cache(out).num_views
    if there != job.num_views:
        raise CacheMismatch(
            f"`{out}` is finished and holds {there} views, {job.num_views} are asked for",
            hint="give another --out",
        )


def _check_room(writer: CacheWriter, out: Path) -> None:
    """Say now that the disk is too small, rather than after hours."""
    needed, free = writer.missing_bytes(), shutil.disk_usage(out).free
    if needed > free:
        raise DataError(
            f"`{out}` needs {needed / 1e6:,.1f} MB more, its disk has {free / 1e6:,.1f} MB free",
            hint="free some space, choose another --out, or keep less: --arrays, --views, --dtype",
        )


def _refuse_unreadable(job: Job, unreadable: dict[int, str], *, skip: bool) -> None:
    """Decide about images without targets, before the cache is sealed."""
    if not unreadable or skip:
        return
    row = min(unreadable)
    raise DataError(
        f"{len(unreadable):,} of {len(job.images):,} images cannot be read, the first is "
        f"`{job.images.paths[row]}`: {unreadable[row]}; the others are computed and kept",
        hint="the same command with --skip-unreadable completes the cache and marks those rows; "
        "or take the files out and extract anew",
    )
