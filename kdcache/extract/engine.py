"""The engine: pieces of a cache that are missing are rendered, shown to the teacher and kept.

What a piece holds depends on the job alone. The teacher is always shown as many views at once as
the job says, filled up with black ones at the end of a piece: what it says of a view then does not
depend on the views beside it (measured: it depends on their number, in the last bits). An
unreadable image is a black one too. So the bytes are the same for any number of workers, in any
order, after any interruption, and whether values were known before or not.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdcache.extract.ask import Asked, ask
from kdcache.extract.job import Job
from kdcache.extract.known import NOTHING, SHOW, Known
from kdcache.extract.report import Report
from kdcache.precision import without_tf32
from kdcache.progress import Progress, silent
from kdcache.shapes import Bool, Int64, UInt8
from kdcache.store import CacheWriter, Taken
from kdcache.views import Made, Witness, witness_mask, witnesses_to_arrays
from kdcache.workers import Renderers

T = TypeVar("T")

_UNDER_WAY = 1
"""Batches that a device may be busy with while the next one is put together."""


class Part(NamedTuple):
    """Some rows of a piece with the same views to render; perhaps none."""

    piece: int
    rows: Int64[np.ndarray, " R"]
    views: Int64[np.ndarray, " v"]
    is_shown: Bool[np.ndarray, " v"]
    """Which of the views the teacher is to see; the others are rendered for their witnesses."""
    is_last: bool
    """Of its piece."""


class _Seen(NamedTuple):
    """The views of one side in pixels that the teacher is to see."""

    views: Int64[np.ndarray, " v"]
    pixels: UInt8[Tensor, "R v S S 3"]


class _Waiting(NamedTuple):
    """Views that wait for their batch to be full."""

    places: Int64[np.ndarray, " n"]
    """Row of the piece times views plus view."""
    pixels: UInt8[Tensor, "n S S 3"]


class Rendered(NamedTuple):
    """A part, rendered; a named tuple, so that torch can pin what is in it."""

    part: Part
    seen: list[_Seen]
    unreadable: dict[int, str]
    witnesses: list[Witness]
    decode_s: float
    render_s: float


def renderers(
    job: Job, *, device: torch.device, workers: int, stay: bool = False
) -> Renderers[Rendered]:
    """What renders the views of a job for `extract`, in `workers` processes.

    Args:
        stay: keep the processes from one call of `extract` to the next.
    """
    return Renderers(_PartImages(job), workers=workers, pin=device.type == "cuda", stay=stay)


def extract(
    job: Job,
    writer: CacheWriter,
    pieces: Iterable[int],
    rendering: Renderers[Rendered],
    *,
    known: Known | None = None,
    device: torch.device,
    progress: Progress = silent,
) -> Report:
    """Compute pieces, and keep each as soon as it is whole.

    Args:
        pieces: an iterator is asked for the next one when there is room to render it.
        rendering: as `renderers` gives it.
        known: what need not be computed.
        progress: told of images.

    Raises:
        DataError: an image has changed since it was indexed;
            the teacher gave a value that is not finite, or does not fit into the dtype.
    """
    make_ready(job, device)
    report = Report(renderers=rendering.workers)
    parts = (part for piece in pieces for part in parts_of(job, known, writer, piece))
    draft = None
    for rendered in timed(rendering(parts), [report]):
        part = rendered.part
        if draft is None:
            draft = Draft(job, writer, part.piece, device, report)
        draft.add(rendered)
        progress(len(part.rows))
        if part.is_last:
            draft.commit(known)
            progress(draft.num_rows_left)
            draft = None
    return report


def make_ready(job: Job, device: torch.device) -> None:
    """Put the teacher, and what torch computes with, where the job wants them."""
    if job.precision == "fp32":
        without_tf32()
    if device.index is not None:
        torch.cuda.set_device(device)  # or the thread that pins memory opens the first one, too
    job.teacher.to(device)


class Draft:
    """A piece under way."""

    def __init__(
        self, job: Job, writer: CacheWriter, piece: int, device: torch.device, report: Report
    ) -> None:
        self._job = job
        self._writer = writer
        self._piece = piece
        self._device = device
        self._report = report
        self._rows = writer.piece_rows(piece)
        self._values = {
            spec.name: np.zeros((len(self._rows), job.num_views, spec.dim), np.float32)
            for spec in job.array_specs()
        }
        self._unreadable: dict[int, str] = {}
        self._witnesses: list[Witness] = []
        self._waiting: dict[int, list[_Waiting]] = {}
        self._asked: deque[tuple[Int64[np.ndarray, " n"], Asked]] = deque()
        self.num_rows_left = len(self._rows)
        """Rows of which nothing was rendered."""

    def add(self, rendered: Rendered) -> None:
        """Take the views of a part in, and show the teacher as many batches as are full; with the
        last part, what is left as well."""
        started = time.monotonic()
        self.num_rows_left -= len(rendered.part.rows)
        self._unreadable |= rendered.unreadable
        self._witnesses += rendered.witnesses
        places = (rendered.part.rows - self._rows.start)[:, None] * self._job.num_views
        for seen in rendered.seen:
            waiting = self._waiting.setdefault(seen.pixels.shape[2], [])
            new = _Waiting((places + seen.views).ravel(), seen.pixels.flatten(0, 1))
            while len(new.places):
                room = self._job.batch_size - sum(len(one.places) for one in waiting)
                waiting.append(_Waiting(new.places[:room], new.pixels[:room]))
                new = _Waiting(new.places[room:], new.pixels[room:])
                if len(waiting[-1].places) == room:
                    self._show(waiting)
            self._report.views += seen.pixels.shape[0] * seen.pixels.shape[1]
        if rendered.part.is_last:
            self._show_rest()
        self._report.decode_s += rendered.decode_s
        self._report.render_s += rendered.render_s
        self._report.teacher_s += time.monotonic() - started

    def _show_rest(self) -> None:
        """Show the teacher what does not fill a batch."""
        for waiting in self._waiting.values():
            if waiting:
                self._show(waiting)
        while self._asked:
            self._keep_oldest()

    def commit(self, known: Known | None) -> None:
        """Add what is known, and keep the piece."""
        started = time.monotonic()
        taken: dict[str, Taken] = {}
        if known is not None:
            for name, values in self._values.items():
                views = self._writer.wanted_views(name, self._piece)
                stored = known.taken(name, self._rows, views)
                if stored is None:
                    known.fill(values, name, self._rows, views)
                else:
                    taken[name] = stored
            self._unreadable |= known.unreadable(np.array(self._rows))
            self._witnesses += known.witnesses(np.array(self._rows))
        self._writer.put_piece(
            self._piece,
            self._values,
            unreadable=self._unreadable,
            witness=witnesses_to_arrays(self._witnesses),
            taken=taken,
        )
        self._report.writing_s += time.monotonic() - started

    def _show(self, waiting: list[_Waiting]) -> None:
        """Show the teacher a batch, which then is empty again."""
        places = np.concatenate([one.places for one in waiting])
        parts = [one.pixels for one in waiting]
        waiting.clear()
        self._asked.append((places, ask(self._job, parts, self._device)))
        if len(self._asked) > _UNDER_WAY:
            self._keep_oldest()

    def _keep_oldest(self) -> None:
        """Keep what the teacher has said of the batch that it was shown first."""
        places, asked = self._asked.popleft()
        for name, answers in asked.answers().items():
            if name in self._values:
                values = self._values[name]
                values.reshape(-1, values.shape[2])[places] = answers.numpy()
        copy_s, forward_s = asked.seconds()
        self._report.copy_s += copy_s
        self._report.forward_s += forward_s


class _PartImages:
    """The views of a part, each image of it decoded once."""

    def __init__(self, job: Job) -> None:
        self._maker = job.maker
        self._num_rows, self._num_views = len(job.images), job.num_views

    def __getitem__(self, part: Part) -> Rendered:
        # Of known views those alone are rendered whose witness is lacking.
        witness = witness_mask(part.rows, part.views, self._num_rows, self._num_views)
        made = self._maker.make(part.rows, part.views, witness)
        return rendered_part(part, made)


def parts_of(job: Job, known: Known | None, writer: CacheWriter, piece: int) -> list[Part]:
    """What there is to render of a piece, in parts of about a batch; one at least."""
    rows = np.array(writer.piece_rows(piece))
    tasks = np.full((len(rows), job.num_views), SHOW) if known is None else known.tasks(rows)
    patterns, pattern_of = np.unique(tasks, axis=0, return_inverse=True)
    parts = []
    for number, pattern in enumerate(patterns):
        views = np.flatnonzero(pattern != NOTHING)
        members = rows[pattern_of.ravel() == number]
        step = max(1, job.batch_size // max(1, len(views)))
        parts += [
            Part(piece, members[start : start + step], views, pattern[views] == SHOW, False)
            for start in range(0, len(members) if len(views) else 0, step)
        ]
    if not parts:
        none = np.empty(0, np.int64)
        parts = [Part(piece, none, none, none == SHOW, False)]
    return [*parts[:-1], parts[-1]._replace(is_last=True)]


def rendered_part(part: Part, made: Made) -> Rendered:
    """What a part's views are when they are made."""
    return Rendered(
        part, _by_side(made, part), made.unreadable, made.witnesses, made.decode_s, made.render_s
    )


def _by_side(made: Made, part: Part) -> list[_Seen]:
    """The views that the teacher is to see, those together that it can see at once."""
    places: dict[int, list[int]] = {}
    for place in np.flatnonzero(part.is_shown).tolist():
        places.setdefault(made.pixels[place].shape[1], []).append(place)
    return [
        _Seen(
            part.views[alike], torch.from_numpy(np.stack([made.pixels[i] for i in alike], axis=1))
        )
        for alike in places.values()
    ]


def timed(items: Iterator[T], reports: Sequence[Report]) -> Iterator[T]:
    """The same items; the time spent waiting for each is added up."""
    started = time.monotonic()
    for item in items:
        for report in reports:
            report.waiting_s += time.monotonic() - started
        yield item
        started = time.monotonic()
