"""A run from end to end: check what is given, build what learns, train, keep the student."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.errors import ConfigError, DataError
from kdcache.files import canonical_json, exclusive, put_if_absent
from kdcache.images import ImageSet, dataset_fingerprint, index_images
from kdcache.methods import Method, TeacherSide
from kdcache.progress import Bar
from kdcache.recipe import Recipe, settle_precision
from kdcache.shapes import Int64
from kdcache.store import Cache
from kdcache.students import build_student, save_student
from kdcache.targets import SampleStream, TargetTable
from kdcache.train.checkpoint import State, load_checkpoint
from kdcache.train.data import StepImages, ViewSchedule, join_images
from kdcache.train.log import read_metrics
from kdcache.train.loop import Lesson, train
from kdcache.train.needs import check_cache, check_numbers
from kdcache.versions import library_versions
from kdcache.views import (
    ViewMaker,
    check_witnesses,
    get_policy,
    get_renderer,
    witnesses_from_arrays,
)

RECIPE = "recipe.json"
STUDENT = "student.safetensors"


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    finished: bool
    """False if a signal stopped it; the same command goes on."""
    student: Path | None
    """The trained student, when finished."""
    last: dict[str, Any]
    """The last record of the metrics."""
    notes: list[str]
    """What the user should know: images that take no part, pixels that differ within tolerance."""


def run_training(
    recipe: Recipe,
    images: ImageSet,
    run: Path,
    *,
    cache: Cache | None,
    device: torch.device,
    workers: int,
    bar: Bar,
) -> Outcome:
    """Train the recipe's student on `images` in the folder `run`, or go on where it stopped.

    Args:
        cache: what the teacher said of the images; None for a method without a teacher.

    Raises:
        ConfigError: the recipe does not fit, or `run` holds another experiment.
        CacheMismatch: the cache does not serve the method, or its views differ from those here.
        DataError: images are missing or have changed.
        TrainingError: the loss is not finite, or the checkpoint cannot be read.
    """
    recipe = settle_precision(recipe, device)
    _check_method(recipe, cache)
    notes: list[str] = []
    if cache is None:
        lesson, source = _lesson_alone(recipe, images, bar)
    else:
        lesson, source = _lesson_from(cache, recipe, images, device, bar, notes)
    check_numbers(recipe, lesson.stream.num_samples)
    if cache is not None:
        notes += _check_pixels(cache, lesson.images.maker)
    _claim_folder(run, recipe, source)
    with exclusive(run):
        state = _build_state(recipe, lesson, device)
        load_checkpoint(run, state)
        total = recipe.train.epochs * lesson.stream.epoch_length
        done = state.step * lesson.stream.batch_size
        with bar(f"train {recipe.method}", total=total, unit="images", done=done) as progress:
            finished = train(
                recipe, lesson, state, run, device=device, workers=workers, progress=progress
            )
        student = run / STUDENT if finished else None
        if student is not None:
            save_student(student, state.student, {"method": recipe.method})
        records = read_metrics(run)
    return Outcome(finished, student, records[-1] if records else {}, notes)


def _check_method(recipe: Recipe, cache: Cache | None) -> None:
    if cache is not None:
        check_cache(recipe, cache)
    elif recipe.needs.target is not None:
        raise ConfigError(
            f"`{recipe.method}` learns from a teacher, but no cache is given",
            hint="add `--cache CACHE`; `kdcache extract` makes one",
        )


def _lesson_alone(recipe: Recipe, images: ImageSet, bar: Bar) -> tuple[Lesson, dict[str, str]]:
    """Fresh views for a method without a teacher, and what identifies the images."""
    with bar("index", total=len(images), unit="images") as progress:
        index = index_images(images, progress=progress)
    if index.suspects:
        row = min(index.suspects)
        raise DataError(
            f"{len(index.suspects):,} of {len(images):,} files are no images, the first is "
            f"`{images.paths[row]}`: {index.suspects[row]}",
            hint="take them out of the folder",
        )
    maker = ViewMaker(
        images,
        index.ids,
        get_policy(recipe.run.policy or recipe.method_class.views),
        recipe.run.seed,
        get_renderer("r0"),
        recipe.student.image_size,
    )
    steps = _steps(recipe, maker, np.arange(len(images)), num_cached=None)
    return Lesson(steps, None), {"images": dataset_fingerprint(images, index)}


def _lesson_from(
    cache: Cache,
    recipe: Recipe,
    images: ImageSet,
    device: torch.device,
    bar: Bar,
    notes: list[str],
) -> tuple[Lesson, dict[str, str]]:
    """The views and targets of a cache, and what identifies it."""
    needs, views = recipe.needs, cache.recipe["views"]
    assert needs.target is not None
    maker = ViewMaker(
        _join(cache, images, bar, notes),
        cache.image_ids,
        get_policy(views["policy"]["name"]),
        views["seed"],
        get_renderer(views["renderer"]["id"]),
        recipe.student.image_size,
    )
    rows = np.flatnonzero(cache.readable)
    targets = TargetTable(cache, needs.target, rows, device=device, keep=needs.views)
    steps = _steps(recipe, maker, rows, num_cached=cache.num_views)
    return Lesson(steps, targets), {"cache": cache.identity}


def _steps(
    recipe: Recipe, maker: ViewMaker, rows: Int64[np.ndarray, " N"], *, num_cached: int | None
) -> StepImages:
    stream = SampleStream(len(rows), recipe.train.batch_size, recipe.run.seed)
    return StepImages(maker, stream, rows, ViewSchedule(recipe.needs.views, num_cached))


def _join(cache: Cache, images: ImageSet, bar: Bar, notes: list[str]) -> ImageSet:
    """The images of the cache's rows; what is left out is noted."""
    with bar("match", total=len(images), unit="images") as progress:
        joined = join_images(cache, images, progress)
    num_out = len(images) - int(cache.readable.sum())
    if num_out > 0:
        notes.append(
            f"{num_out:,} images of `{images.source}` are not in the cache, or could not be read "
            "when it was made: they take no part"
        )
    return joined


