"""The forecast: hours of an extraction and seconds of an epoch, from the rates of their stages.

Processes that render work beside the one that feeds the teacher and keeps what it says; so the
slower side binds. On a CPU both want the same cores, so all of the work by all of the cores binds
where that is more. Indexing and sealing are done by one process, before and after.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.plan.question import Question
from kdcache.plan.rates import Rates
from kdcache.store import PIECE_ROWS


@dataclass(frozen=True)
class Machines:
    """What there is to work with."""

    nodes: int
    gpus: int
    """Processes with a teacher in each node: one a GPU, or one where there is none."""
    workers: int
    """Processes that render, for each of them."""


@dataclass(frozen=True)
class Forecast:
    """How long something takes."""

    stages: Mapping[str, float]
    """Seconds of each stage if it were alone, on all of its processes."""
    total_s: float
    binds: str
    """The stage to make faster first; `processor`: all of them share the cores."""


@dataclass(frozen=True)
class Epochs:
    """An epoch of a student on one device, its targets looked up and its teacher live."""

    cached: Forecast
    live: Forecast

    def break_even(self, extraction_s: float) -> float | None:
        """Epochs after which the extraction has paid for itself, those of all students together;
        None: it never does."""
        saved = self.live.total_s - self.cached.total_s
        return extraction_s / saved if saved > 0 else None


def forecast_extraction(question: Question, rates: Rates, machines: Machines) -> Forecast:
    """How long the extraction takes, from the first image read to the manifest."""
    num_images, num_views = question.num_images, question.job.num_views
    processes = machines.nodes * machines.gpus
    image_s = num_images * (rates.decode_s + num_views * rates.view_s)
    teacher_s = _views_shown(question) * rates.teacher_s
    write_s = num_images * num_views * rates.write_s
    index_s = num_images * rates.index_s / min(max(machines.workers, 1), rates.cores)
    seal_s = num_images * num_views * rates.seal_s
    main = {"teacher": teacher_s / processes, "write": write_s / processes}
    images = {"images": image_s / _rendering(machines, rates)}
    body = _beside(images, main, image_s, teacher_s + write_s, rates, machines)
    stages = {"index": index_s, **images, **main, "seal": seal_s}
    parts = {"index": index_s, body.binds: body.total_s, "seal": seal_s}
    binds = max(parts, key=lambda name: parts[name])
    return Forecast(stages, index_s + body.total_s + seal_s, binds)


def forecast_epochs(question: Question, rates: Rates, workers: int) -> Epochs:
    """How long an epoch of the student takes, on one device.

    Raises:
        ConfigError: the rates say nothing of a student.
    """
    recipe, job = question.student, question.job
    assert recipe is not None
    view_s, step_s = rates.require_student()
    needs, batch = recipe.needs, recipe.train.batch_size
    shown = question.num_images // batch * batch
    beside = 1 + needs.neighbours
    rendered = needs.views if needs.rendered is None else needs.rendered
    own_s = shown * beside * (rates.decode_s + rendered * view_s)
    same = job.teacher.image_size == recipe.student.image_size and rendered == needs.views
    others_s = 0.0 if same else shown * beside * (rates.decode_s + needs.views * rates.view_s)
    # The live teacher is shown as many views at once as in the extraction, filled up.
    at_once = max(1, job.batch_size // job.num_views) * job.num_views
    looked_at = shown // batch * beside * needs.views * (-(-batch // at_once) * at_once)
    cached = {"step": shown * step_s}
    live = {**cached, "teacher": looked_at * rates.teacher_s}
    return Epochs(
        _epoch(own_s, cached, rates, workers), _epoch(own_s + others_s, live, rates, workers)
    )


def _epoch(image_s: float, main: Mapping[str, float], rates: Rates, workers: int) -> Forecast:
    one = Machines(1, 1, workers)
    images = {"images": image_s / _rendering(one, rates)}
    return _beside(images, main, image_s, sum(main.values()), rates, one)


def _beside(
    images: Mapping[str, float],
    main: Mapping[str, float],
    image_s: float,
    main_s: float,
    rates: Rates,
    machines: Machines,
) -> Forecast:
    """Rendering beside what the other processes do.

    Args:
        images, main: seconds of the stages.
        image_s, main_s: seconds of work in all: of cores, and of processes.
    """
    stages = {**images, **main}
    most = max(stages, key=lambda name: stages[name])
    if machines.workers == 0:
        return Forecast(stages, sum(stages.values()), most)
    sides = {"images": sum(images.values()), max(main, key=lambda n: main[n]): sum(main.values())}
    if rates.device == "cpu":
        sides["processor"] = (image_s + rates.threads * main_s) / (rates.cores * machines.nodes)
    binds = max(sides, key=lambda name: sides[name])
    return Forecast(stages, sides[binds], binds)


def _rendering(machines: Machines, rates: Rates) -> int:
    """Cores that render."""
    return machines.nodes * min(machines.gpus * max(machines.workers, 1), rates.cores)


def _views_shown(question: Question) -> int:
    """Views that the teacher looks at, those that fill the last batch of a piece up included."""
    job = question.job
    counts: dict[int, int] = {}
    for view in range(job.policy.views_in_set):
        side = job.policy.side(view, job.teacher.image_size)
        counts[side] = counts.get(side, 0) + job.num_views // job.policy.views_in_set
    whole, rest = divmod(question.num_images, PIECE_ROWS)
    return sum(
        num * _filled(rows * views, job.batch_size)
        for views in counts.values()
        for num, rows in ((whole, PIECE_ROWS), (1, rest))
    )


def _filled(views: int, batch_size: int) -> int:
    return -(-views // batch_size) * batch_size
