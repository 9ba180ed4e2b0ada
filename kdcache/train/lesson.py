"""What a run learns from: images joined to what one or more teachers said of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kdcache import distributed
from kdcache.errors import CacheMismatch
from kdcache.heads import ProjectionHead
from kdcache.images import ImageSet, dataset_fingerprint, index_images, refuse_suspects
from kdcache.methods import TeacherSide
from kdcache.progress import Bar, Tell
from kdcache.recipe import Recipe
from kdcache.shapes import Int64
from kdcache.store import Cache
from kdcache.targets import SampleStream, Targets, TargetTable, load_head
from kdcache.teachers import Teacher
from kdcache.train.data import Plan, StepImages, ViewSchedule, join_images
from kdcache.train.online import LiveTargets
from kdcache.views import ViewMaker, get_policy, get_renderer, renderer_of


@dataclass(frozen=True)
class Lesson:
    """Rendered views, and what each teacher says of them."""

    images: StepImages
    targets: list[Targets]
    """One a teacher; none for a method without one."""
    rows: list[Int64[np.ndarray, " N"]]
    """For each teacher the row of every sample in its cache."""
    heads: list[ProjectionHead | None]
    """The teachers' projection heads, for a method that works with them."""

    @property
    def plan(self) -> Plan:
        """Which samples and views each step shows."""
        return self.images.plan

    @property
    def stream(self) -> SampleStream:
        """The order of the samples."""
        return self.plan.stream

    @property
    def teachers(self) -> list[TeacherSide]:
        """What the method is told of its teachers."""
        pairs = zip(self.targets, self.heads, strict=True)
        return [TeacherSide(targets.dim, head) for targets, head in pairs]


def lesson_alone(recipe: Recipe, images: ImageSet, bar: Bar) -> tuple[Lesson, str]:
    """Fresh views for a method without a teacher, and the fingerprint of the images."""
    with bar("index", total=len(images), unit="images") as progress:
        index = index_images(images, progress=progress)
    refuse_suspects(images, index, hint="take them out of the folder")
    maker = ViewMaker(
        images,
        index.ids,
        get_policy(recipe.run.policy or recipe.method_class.views),
        recipe.run.seed,
        get_renderer(),
        recipe.student.image_size,
    )
    rows = np.arange(len(images))
    plan = _plan(recipe, len(rows), ViewSchedule(recipe.needs.views, recipe.run.views or None))
    steps = StepImages(maker, plan, rows, _rendered(recipe))
    return Lesson(steps, [], [], []), dataset_fingerprint(images, index)


def lesson_from(
    caches: Sequence[Cache],
    recipe: Recipe,
    images: ImageSet,
    *,
    device: torch.device,
    tell: Tell,
    bar: Bar,
    live: Teacher | None = None,
    num_views: int | None = None,
) -> Lesson:
    """The views and targets of the caches, which have been found to serve the method.

    Args:
        num_views: how many views are shown in turn; all that the caches hold unless given.
        live: the teacher of the (one) cache, to be asked anew instead of looked up.
    """
    needs, first = recipe.needs, caches[0]
    assert needs.target is not None
    rows = _common_rows(caches)
    maker = _maker(first, recipe.student.image_size, images, tell, bar)
    targets = [
        TargetTable(
            cache,
            needs.target,
            its_rows,
            device=device,
            keep=needs.views * recipe.train.repeats,
            center=needs.center,
        )
        for cache, its_rows in zip(caches, rows, strict=True)
    ]
    graph = _graph(first, rows[0]) if needs.neighbours else None
    plan = _plan(
        recipe,
        len(rows[0]),
        ViewSchedule(needs.views, num_views or views_of(caches, recipe)),
        graph,
    )
    teacher_maker = replace(maker, size=live.image_size) if live is not None else None
    live_or_table: list[Targets] = list(targets)
    if live is not None and teacher_maker is not None:
        live_or_table = [_live_targets(first, targets[0], live, teacher_maker, rows[0])]
    steps = StepImages(maker, plan, rows[0], _rendered(recipe), teacher_maker)
    heads = [load_head(cache) if needs.head else None for cache in caches]
    return Lesson(steps, live_or_table, rows, heads)