def _check_pixels(cache: Cache, maker: ViewMaker) -> list[str]:
    """Render some of the cache's witnesses again, at the teacher's size, and compare."""
    as_seen = replace(maker, size=cache.recipe["teacher"]["image_size"])
    report = check_witnesses(witnesses_from_arrays(cache.witness()), as_seen)
    return [str(report)] if report.differences else []


def _claim_folder(run: Path, recipe: Recipe, source: dict[str, str]) -> None:
    """Make the run's folder, or find that it holds this same experiment.

    Args:
        source: what the run learns from: the identity of a cache, or the images' fingerprint.
    """
    experiment = {"recipe": recipe.to_dict(), **source}
    path = run / RECIPE
    record = canonical_json({**experiment, "versions": library_versions()})
    if not path.exists() and run.exists() and any(run.iterdir()):
        raise ConfigError(f"`{run}` is not empty and no run", hint="give --out a new folder")
    if put_if_absent(path, record):
        return
    kept = json.loads(path.read_bytes())
    for name, now in _flat(experiment).items():
        before = _flat({k: kept.get(k) for k in experiment}).get(name)
        if before != now:
            raise ConfigError(
                f"`{run}` holds another run: `{name}` is {before!r} there and {now!r} here",
                hint="give another --out, or the settings it was begun with",
            )


def _flat(table: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(table, dict):
        return {at: table}
    items: dict[str, Any] = {}
    for key, value in table.items():
        items |= _flat(value, f"{at}.{key}" if at else key)
    return items


def _build_state(recipe: Recipe, lesson: Lesson, device: torch.device) -> State:
    torch.manual_seed(recipe.run.seed)
    student = build_student(recipe.student.name, image_size=recipe.student.image_size)
    teachers = [TeacherSide(lesson.targets.dim)] if lesson.targets is not None else []
    method: Method = recipe.method_class(
        recipe.method_config, student_dim=student.feature_dim, teachers=teachers
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
    return State(student, method, optimizer, scaler)
