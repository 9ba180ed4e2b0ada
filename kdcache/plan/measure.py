"""Measuring: each stage of an extraction and of a student's step, alone and for some seconds.

Stages run the code of the extraction and of the training themselves, on some of the real images;
the teacher's weights may be random ones. What renders has one thread here, as the processes that
render ahead have.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from kdcache.extract import describe, hear
from kdcache.images import index_images
from kdcache.plan.question import Question
from kdcache.plan.rates import Rates
from kdcache.progress import Bar
from kdcache.recipe import Recipe
from kdcache.store import Grid, RowIndex, create_cache
from kdcache.train import rehearse
from kdcache.views import ViewMaker

_WRITTEN_BYTES = 128 << 20
_EXTRA_VIEWS = 8


def measure(
    question: Question,
    *,
    device: torch.device,
    cores: int,
    machine: str,
    disk: Path,
    bar: Bar,
    spend_s: float = 4.0,
) -> Rates:
    """The rates of this machine for what is asked about.

    Args:
        machine: in words.
        disk: a folder on the disk that the cache would be on; written to, and tidied.
        spend_s: seconds for each stage, about; a batch of a large teacher may take longer.
    """
    num_stages = 3 + (question.student is not None)
    with bar("measure", total=num_stages, unit="stages") as progress:
        with _one_thread():
            index_s = _index_s(question, spend_s)
            decode_s, view_s = _rendering(question.job.maker, spend_s)
        progress(1)
        teacher_s = _teacher_s(question, device, spend_s)
        progress(1)
        write_s, seal_s = _writing(question, disk)
        progress(1)
        rates = Rates(
            machine=machine,
            device="cuda" if device.type == "cuda" else "cpu",
            cores=cores,
            threads=1 if device.type == "cuda" else torch.get_num_threads(),
            index_s=_rounded(index_s),
            decode_s=_rounded(decode_s),
            view_s=_rounded(view_s),
            teacher_s=_rounded(teacher_s),
            write_s=_rounded(write_s),
            seal_s=_rounded(seal_s),
            about=question.about(),
        )
        if question.student is not None:
            rates = _with_student(question, rates, device, spend_s)
            progress(1)
    return rates


def _with_student(question: Question, rates: Rates, device: torch.device, spend_s: float) -> Rates:
    """The same rates, and those of the student that is asked about."""
    recipe = question.student
    assert recipe is not None
    with _one_thread():
        _, view_s = _rendering(question.student_maker(recipe), spend_s)
    step_s, batch = _student(question, recipe, device, spend_s)
    found = {"student_view_s": _rounded(view_s), "student_s": _rounded(step_s)}
    return rates.model_copy(update={**found, "student_batch": batch, "about": question.about()})


def _index_s(question: Question, spend_s: float) -> float:
    images = question.job.images
    return _seconds(lambda: index_images(images, threads=1), spend_s) / len(images)


def _rendering(maker: ViewMaker, spend_s: float) -> tuple[float, float]:
    """Seconds to decode an image, and to render a view of it: of some views, and of some more."""
    in_set = maker.policy.views_in_set
    few, many = in_set, in_set * (1 + max(1, _EXTRA_VIEWS // in_set))
    rows = np.arange(len(maker.images))
    took = {}
    for views in (few, many):
        shown = np.arange(views)
        make = partial(maker.make, rows, shown)
        took[views] = _seconds(make, spend_s) / len(rows)
    view_s = max((took[many] - took[few]) / (many - few), 0.0)
    return max(took[few] - few * view_s, 0.0), view_s


def _teacher_s(question: Question, device: torch.device, spend_s: float) -> float:
    """Seconds a view, in batches as large as can be shown twice in the time that there is."""
    job = question.job
    job.teacher.to(device)
    sides = [
        job.policy.side(view, job.teacher.image_size) for view in range(job.policy.views_in_set)
    ]
    each = {}
    for side in set(sides):

        def show(batch_size: int, side: int = side) -> float:
            pixels = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8)
            smaller = replace(job, batch_size=batch_size)
            return _seconds(partial(hear, smaller, pixels, device), spend_s) / batch_size

        each[side], _ = _at_size(show, job.batch_size, device, calls=3, spend_s=spend_s)
    return sum(each[side] for side in sides) / len(sides)


def _writing(question: Question, disk: Path) -> tuple[float, float]:
    """Seconds for what is said of a view to be kept, and to be gone through at the end."""
    job = question.job
    grids = [Grid.of(spec, question.num_images, job.num_views) for spec in job.array_specs()]
    num_rows = min(question.num_images, max(grid.shard_rows for grid in grids))
    row_bytes = sum(part.row_bytes for grid in grids for part in grid.parts())
    num_views = max(1, min(job.num_views, _WRITTEN_BYTES // (num_rows * row_bytes)))
    random = np.random.default_rng(0)
    index = RowIndex(
        image_ids=random.integers(0, 256, (num_rows, 16), np.uint8),
        labels=np.full(num_rows, -1, np.int32),
        classes=(),
        paths=[f"{row:09}" for row in range(num_rows)],
    )
    with TemporaryDirectory(prefix=".kdcache-plan-", dir=disk) as folder:
        writer = create_cache(
            Path(folder) / "cache",
            recipe=describe(job),
            arrays=job.array_specs(),
            num_views=num_views,
            index=index,
            made_with=question.made_with,
        )
        write_s = 0.0
        for piece in writer.missing():
            rows = len(writer.piece_rows(piece))
            values = {
                spec.name: random.standard_normal((rows, num_views, spec.dim), np.float32)
                for spec in job.array_specs()
            }
            started = time.perf_counter()
            writer.put_piece(piece, values, {}, {})
            write_s += time.perf_counter() - started
        started = time.perf_counter()
        writer.seal()
        seal_s = time.perf_counter() - started
    return write_s / (num_rows * num_views), seal_s / (num_rows * num_views)


def _student(
    question: Question, recipe: Recipe, device: torch.device, spend_s: float
) -> tuple[float, int]:
    """A step's seconds for each image, and in how large batches that was found."""
    maker, side = question.student_maker(recipe), question.teacher_side(recipe)
    queue = recipe.needs.negatives
    num_samples = question.num_images if queue == "all" else min(question.num_images, 2 * queue)

    def step(batch_size: int) -> float:
        smaller = recipe.train.model_copy(update={"batch_size": batch_size})
        took = rehearse(
            replace(recipe, train=smaller),
            maker,
            side,
            num_samples=num_samples,
            steps=2 if device.type == "cpu" else 10,
            device=device,
        )
        return took / batch_size

    return _at_size(step, recipe.train.batch_size, device, calls=4, spend_s=spend_s)


