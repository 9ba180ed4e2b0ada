"""The engine: pieces of a cache that are missing are rendered, shown to the teacher and kept.

What a piece holds depends on the job alone: batches never cross the border of a piece, and an
unreadable image leaves a black one in its place. So the bytes are the same for any number of
workers, in any order, after any interruption.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcache.extract.job import Job
from kdcache.precision import autocast, without_tf32
from kdcache.progress import Progress, silent
from kdcache.shapes import Float, UInt8
from kdcache.store import CacheWriter
from kdcache.views import Witness, witness_mask, witnesses_to_arrays
from kdcache.workers import render_ahead


@dataclass
class Report:
    """Where the time went, in seconds of the one process that feeds the teacher."""

    views: int = 0
    waiting_s: float = 0.0
    """For rendered views: the images bind when this is large."""
    teacher_s: float = 0.0
    """Copying to the device, forward pass, copying back."""
    writing_s: float = 0.0
    """Pieces and shards."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """All rows of the cache without targets, and why."""

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return self.waiting_s + self.teacher_s + self.writing_s


class _Rendered(NamedTuple):
    """Some rows of a piece in all views; a named tuple, so that torch can pin what is in it."""

    piece: int
    offset: int
    """Rows of the piece before these."""
    pixels: list[UInt8[Tensor, "R _ _ _ 3"]]
    """The views of each side together, as in the job's `views_by_side`."""
    unreadable: dict[int, str]
    witnesses: list[Witness]

    @property
    def num_rows(self) -> int:
        return len(self.pixels[0])


def extract(
    job: Job,
    writer: CacheWriter,
    *,
    device: torch.device,
    workers: int,
    progress: Progress = silent,
) -> Report:
    """Compute every piece that the cache lacks. It is not sealed: that is `writer.seal`'s.

    Args:
        progress: told of images.

    Raises:
        DataError: an image has changed since it was indexed;
            the teacher gave a value that is not finite, or does not fit into the dtype.
    """
    missing = writer.missing()
    if job.precision == "fp32":
        without_tf32()
    job.teacher.to(device)
    report = Report()
    piece = _Piece(job)
    images = _PieceImages(job, writer, missing)
    pin = device.type == "cuda"
    items = render_ahead(images, range(len(images)), workers=workers, pin=pin)
    for rendered in _timed(items, report):
        started = time.monotonic()
        piece.add(rendered, _see(job, rendered.pixels, device))
        report.teacher_s += time.monotonic() - started
        progress(rendered.num_rows)
        report.views += rendered.num_rows * job.num_views
        if rendered.offset + rendered.num_rows == len(writer.piece_rows(rendered.piece)):
            started = time.monotonic()
            piece.commit(writer, rendered.piece)
            report.writing_s += time.monotonic() - started
            piece = _Piece(job)
    report.unreadable = writer.unreadable()
    return report


class _Piece:
    """The rows of one piece, as they come."""

    def __init__(self, job: Job) -> None:
        self._names = [spec.name for spec in job.array_specs()]
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in self._names}
        self._unreadable: dict[int, str] = {}
        self._witnesses: list[Witness] = []

    def add(self, rendered: _Rendered, seen: dict[str, np.ndarray]) -> None:
        for name in self._names:
            self._values[name].append(seen[name])
        self._unreadable |= rendered.unreadable
        self._witnesses += rendered.witnesses

    def commit(self, writer: CacheWriter, piece: int) -> None:
        writer.put_piece(
            piece,
            {name: np.concatenate(parts) for name, parts in self._values.items()},
            unreadable=self._unreadable,
            witness=witnesses_to_arrays(self._witnesses),
        )


def _see(
    job: Job, pixels: list[UInt8[Tensor, "R _ _ _ 3"]], device: torch.device
) -> dict[str, Float[np.ndarray, "R V _"]]:
    """What the teacher says of these views, in float32 and in the order of the view indices."""
    groups: dict[str, list[Tensor]] = {"feature": [], "embedding": []}
    with torch.inference_mode(), autocast(job.precision, device):
        for views in pixels:
            batches = torch.split(views.flatten(0, 1), job.batch_size)
            said = [job.teacher(images.to(device, non_blocking=True)) for images in batches]
            for name, parts in zip(groups, zip(*said, strict=True), strict=True):
                if parts[0] is not None:
                    whole = torch.cat(parts).float()
                    groups[name].append(whole.reshape(*views.shape[:2], -1))
    order = np.argsort(np.concatenate(job.views_by_side))
    return {
        name: np.take(torch.cat(parts, dim=1).cpu().numpy(), order, axis=1)
        for name, parts in groups.items()
        if parts
    }


class _PieceImages:
    """Item n: some rows of a missing piece in all views, decoded once."""

    def __init__(self, job: Job, writer: CacheWriter, missing: list[int]) -> None:
        self._maker = job.maker
        self._views = job.views
        self._num_rows = len(job.images)
        self._groups = job.views_by_side
        # Full batches of every side, those of the fewest views too.
        rows_at_once = max(1, job.batch_size // min(map(len, self._groups)))
        self._parts = [
            (piece, start - rows.start, range(start, min(start + rows_at_once, rows.stop)))
            for piece in missing
            for rows in [writer.piece_rows(piece)]
            for start in range(rows.start, rows.stop, rows_at_once)
        ]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, item: int) -> _Rendered:
        piece, offset, part = self._parts[item]
        rows = np.array(part)
        witness = witness_mask(rows, self._views, self._num_rows, len(self._views))
        made = self._maker.make(rows, self._views, witness)
        pixels = [
            torch.from_numpy(np.stack([made.pixels[view] for view in group], axis=1))
            for group in self._groups
        ]
        return _Rendered(piece, offset, pixels, made.unreadable, made.witnesses)


def _timed(items: Iterator[_Rendered], report: Report) -> Iterator[_Rendered]:
    """The same items; the time spent waiting for each is added up."""
    started = time.monotonic()
    for item in items:
        report.waiting_s += time.monotonic() - started
        yield item
        started = time.monotonic()
