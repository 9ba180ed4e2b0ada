"""A run from end to end: check what is given, build what learns, train, keep the student."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache import distributed
from kdcache.derive import diagnose
from kdcache.errors import ConfigError, TrainingError
from kdcache.extract import teacher_of
from kdcache.files import canonical_json, exclusive, leaves, put_if_absent
from kdcache.images import ImageSet
from kdcache.methods import Method
from kdcache.progress import Bar, Tell, silent_bar
from kdcache.recipe import Recipe, build_recipe, settle_precision
from kdcache.shapes import Int64
from kdcache.store import Cache
from kdcache.students import STUDENT_FILE, build_student, save_student
from kdcache.targets import Queue
from kdcache.teachers import Teacher
from kdcache.train.checkpoint import Random, State, load_checkpoint
from kdcache.train.data import RowImages
from kdcache.train.lesson import Lesson, lesson_alone, lesson_from, views_of
from kdcache.train.log import read_metrics
from kdcache.train.loop import Learner, Watch, open_learner, train
from kdcache.train.needs import check_caches, check_num_views, check_numbers
from kdcache.train.sharing import refuse_unlike
from kdcache.versions import library_versions
from kdcache.views import check_witnesses, other_releases, witnesses_from_arrays

RECIPE = "recipe.json"
_QUERIES = 256
"""Images that the teacher's ranking is diagnosed on."""


@dataclass(frozen=True)
class Online:
    """Ask the teacher of the cache anew, on the same views, instead of looking up what it said."""

    weights: Path | None = None
    """Its file, where it was loaded from one."""


@dataclass(frozen=True)
class Job:
    """A run to begin or to go on with."""

    recipe: Recipe
    run: Path
    caches: Sequence[Cache] = ()
    """What each teacher said of the images; none for a method without a teacher."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    stopped_by: int
    """The number of the signal that stopped it; the same command goes on. 0: it is finished."""
    student: Path | None
    """The trained student, when finished."""
    last: dict[str, Any]
    """The last record of the loss."""

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done."""
        return self.stopped_by == 0


def run_training(
    recipe: Recipe,
    images: ImageSet,
    run: Path,
    *,
    caches: Sequence[Cache] = (),
    online: Online | None = None,
    watch: Watch | None = None,
    device: torch.device,
    workers: int,
    bar: Bar,
    tell: Tell,
) -> Outcome:
    """Train the recipe's student on `images` in the folder `run`, or go on where it stopped.

    Args:
        caches: what each teacher said of the images; none for a method without a teacher.
        watch: examines the student at some epochs, and is no part of the experiment.
        tell: told, before the first step, of images that take no part, of pixels that differ within
            tolerance, and of targets that little can be learned from.

    Raises:
        ConfigError: the recipe does not fit, or `run` holds another experiment.
        CacheMismatch: a cache does not serve the method, or its views differ from those here.
        TeacherError: the live teacher is not the one that the cache names.
        DataError: images are missing or have changed.
        TrainingError: the loss is not finite, or the checkpoint cannot be read.
    """
    (outcome,) = run_together(
        [Job(recipe, run, caches)], images,
        online=online, watch=watch, device=device, workers=workers, bar=bar, tell=tell,
    )  # fmt: skip
    return outcome


def run_together(
    jobs: Sequence[Job],
    images: ImageSet,
    *,
    online: Online | None = None,
    watch: Watch | None = None,
    device: torch.device,
    workers: int,
    bar: Bar,
    tell: Tell,
) -> list[Outcome]:
    """Train several students side by side on views that are rendered once.

    Each is what `run_training` alone would make of it, and so are its checkpoints and losses; of
    its metrics only `images_per_s` differs.

    Raises:
        ConfigError: as of `run_training`, or the runs do not show the same images.
        CacheMismatch, TeacherError, DataError, TrainingError: as of `run_training`.
    """
    if not distributed.is_first():
        bar, tell = silent_bar, _nobody
    jobs = [replace(job, recipe=settle_precision(job.recipe, device)) for job in jobs]
    prepared = [_prepare(job, images, online, device, tell, bar) for job in jobs]
    refuse_unlike([job.recipe for job in jobs], [lesson for lesson, _ in prepared])
    with ExitStack() as stack:
        learners = []
        for job, (lesson, source) in zip(jobs, prepared, strict=True):
            stack.enter_context(_claimed(job.run, job.recipe, source, job.caches))
            learners.append(stack.enter_context(_learner(job, lesson, device, tell)))
        stream = learners[0].lesson.stream
        total = jobs[0].recipe.train.epochs * stream.epoch_length
        done = min(learner.state.step for learner in learners) * stream.batch_size
        title = f"train {', '.join(job.recipe.method for job in jobs)}"
        with bar(title, total=total, unit="images", done=done) as progress:
            stopped_by = train(
                learners, device=device, workers=workers, watch=watch, progress=progress
            )
        return [_outcome(learner, stopped_by) for learner in learners]