def _at_size(
    each: Callable[[int], float], size: int, device: torch.device, *, calls: int, spend_s: float
) -> tuple[float, int]:
    """Seconds for one of a batch of `size`.

    Where that would take too long, two smaller batches tell what a batch takes whatever its size
    and what each one in it adds.

    Args:
        each: seconds for one of a batch of a size.
        calls: batches that it looks at.

    Returns:
        The seconds, and the largest size that was looked at.
    """
    small = min(size, 8)
    if device.type == "cuda" or size <= 2 * small:
        return each(size), size
    of_small = small * each(small)
    affordable = int(3 * spend_s * small / (calls * max(of_small, 1e-9)))
    at = min(size, max(2 * small, 1 << max(affordable, 1).bit_length() - 1))
    of_at = at * each(at)
    one_more = max(of_at - of_small, 0.0) / (at - small)
    return of_at / size + one_more * (size - at) / size, at


def _seconds(work: Callable[[], object], spend_s: float) -> float:
    """The median of some calls, after one that warms up."""
    work()
    took: list[float] = []
    while len(took) < 2 or (sum(took) < spend_s / 4 and len(took) < 9):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def _rounded(seconds: float) -> float:
    """To as many digits as mean anything."""
    return float(f"{seconds:.3g}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a process that renders ahead."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