def views_of(caches: Sequence[Cache], recipe: Recipe) -> int:
    """How many views a run shows in turn."""
    return recipe.run.views or min(cache.num_views for cache in caches)


def _live_targets(
    cache: Cache,
    table: TargetTable,
    teacher: Teacher,
    maker: ViewMaker,
    rows: Int64[np.ndarray, " N"],
) -> LiveTargets:
    needs_head = table.array == "embedding" and teacher.head is None
    return LiveTargets(
        teacher=teacher.to(table.device),
        array=table.array,
        head=load_head(cache).to(table.device) if needs_head else None,
        mean=table.mean,
        maker=maker,
        rows=rows,
        precision=cache.recipe["precision"],
        batch_size=max(1, cache.recipe["batch_size"] // cache.num_views) * cache.num_views,
        device=table.device,
        dim=table.dim,
    )


def _maker(cache: Cache, size: int, images: ImageSet, tell: Tell, bar: Bar) -> ViewMaker:
    """Renders the views of a cache."""
    views = cache.recipe["views"]
    with bar("match", total=len(images), unit="images") as progress:
        joined = join_images(cache, images, progress)
    num_out = len(images) - int(cache.readable.sum())
    if num_out > 0:
        tell(
            f"{num_out:,} images of `{images.source}` are not in the cache, or could not be read "
            "when it was made: they take no part"
        )
    return ViewMaker(
        joined,
        cache.image_ids,
        get_policy(views["policy"]["name"]),
        views["seed"],
        renderer_of(cache.recipe, cache.path),
        size,
    )


def _plan(
    recipe: Recipe,
    num_samples: int,
    schedule: ViewSchedule,
    graph: Int64[np.ndarray, "N K"] | None = None,
) -> Plan:
    train = recipe.train
    return Plan(
        SampleStream(num_samples, train.batch_size, recipe.run.seed, train.repeats),
        schedule,
        graph,
        recipe.needs.neighbours,
        train.accumulate,
        distributed.rank(),
        distributed.world_size(),
    )


def _rendered(recipe: Recipe) -> int:
    needs = recipe.needs
    return needs.views if needs.rendered is None else needs.rendered


def _common_rows(caches: Sequence[Cache]) -> list[Int64[np.ndarray, " N"]]:
    """For each cache the rows of the images that all of them could read, in the first one's order.

    Raises:
        CacheMismatch: they have no image in common.
    """
    first, others = caches[0], caches[1:]
    rows = [np.flatnonzero(first.readable)]
    at_id = [
        {other.image_ids[row].tobytes(): int(row) for row in np.flatnonzero(other.readable)}
        for other in others
    ]
    ids = [first.image_ids[row].tobytes() for row in rows[0]]
    common = np.array([all(i in there for there in at_id) for i in ids], np.bool_)
    if not common.any():
        names = ", ".join(f"`{cache.path}`" for cache in caches)
        raise CacheMismatch(
            f"{names} have no image in common",
            hint="give caches of the same images: rows are joined by the hash of the file's bytes",
        )
    kept = [i for i, here in zip(ids, common, strict=True) if here]
    return [rows[0][common], *(np.array([there[i] for i in kept]) for there in at_id)]


def _graph(cache: Cache, rows: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, "N K"]:
    """The cache's kNN graph in the numbers of the samples; -1 for rows that take no part."""
    graph = cache.neighbours()
    assert graph is not None, "asked before the needs were checked"
    sample = np.full(cache.num_rows + 1, -1, np.int64)  # the last one answers for the padding
    sample[rows] = np.arange(len(rows))
    near = sample[graph.index[rows]]
    # Valid ones first, in their order, so that a count tells which they are.
    order = np.argsort(near < 0, axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)