def _outcome(learner: Learner, stopped_by: int) -> Outcome:
    """How a run ended, whose student is kept if it is finished."""
    student = None if stopped_by else learner.run / STUDENT_FILE
    if student is not None and distributed.is_first():
        save_student(student, learner.state.student, {"method": learner.recipe.method})
    records = [record for record in read_metrics(learner.run) if "loss" in record]
    return Outcome(stopped_by, student, records[-1] if records else {})


def _prepare(
    job: Job,
    images: ImageSet,
    online: Online | None,
    device: torch.device,
    tell: Tell,
    bar: Bar,
) -> tuple[Lesson, dict[str, Any]]:
    """What a run shows, all checks passed, and what of it is part of the experiment."""
    recipe, caches = job.recipe, job.caches
    check_caches(recipe, caches, online=online is not None)
    source: dict[str, Any]
    if caches:
        live = _live_teacher(caches[0], online)
        # A copy of a part may hold more views by now than when the run was begun.
        views = _views_begun_with(job.run) or views_of(caches, recipe)
        check_num_views(views, caches)
        lesson = lesson_from(
            caches, recipe, images,
            device=device, tell=tell, bar=bar, live=live, num_views=views,
        )  # fmt: skip
        source = {
            "caches": [cache.identity for cache in caches],
            "online": live is not None,
            "views": views,
        }
    else:
        lesson, fingerprint = lesson_alone(recipe, images, bar)
        source = {"images": fingerprint}
    check_numbers(recipe, lesson.stream.num_samples)
    for cache, rows in zip(caches, lesson.rows, strict=True):
        _check_pixels(cache, rows, lesson, tell)
    return lesson, source


@contextmanager
def _learner(job: Job, lesson: Lesson, device: torch.device, tell: Tell) -> Iterator[Learner]:
    """The student of a run as it stands."""
    state = build_state(job.recipe, lesson, device)
    load_checkpoint(job.run, state)
    steps = distributed.everyones(state.step)
    if len(set(steps)) > 1:
        raise TrainingError(
            f"the processes found `{job.run}` at different steps: {steps}",
            hint="put --out on a disk that all machines share",
        )
    with open_learner(job.recipe, lesson, state, job.run) as learner:
        _tell_diagnosis(job.recipe, lesson, learner.queues, tell)
        yield learner


def _nobody(_: str) -> None:
    """Told of what the first process tells the user."""


def _check_pixels(cache: Cache, rows: Int64[np.ndarray, " N"], lesson: Lesson, tell: Tell) -> None:
    """Render some of the cache's witnesses again, at its teacher's size, and compare.

    Args:
        rows: the row of each sample in this cache.
    """
    maker = lesson.images.maker
    places = np.full(cache.num_rows, -1, np.int64)
    places[rows] = lesson.images.rows
    images = RowImages(
        source=maker.images.source,
        paths=cache.paths,
        labels=cache.labels,
        classes=cache.classes,
        images=maker.images,
        places=places,
    )
    as_seen = replace(
        maker, images=images, ids=cache.image_ids, size=cache.recipe["teacher"]["image_size"]
    )
    here = [w for w in witnesses_from_arrays(cache.witness()) if places[w.row] >= 0]
    releases = other_releases(cache.manifest.versions)
    if releases:
        tell(
            f"views are rendered by other releases than those of `{cache.path}`: "
            f"{'; '.join(releases)}"
        )
    report = check_witnesses(here, as_seen)
    if releases or report.differences:
        tell(str(report))


def _live_teacher(cache: Cache, online: Online | None) -> Teacher | None:
    return None if online is None else teacher_of(cache.recipe, online.weights, cache.path)


def _tell_diagnosis(recipe: Recipe, lesson: Lesson, queues: list[Queue], tell: Tell) -> None:
    """Look at the teacher's ranking of the queue, for a method that copies it."""
    needs = recipe.needs
    temperatures = needs.temperatures
    if temperatures is None or not queues:
        return
    (queue, *_), (targets, *_) = queues, lesson.targets
    samples = lesson.stream.batch(0)[:_QUERIES]
    view = lesson.plan.views(0)[needs.queue_view]
    own = torch.from_numpy(queue.own_slots(samples)).to(targets.device)
    found = diagnose(
        torch.nn.functional.normalize(targets.take(samples, view), dim=1),
        queue.negatives,
        student_temperature=temperatures[0],
        teacher_temperature=temperatures[1],
        own=own if needs.mask_own else None,
        own_column=needs.own_column,
    )
    tell(f"the teacher's ranking: {found}")
    config = recipe.method_config.model_dump()
    sampling = {key: config.get(key, 0) for key in ("sampled", "nearest")}
    for advice in found.advice(config.keys(), **sampling):
        tell(advice)


@contextmanager
def _claimed(
    run: Path, recipe: Recipe, source: dict[str, Any], caches: Sequence[Cache]
) -> Iterator[None]:
    """Hold the run's folder, made now or found to hold this same experiment.

    Args:
        source: what the run learns from: identities of caches, or the images' fingerprint.
    """
    if not distributed.is_first():
        distributed.barrier()  # the first process has made or checked it
        yield
        return
    _claim(run, recipe, source, caches)
    with exclusive(run):
        distributed.barrier()
        yield


def _claim(run: Path, recipe: Recipe, source: dict[str, Any], caches: Sequence[Cache]) -> None:
    experiment = {"recipe": recipe.to_dict(), **source}
    path = run / RECIPE
    told = {"taught_by": [_taught_by(cache) for cache in caches], "versions": library_versions()}
    record = canonical_json({**experiment, **told})
    if not path.exists() and run.exists() and any(run.iterdir()):
        raise ConfigError(f"`{run}` is not empty and no run", hint="give --out a new folder")
    if put_if_absent(path, record):
        return
    kept = {"views": experiment.get("views"), **json.loads(path.read_bytes())}
    # Settings that are younger than the run stood at their defaults.
    kept["recipe"] = build_recipe(kept["recipe"]).to_dict()
    if _all_descend(kept.get("caches"), [cache.lineage for cache in caches]):
        experiment["caches"] = kept["caches"]
    there = dict(leaves({key: kept.get(key) for key in experiment}))
    for name, now in leaves(experiment):
        before = there.get(name)
        if before != now:
            raise ConfigError(
                f"`{run}` holds another run: `{name}` is {before!r} there and {now!r} here",
                hint="give another --out, or the settings it was begun with",
            )


def _taught_by(cache: Cache) -> dict[str, Any]:
    """What a reader of a run wants to know of a teacher; its identity says the rest."""
    teacher, views = cache.recipe["teacher"], cache.recipe["views"]
    return {
        "name": teacher["name"],
        "weights": teacher["weights"],
        "image_size": teacher["image_size"],
        "licence": teacher["licence"],
        "policy": views["policy"]["name"],
        "views": cache.num_views,
        "images": cache.num_rows,
    }


def _views_begun_with(run: Path) -> int | None:
    """How many views a run that was begun shows in turn."""
    path = run / RECIPE
    views: int | None = json.loads(path.read_bytes()).get("views") if path.is_file() else None
    return views


def _all_descend(kept: list[str] | None, lineages: list[list[str]]) -> bool:
    """Whether each cache is the one that the run was begun with, grown or not."""
    return (
        kept is not None
        and len(kept) == len(lineages)
        and all(old in lineage for old, lineage in zip(kept, lineages, strict=True))
    )


def build_state(recipe: Recipe, lesson: Lesson, device: torch.device) -> State:
    """A student, its method and optimiser before the first step, as the recipe's seed draws them.

    Raises:
        ConfigError: the student cannot take views of the size that it is to be shown.
    """
    torch.manual_seed(recipe.run.seed)
    student = build_student(recipe.student.name, image_size=recipe.student.image_size)
    maker, views = lesson.images.maker, lesson.plan.views(0)
    for side in {maker.policy.side(view, maker.size) for view in views} - {maker.size}:
        student.measure(side)  # refuses small crops that the student cannot take
    method: Method = recipe.method_class(
        recipe.method_config, student_dim=student.feature_dim, teachers=lesson.teachers
    )
    method.adopt(student)
    student.to(device).train()
    method.to(device).train()
    parameters = [*student.parameters(), *(p for p in method.parameters() if p.requires_grad)]
    settings = recipe.train
    optimizer = torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.run.precision == "fp16")
    if recipe.run.compile:
        student.compile(dynamic=False)
    return State(student, method, optimizer, scaler, Random.now(device))
